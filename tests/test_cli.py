"""The command: exit statuses, outputs, and what it says about bad input."""

import contextlib
import csv
import io
import json
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import pytest

from imgsafety import Result, __version__
from imgsafety.cli import cli, main


@pytest.fixture
def run(capsys, toy_path, toy_policy_path):
    """Run the command with the toy model; return its exit status, output and messages."""

    def run(command, *words, toy=True):
        options = ["--model", toy_path, "--policy", toy_policy_path] if toy else []
        status = main([command, *map(str, [*options, *words])])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def harmless(tmp_path, draw):
    (tmp_path / "fine").mkdir()
    draw("clothed").save(tmp_path / "fine" / "a.png")
    return tmp_path / "fine"


def command(*words, stdout=subprocess.PIPE):
    argv = [sys.executable, "-m", "imgsafety", *map(str, words)]
    return subprocess.run(argv, stdout=stdout, stderr=subprocess.PIPE, timeout=60, encoding="utf-8", errors="surrogateescape")


def test_nothing_flagged_is_0(run, harmless):
    status, output, messages = run("scan", harmless)
    assert (status, output) == (0, "") and "1 pictures: 1 allow" in messages


def test_something_flagged_is_1_and_named(run, folder):
    status, output, messages = run("scan", folder)
    assert status == 1 and output.count("\n") == 1
    assert "c.webp" in output and "minimal-attire" in output
    assert "3 pictures: 2 allow, 1 review, 0 block, 0 undecided; 1 flagged" in messages


def test_jsonl_and_csv_hold_every_picture(run, folder):
    lines = [json.loads(line) for line in run("scan", folder, "--format", "jsonl")[1].splitlines()]
    rows = list(csv.DictReader(io.StringIO(run("scan", folder, "--format", "csv")[1])))
    assert [line["path"] for line in lines] == [row["path"] for row in rows]
    assert [line["verdict"] for line in lines] == [row["verdict"] for row in rows] == ["allow", "allow", "review"]
    assert set(lines[0]) == set(Result("x", "allow").to_dict())


def test_output_goes_to_a_file(run, folder, tmp_path):
    status, output, _ = run("scan", folder, "--format", "jsonl", "--output", tmp_path / "results.jsonl")
    assert (status, output) == (1, "") and len((tmp_path / "results.jsonl").read_text().splitlines()) == 3


def test_check_shows_everything_about_a_file(run, folder):
    status, output, _ = run("check", folder / "deep" / "er" / "c.webp", folder / "a.png")
    assert status == 1
    assert all(word in output for word in ("c.webp: review", "a.png: allow", "minimal_attire", "minor", "attire", "sha256"))


def test_check_with_a_map_says_where(run, folder):
    status, output, _ = run("check", "--map", folder / "a.png")
    assert status == 0 and json.loads(output)["maps"]


def test_check_edit_finds_who_was_undressed(run, folder):
    bare, dressed = folder / "deep" / "er" / "c.webp", folder / "a.png"
    status, output, _ = run("check-edit", dressed, bare)
    assert status == 1 and "undressed" in output and "block" in output
    assert run("check-edit", dressed, dressed)[0] == 0


def test_info_names_model_heads_policy_provider_and_versions(run):
    status, output, _ = run("info")
    assert status == 0
    assert all(word in output for word in ("toy 1", "attire", "age", "minor-exposed", "cpu", "onnxruntime", __version__))


def test_help_and_version_end_well(capsys):
    for words in (["--help"], ["--version"], *([name, "--help"] for name in cli.commands)):
        assert main(words) == 0
        assert capsys.readouterr().out


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\0"])
def test_a_list_of_files_is_scanned(folder, tmp_path, toy_path, toy_policy_path, end):
    (folder / "a.png").rename(folder / "a b.png")
    found = sorted(os.fsencode(path) for path in folder.rglob("*") if path.suffix in (".png", ".webp", ".jpg"))
    argv = [sys.executable, "-m", "imgsafety", "scan", "--files-from", "-", "--model", toy_path, "--policy", toy_policy_path]
    result = subprocess.run([*map(str, argv)], input=b"".join(name + end for name in found), capture_output=True, timeout=60)
    assert result.returncode == 1 and b"c.webp" in result.stdout and b"3 pictures: 2 allow, 1 review" in result.stderr


