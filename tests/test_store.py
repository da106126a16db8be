"""A run file: written whole or not at all, by one writer, and read back exactly."""

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import pytest

from imgsafety import Scanner, SetupError
from imgsafety.runs import scan_run
from imgsafety.store import Entry, Seen, open_to_read, open_to_write


@pytest.fixture
def run(scanner, folder, tmp_path_factory):
    """A finished run over `folder`."""
    path = tmp_path_factory.mktemp("run") / "run.sqlite"
    with open_to_write(path) as store:
        assert len(list(scan_run(scanner, store, [folder]))) == 3
    return path


def by_path(results):
    return {result.path: result for result in results}


def test_results_are_read_back_as_they_were(scanner, folder, run):
    with open_to_read(run) as store:
        assert by_path(store.results()) == by_path(scanner.scan(sorted(folder.rglob("?.*"))))


def test_a_second_writer_is_refused_and_readers_are_not(run):
    with open_to_write(run), open_to_read(run) as store:
        assert store.count()["allow"] == 2
        with pytest.raises(SetupError, match="another imgsafety is writing"), open_to_write(run):
            pass
    with open_to_write(run):
        pass


def test_the_lock_of_a_killed_writer_is_gone(run):
    code = f"from imgsafety.store import open_to_write as o\nwith o({str(run)!r}): print('in', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout.readline() == b"in\n"
        with pytest.raises(SetupError, match="another"), open_to_write(run):
            pass
        holder.send_signal(signal.SIGKILL)
    with open_to_write(run) as store:
        assert store.count()["allow"] == 2


def test_a_batch_that_fails_leaves_nothing(run, scanner, folder):
    good = Entry(Seen(b"new.png", "1"), scanner.check(folder / "a.png"))
    bad = Entry(Seen(b"worse.png", None), scanner.check(folder / "a.png"))  # a file without a stamp is refused by the table
    with open_to_write(run) as store:
        with pytest.raises(SetupError, match="NOT NULL"):
            store.write([good, bad])
        assert not store.done(good.seen)
        store.write([good])
        assert store.done(good.seen)


def test_only_one_thread_may_score_the_same_bytes(run):
    with open_to_write(run) as store:
        claimed = []
        threads = [threading.Thread(target=lambda: claimed.append(store.claim("ab" * 32))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(claimed) == [False] * 7 + [True]


def test_bytes_that_are_stored_need_no_scores(run):
    with open_to_write(run) as store:
        assert not store.claim(next(store.results()).sha256)


@pytest.mark.parametrize("content", [b"not a database, but longer than the header of one would be" * 4, b"short"])
def test_another_file_is_refused_and_left_alone(tmp_path, content):
    (tmp_path / "notes.txt").write_bytes(content)
    with pytest.raises(SetupError, match="some other file"), open_to_write(tmp_path / "notes.txt"):
        pass
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"notes.txt": content}


def test_another_database_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(SetupError, match="not a run of imgsafety"), open_to_write(tmp_path / "other.db"):
        pass


def test_a_run_of_another_format_is_refused(run):
    with sqlite3.connect(run) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(SetupError, match="format 99"), open_to_read(run):
        pass


def test_a_missing_run_is_named(tmp_path):
    for opened in (open_to_read(tmp_path / "no.sqlite"), open_to_write(tmp_path / "no.sqlite", create=False)):
        with pytest.raises(SetupError, match=r"no.sqlite does not exist"), opened:
            pass
    with pytest.raises(SetupError, match="no folder"), open_to_write(tmp_path / "no" / "run.sqlite"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs a limit on file sizes")
def test_a_full_disk_is_said_and_the_run_goes_on_later(toy_path, toy_policy_path, tmp_path, draw):
    (tmp_path / "in").mkdir()
    for index in range(300):
        draw("clothed", (16 + index, 16)).save(tmp_path / "in" / f"{index}.png")
    run = tmp_path / "run.sqlite"
    command = f"scan {tmp_path}/in --run {run} --model {toy_path} --policy {toy_policy_path} --batch-size 8".split()
    code = (
        "import resource, signal, sys; from imgsafety.cli import main; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)); sys.exit(main({command!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "what was stored stays valid: free some space" in done.stderr
    with open_to_read(run) as store:
        before = store.count()["allow"]
        assert 0 < before < 300 and next(store.query("PRAGMA integrity_check")) == ("ok",)
    with open_to_write(run) as store:
        scanner = Scanner(toy_path, toy_policy_path, batch_size=8)
        assert len(list(scan_run(scanner, store, [tmp_path / "in"]))) == 300 - before
        assert store.count() == {"allow": 300, "flagged": 0}


def test_names_that_are_not_utf8_come_back_as_they_were(scanner, tmp_path, draw):
    name = os.fsdecode(b"caf\xe9\xff.png")
    draw("clothed").save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / name)
    with open_to_write(tmp_path / "run.sqlite") as store:
        list(scan_run(scanner, store, [tmp_path]))
        assert [result.path for result in store.results()] == [str(tmp_path / name)]


@pytest.mark.parametrize(
    "damage", ["scores = x'00'", "reasons = 'x'", "reasons = '[1]'", "deciding = 9", "frames = '{'", "verdict = 'allo'"]
)
def test_a_damaged_run_says_so(run, damage):
    with closing(sqlite3.connect(run)) as connection, connection:
        connection.execute(f"UPDATE pictures SET {damage}")
    with pytest.raises(SetupError, match="damaged"), open_to_read(run) as store:
        list(store.results())


def test_a_verdict_that_is_none_is_not_left_out_of_the_counts(run):
    with closing(sqlite3.connect(run)) as connection, connection:
        connection.execute("UPDATE pictures SET verdict = 'allo'")
    with pytest.raises(SetupError, match="damaged"), open_to_read(run) as store:
        store.count()