def test_a_list_names_more_beside_what_is_named(run, folder, harmless, tmp_path):
    (tmp_path / "list").write_text(f"{harmless}\n{tmp_path / 'nowhere'}\n")
    status, output, messages = run("scan", folder, "--files-from", tmp_path / "list", "--format", "jsonl")
    assert status == 2 and "nowhere: no such file or folder" in messages and output.count("\n") == 4
    assert run("scan", harmless, "--files-from", tmp_path / "list", "--output", tmp_path / "list")[0] == 2
    assert str(harmless) in (tmp_path / "list").read_text()


def test_a_list_that_windows_wrote_loses_no_name(run, harmless, tmp_path):
    (tmp_path / "list").write_text(f"{harmless}\n", encoding="utf-8-sig")
    assert run("scan", "--files-from", tmp_path / "list")[0] == 0


@pytest.mark.parametrize("closed", ["1", "2"])
def test_a_closed_terminal_is_no_traceback(folder, toy_path, toy_policy_path, closed):
    words = ["scan", folder, "--format", "jsonl", "--model", toy_path, "--policy", toy_policy_path]
    line = f"{shlex.join([sys.executable, '-m', 'imgsafety', *map(str, words)])} {closed}>&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert done.returncode == {"1": 2, "2": 1}[closed] and "Traceback" not in done.stderr


def test_an_empty_list_is_2(run, tmp_path):
    (tmp_path / "list").write_text("\n")
    status, _, messages = run("scan", "--files-from", tmp_path / "list")
    assert status == 2 and "names nothing" in messages


# Bad input: a clear line, the right exit status, the rest still scanned.


def test_a_missing_path_is_2_and_the_rest_is_scanned(run, folder):
    status, output, messages = run("scan", folder, folder / "nowhere")
    assert status == 2 and "nowhere: no such file or folder" in messages
    assert "c.webp" in output and "3 pictures" in messages


def test_only_missing_paths_are_2(run, tmp_path):
    assert run("scan", tmp_path / "nowhere")[0] == 2


def test_an_empty_folder_is_2(run, tmp_path):
    (tmp_path / "empty").mkdir()
    status, _, messages = run("scan", tmp_path / "empty")
    assert status == 2 and f"no pictures in {tmp_path / 'empty'}" in messages


def png_header(width, height):
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in (header, b"IDAT")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


BAD_FILES = {
    "text": (b"not a picture", "not an image of a kind we read"),
    "empty": (b"", "the file is empty"),
    "huge": (png_header(100_000, 100_000), "over the limit"),
    "large": (png_header(9_000, 9_000), "9000x9000 pixels are over the limit of 80,000,000"),
    "truncated": (None, "cannot be decoded"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_undecided_and_the_rest_is_scanned(run, folder, kind):
    data, message = BAD_FILES[kind]
    if data is None:
        whole = (folder / "deep" / "b.jpg").read_bytes()
        data = whole[: len(whole) // 2]
    (folder / "aa.png").write_bytes(data)
    status, output, messages = run("scan", folder)
    assert status == 1 and "4 pictures: 2 allow, 1 review, 0 block, 1 undecided; 2 flagged" in messages
    (line,) = [line for line in output.splitlines() if line.startswith("undecided")]
    assert "aa.png" in line and message in line and "Traceback" not in output + messages


def test_a_bad_file_alone_is_1(run, folder):
    assert run("scan", folder / "notes.txt")[0] == 1
    assert run("check", folder / "notes.txt", folder / "nowhere.png")[0] == 1


def test_an_unreadable_file_is_undecided(run, folder):
    (folder / "gone.png").symlink_to(folder / "nothing")
    status, output, _ = run("scan", folder)
    assert status == 1 and "gone.png" in output and "cannot be read: No such file" in output


def test_a_file_without_permission_is_undecided(run, folder, forbid):
    forbid(folder / "a.png")
    status, output, _ = run("scan", folder)
    assert status == 1 and "Permission denied" in output
    status, output, _ = run("check", folder / "a.png", folder / "b.jpg")
    assert status == 1 and "Permission denied" in output and "b.jpg: allow" in output


def test_the_pixel_limit_is_an_option(run, harmless):
    status, output, _ = run("scan", harmless, "--max-pixels", "100")
    assert status == 1 and "64x48 pixels are over the limit of 100" in output


def test_an_unknown_model_file_is_2(capsys, folder):
    assert main(["scan", str(folder), "--model", "nowhere.onnx"]) == 2
    assert "nowhere.onnx cannot be read" in capsys.readouterr().err


def test_a_policy_for_another_model_is_2(capsys, folder, toy_path):
    assert main(["scan", str(folder), "--model", str(toy_path), "--policy", "strict"]) == 2
    assert "calibrated for model" in capsys.readouterr().err


def test_an_unknown_policy_is_2(run, folder):
    status, _, messages = run("scan", folder, "--policy", "nowhere")
    assert status == 2 and "audit, default, strict" in messages


@pytest.mark.parametrize("place", ["nowhere/results.txt", "."])
def test_an_unwritable_output_is_2(run, folder, place):
    status, _, messages = run("scan", folder, "--output", folder / place)
    assert status == 2 and messages and "Traceback" not in messages


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_2(run, folder):
    status, _, messages = run("scan", folder, "--output", "/dev/full", "--format", "jsonl")
    assert status == 2 and "cannot write the results" in messages


@pytest.mark.parametrize("words", ["", "scan", "dance", "scan . --batch-size 0", "scan . --format xml", "info --what"])
def test_wrong_usage_is_2(capsys, words):
    assert main(words.split()) == 2


def test_a_damaged_model_is_2_or_undecided_never_0(run, folder, tmp_path):
    from tests.toy import write_toy_model

    damaged = write_toy_model(tmp_path / "nan.onnx", factor=float("nan"))
    status, output, _ = run("scan", folder, "--model", damaged)
    assert status == 1 and output.count("undecided") == 3


# The real process.


def test_the_process_ends_with_the_status(folder, harmless, toy_path, toy_policy_path):
    options = ["--model", toy_path, "--policy", toy_policy_path]
    assert command("scan", harmless, *options).returncode == 0
    flagged = command("scan", folder, *options)
    assert flagged.returncode == 1 and "c.webp" in flagged.stdout
    broken = command("scan", folder / "nowhere", *options)
    assert broken.returncode == 2 and "no such file or folder" in broken.stderr and "Traceback" not in broken.stderr


def test_damaged_files_make_no_noise(folder, toy_path, toy_policy_path):
    (folder / "large.png").write_bytes(png_header(12_000, 12_000))
    result = command("scan", folder, "--model", toy_path, "--policy", toy_policy_path)
    assert result.returncode == 1 and "large.png" in result.stdout
    assert len(result.stderr.splitlines()) == 1


def test_a_name_that_is_not_utf8_reaches_the_output(folder, toy_path, toy_policy_path):
    name = os.fsdecode(b"caf\xe9.png")
    (folder / "a.png").rename(folder / name)
    for format_ in ("text", "csv", "jsonl"):
        result = command("scan", folder, "--model", toy_path, "--policy", toy_policy_path, "--format", format_)
        assert result.returncode == 1 and "3 pictures" in result.stderr
        # Text shows nothing of it: the picture is harmless. JSON writes it as an escape, CSV as it is.
        assert {"text": ".webp", "jsonl": json.dumps(name)[1:-1], "csv": name}[format_] in result.stdout


def test_a_name_that_the_terminal_cannot_show_does_not_end_the_scan(folder, toy_path, toy_policy_path):
    (folder / "deep" / "\u65e5.png").write_bytes((folder / "a.png").read_bytes())
    argv = [sys.executable, "-m", "imgsafety", "scan", folder, "--model", toy_path, "--policy", toy_policy_path, "--format", "csv"]
    environment = os.environ | {"PYTHONIOENCODING": "cp1252"}
    result = subprocess.run([*map(str, argv)], capture_output=True, env=environment, timeout=60)
    assert result.returncode == 1 and rb"\u65e5.png" in result.stdout and b"4 pictures" in result.stderr


def test_what_is_read_or_kept_is_not_written_over(run, folder, tmp_path):
    kept = tmp_path / "a.run"
    run("scan", folder, "--run", kept)
    before = kept.read_bytes()
    for words in (
        ["scan", folder, "--run", kept, "--output", kept],
        ["scan", folder, "--audit-log", tmp_path / "log", "--output", tmp_path / "log"],
        ["scan", folder, "--output", folder / "a.png"],
        ["scan", folder, "--run", kept, "--audit-log", kept],
        ["scan", folder, "--run", kept, "--output", f"{kept}-wal"],
    ):
        assert run(*words)[0] == 2
    for option in ("--html", "--json", "--csv", "--parquet"):
        assert run("report", kept, option, kept, toy=False)[0] == 2
    assert kept.read_bytes() == before and run("scan", folder / "a.png")[0] == 0


def test_a_reader_that_leaves_early_is_no_traceback(folder, toy_path, toy_policy_path):
    read, write = os.pipe()
    os.close(read)
    result = command("scan", folder, "--format", "jsonl", "--model", toy_path, "--policy", toy_policy_path, stdout=write)
    os.close(write)
    assert result.returncode == 2 and "Traceback" not in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_shows_progress_and_a_pipe_stays_clean(folder, toy_path, toy_policy_path):
    import pty

    terminal, end = pty.openpty()
    words = ["scan", folder, "--format", "jsonl", "--model", toy_path, "--policy", toy_policy_path]
    process = subprocess.Popen([sys.executable, "-m", "imgsafety", *map(str, words)], stdout=subprocess.PIPE, stderr=end, text=True)
    os.close(end)
    output, _ = process.communicate(timeout=60)
    shown = os.read(terminal, 1 << 16).decode()
    os.close(terminal)
    assert process.returncode == 1
    assert [json.loads(line)["verdict"] for line in output.splitlines()] == ["allow", "allow", "review"]
    assert "3/3" in shown and "1 flagged" in shown


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_name_cannot_steer_the_terminal_by_csv(folder, toy_path, toy_policy_path):
    import pty

    (folder / "a.png").rename(folder / "a\x1b[31m.png")
    terminal, end = pty.openpty()
    words = ["scan", folder, "--format", "csv", "--model", toy_path, "--policy", toy_policy_path]
    subprocess.run([sys.executable, "-m", "imgsafety", *map(str, words)], stdout=end, stderr=subprocess.PIPE, timeout=60)
    os.close(end)
    shown = os.read(terminal, 1 << 16)
    os.close(terminal)
    assert b"\x1b" not in shown and rb"a\x1b[31m.png" in shown


def test_an_archive_is_not_written_over(folder, tmp_path, toy_path, toy_policy_path):
    slides = tmp_path / "slides.pptx"
    with zipfile.ZipFile(slides, "w") as archive:
        archive.writestr("a.txt", "text")
    before = slides.read_bytes()
    words = ["scan", str(folder), "--model", str(toy_path), "--policy", str(toy_policy_path), "--output", str(slides)]
    assert main(words) == 2 and slides.read_bytes() == before


def test_on_a_terminal_a_result_has_a_line_of_its_own(folder, toy_path, toy_policy_path):
    name = f"broken{'n' * 200}.jpg"
    (folder / name).write_bytes(b"no picture")
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "imgsafety", "scan", folder, "--model", toy_path, "--policy", toy_policy_path]
    process = subprocess.Popen(words, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    written = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody writes to it any more
        while part := os.read(ours, 4096):
            written += part
    os.close(ours)
    process.wait()
    lines = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", written).decode().replace("\r", "\n").split("\n")
    assert sum(line.startswith("undecided  ") and f"{name}  not an image" in line for line in lines) == 1
    assert any("flagged" in line and "/s" in line for line in lines)
