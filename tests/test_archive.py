"""Pictures inside archives: read in place, one bad byte does not lose the rest."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from collections import Counter

import pytest

from imgsafety import ImageError, find_images
from imgsafety.archive import Member
from imgsafety.runs import scan_run
from imgsafety.source import Selection, load, name_of, stamp_of
from imgsafety.store import open_to_write

TARS = {"all.tar": "w", "all.tar.gz": "w:gz", "all.tgz": "w:gz", "all.tar.bz2": "w:bz2", "all.tar.xz": "w:xz"}


def picture(draw, kind="clothed", format_="PNG"):
    file = io.BytesIO()
    draw(kind).save(file, format_)
    return file.getvalue()


def write_zip(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return path


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1_700_000_000
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def files(draw):
    return [("a.png", picture(draw)), ("deep/b", picture(draw, "minimal")), ("notes.txt", b"no picture"), ("c.jpg", b"")]


@pytest.mark.parametrize("name", ["all.zip", *TARS])
def test_pictures_in_an_archive_are_found_and_read(tmp_path, files, name):
    path = write_zip(tmp_path / name, files) if name == "all.zip" else write_tar(tmp_path / name, files, TARS[name])
    found = list(find_images([tmp_path]))
    assert [name_of(item) for item in found] == [f"{path}/a.png", f"{path}/deep/b", f"{path}/c.jpg"]
    assert [load(item).content for item in found[:2]] == [data for _, data in files[:2]]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["all.zip", "all.tar", "all.tgz"])
def test_a_member_of_an_archive_gets_the_verdict_of_its_file(scanner, tmp_path, files, name):
    write_zip(tmp_path / name, files) if name == "all.zip" else write_tar(tmp_path / name, files, TARS[name])
    assert [result.verdict for result in scanner.scan(find_images([tmp_path]))] == ["allow", "review", "undecided"]


def test_an_archive_is_known_by_its_first_bytes(tmp_path, files):
    write_zip(tmp_path / "report.docx", files)
    assert len(list(find_images([tmp_path]))) == 3 == len(list(find_images([tmp_path / "report.docx"])))


@pytest.mark.parametrize("name", ["all.zip", "all.tar"])
def test_a_name_that_stands_twice_is_two_pictures(tmp_path, draw, name):
    twice = [("a.png", picture(draw, "clothed")), ("a.png", picture(draw, "minimal"))]
    if name == "all.zip":
        with pytest.warns(UserWarning, match="Duplicate name"):
            write_zip(tmp_path / name, twice)
    else:
        write_tar(tmp_path / name, twice)
    found = list(find_images([tmp_path]))
    assert len({name_of(item) for item in found}) == 2 and [load(item).content for item in found] == [data for _, data in twice]


@pytest.mark.parametrize("name", ["broken.zip", "broken.tar", "broken.tar.gz"])
def test_what_is_no_archive_is_undecided(scanner, tmp_path, name):
    (tmp_path / name).write_bytes(b"nothing of the kind" * 50)
    (result,) = scanner.scan(find_images([tmp_path]))
    assert result.verdict == "undecided" and "not an archive that can be read" in result.error


def test_an_archive_that_breaks_off_says_so_after_what_it_held(scanner, tmp_path, draw):
    whole = write_tar(tmp_path / "all.tar.gz", [(f"{index}.bmp", os.urandom(60_000)) for index in range(9)], "w:gz")
    whole.write_bytes(whole.read_bytes()[:200_000])
    results = list(scanner.scan(find_images([whole])))
    assert 1 < len(results) < 9 and "the archive breaks off" in results[-1].error


def test_one_damaged_member_does_not_lose_the_others(scanner, tmp_path, draw):
    data = [("0.png", picture(draw, "minimal")), ("1.bmp", picture(draw, "minimal", "BMP")), ("2.png", picture(draw, "minimal"))]
    path = write_zip(tmp_path / "all.zip", data)
    content = bytearray(path.read_bytes())
    at = content.index(b"1.bmp") + 20
    content[at : at + 8] = b"\xff" * 8
    path.write_bytes(content)
    assert [result.verdict for result in scanner.scan(find_images([path]))] == ["review", "undecided", "review"]


def test_an_archive_inside_an_archive_is_undecided(scanner, tmp_path, files):
    inner = write_zip(tmp_path / "inner.zip", files).read_bytes()
    (tmp_path / "inner.zip").unlink()
    write_zip(tmp_path / "outer.zip", [("inner.zip", inner)])
    (result,) = scanner.scan(find_images([tmp_path]))
    assert result.verdict == "undecided" and "unpack the outer one" in result.error


@pytest.mark.parametrize("name", ["a.png", "photo"])
def test_an_encrypted_member_is_undecided(scanner, tmp_path, draw, name):
    path = write_zip(tmp_path / "all.zip", [(name, picture(draw))])
    content = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + offset] |= 1  # the flag that says: encrypted
    path.write_bytes(content)
    (result,) = scanner.scan(find_images([path]))
    assert result.verdict == "undecided" and result.error == "is encrypted with a password; unpack the archive"


def test_a_link_in_an_archive_is_undecided_and_reads_nothing_outside(scanner, tmp_path, draw):
    draw("clothed").save(tmp_path / "secret.png")
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        archive.addfile(link)
    (result,) = scanner.scan(find_images([tmp_path / "all.tar"]))
    assert result.verdict == "undecided" and "is a link" in result.error


def test_a_run_goes_on_inside_an_archive_and_sees_when_it_changed(scanner, tmp_path, files, draw):
    path = write_zip(tmp_path / "all.zip", files)
    with open_to_write(tmp_path / "run.sqlite") as store:
        asked = iter([False, True])
        assert len(list(scan_run(scanner, store, [path], stop=lambda: next(asked)))) == 1
        assert len(list(scan_run(scanner, store, [path]))) == 2
        write_zip(path, [("a.png", picture(draw, "minimal"))])
        assert [result.verdict for result in scan_run(scanner, store, [path])] == ["review"]


def test_members_have_the_date_and_size_that_the_archive_says(tmp_path, files):
    stamp = stamp_of(next(find_images([write_tar(tmp_path / "all.tar", files)])))
    assert (stamp.size, stamp.mtime_ns) == (len(files[0][1]), 1_700_000_000 * 10**9)


# Which files of all that are there


@pytest.fixture
def tree(tmp_path):
    for name in ("a/1.png", "a/2.jpg", "b/thumbs/3.png", "b/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(include=("*.png",)), "134"),
        (Selection(include=("a/*", "4.*")), "124"),
        (Selection(exclude=("thumbs",)), "124"),
        (Selection(exclude=("b/*",)), "12"),
        (Selection(include=("*.png",), exclude=("1*",)), "34"),
        (Selection(max_files=2), "12"),
    ],
)
def test_patterns_and_limits_choose_files(tree, selection, expected):
    assert "".join(sorted(path.stem for path in find_images([tree], selection))) == expected


def test_patterns_look_inside_archives(tmp_path, files):
    path = write_zip(tmp_path / "all.zip", files)
    (member,) = find_images([tmp_path], Selection(include=("all.zip/deep/*",)))
    assert isinstance(member, Member) and member.name == f"{path}/deep/b"


def numbered(folder, count):
    for index in range(count):
        (folder / f"{index:03}.png").touch()
    return folder


def test_a_sample_has_its_size_and_depends_on_names_and_seed_alone(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        numbered(tmp_path / name, 50)
    here, there = ([path.name for path in find_images([tmp_path / name], Selection(sample=10, seed=1))] for name in ("one", "two"))
    assert len(here) == 10 and here == there == sorted(here)
    assert here != [path.name for path in find_images([tmp_path / "one"], Selection(sample=10, seed=2))]
    assert len(list(find_images([tmp_path / "one"], Selection(sample=99)))) == 50


def test_a_sample_is_uniform(tmp_path):
    numbered(tmp_path, 10)
    drawn = Counter(path.name for seed in range(500) for path in find_images([tmp_path], Selection(sample=3, seed=seed)))
    # Each of 10 files is drawn with chance 0.3: 150 of 500 times, and hardly ever farther away than four deviations.
    assert len(drawn) == 10 and all(109 < count < 191 for count in drawn.values())


@pytest.mark.parametrize("selection", [Selection(exclude=("aaa/*",)), Selection(include=("zzz/*",)), Selection(exclude=("aaa",))])
def test_a_link_hides_no_folder_from_patterns(tmp_path, selection):
    (tmp_path / "zzz").mkdir()
    (tmp_path / "zzz" / "a.png").touch()
    (tmp_path / "aaa").symlink_to("zzz")
    assert [*find_images([tmp_path], selection)] == [tmp_path / "zzz" / "a.png"]


def test_a_folder_deeper_than_any_recursion_is_searched(tmp_path, draw):
    folders = [tmp_path]
    for _ in range(1200):
        folders.append(folders[-1] / "d")
        folders[-1].mkdir()
    picture = folders[-1] / "a.png"
    draw("clothed").save(picture)
    assert list(find_images([tmp_path])) == [picture]
    picture.unlink()  # pytest's own clean-up recurses, and would fail
    for folder in reversed(folders):
        folder.rmdir()


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path, files):
    inner = write_zip(tmp_path / "notes.docx", files[2:3]).read_bytes()
    path = write_tar(tmp_path / "all.tar", [*files[:2], ("notes.docx", inner)])
    assert [name_of(item) for item in find_images([path])][:2] == [f"{path}/a.png", f"{path}/deep/b"]


@pytest.mark.parametrize("damage", ["checksum", "cut in a header", "cut before a header", "zeros", "another tar behind it"])
@pytest.mark.parametrize("name", ["all.tar", "all.tar.gz"])
def test_a_tar_that_does_not_end_as_it_should_says_so(tmp_path, draw, name, damage):
    pictures = [(f"{letter}.png", picture(draw)) for letter in "abc"]
    raw = bytearray(write_tar(tmp_path / "whole", pictures).read_bytes())
    second = 512 + -(-len(pictures[0][1]) // 512) * 512
    if damage == "checksum":
        raw[second + 148] ^= 1
    elif damage == "zeros":
        raw[second : second + 512] = bytes(512)
    elif damage == "another tar behind it":
        raw = raw + raw
    else:
        del raw[second + (100 if damage == "cut in a header" else 0) :]
    path = tmp_path / name
    path.write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    found = list(find_images([path]))
    assert name_of(found[0]) == f"{path}/a.png" and name_of(found[-1]) == f"{path}/..."
    with pytest.raises(ImageError, match="breaks off"):
        load(found[-1])


def test_a_date_that_there_is_not_costs_no_picture(tmp_path, files):
    path = write_zip(tmp_path / "all.zip", files)
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02")
    raw[at + 14 : at + 16] = b"\0\0"
    path.write_bytes(raw)
    found = list(find_images([path]))
    assert [item.mtime_ns is None for item in found] == [True, False, False]
    tar = tmp_path / "all.tar"
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("a.png")
        info.pax_headers = {"mtime": "inf"}
        archive.addfile(info)
    assert [item.mtime_ns for item in find_images([tar])] == [None]


def test_an_entry_named_like_a_folder_that_holds_bytes_is_a_file(tmp_path, draw):
    assert len(list(find_images([write_zip(tmp_path / "all.zip", [("a.png/", picture(draw))])]))) == 1


def test_a_member_of_negative_size_ends_a_tar(scanner, tmp_path, draw):
    # tarfile of some versions of Python would find the same header again and again (CVE-2025-8194).
    path = write_tar(tmp_path / "a.tar", [("first.png", picture(draw))])
    header = bytearray(tarfile.TarInfo("again.png").tobuf(tarfile.USTAR_FORMAT))
    header[124:136] = (-512).to_bytes(12, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    held = path.read_bytes().rstrip(b"\0")
    path.write_bytes(held + bytes(-len(held) % 512) + bytes(header) + bytes(1024))
    results = list(scanner.scan(find_images([path])))
    assert [result.verdict for result in results] == ["allow", "undecided"] and "negative" in results[1].error


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.bz2", "a.tar.xz"])
@pytest.mark.parametrize(
    ("kind", "follows", "error"),
    [(tarfile.REGTYPE, 65, "grows"), (tarfile.GNUTYPE_LONGNAME, 1, "too large"), (tarfile.XHDTYPE, 1, "too large")],
)
def test_a_compressed_tar_that_grows_without_end_breaks_off(scanner, tmp_path, draw, name, kind, follows, error):
    whole = write_tar(tmp_path / "whole.tar", [("first.png", picture(draw))]).read_bytes().rstrip(b"\0")
    info = tarfile.TarInfo("notes.txt")
    info.size, info.type = 1 << 40, kind
    blocks = whole + bytes(-len(whole) % 512) + info.tobuf(tarfile.GNU_FORMAT) + bytes(follows << 20)
    compress = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[name.split(".")[-1]]
    (tmp_path / name).write_bytes(compress(blocks))
    results = list(scanner.scan(find_images([tmp_path / name])))
    assert [result.verdict for result in results] == ["allow", "undecided"]
    assert error in results[1].error


def test_a_plain_tar_may_begin_like_a_compressed_one(tmp_path, draw):
    path = write_tar(tmp_path / "a.tar", [("BZh.png", picture(draw))])
    assert [member.name for member in find_images([path])] == [f"{path}/BZh.png"]


def test_two_zips_in_one_file_say_that_one_was_not_seen(scanner, tmp_path, draw):
    first = write_zip(tmp_path / "a.zip", [("minimal.png", picture(draw, "minimal"))])
    second = write_zip(tmp_path / "b.zip", [("clothed.png", picture(draw))])
    for program in (b"", b"#!/bin/sh\n"):  # which a zip may stand behind
        (tmp_path / "both.zip").write_bytes(program + first.read_bytes() + second.read_bytes())
        verdicts = [result.verdict for result in scanner.scan(find_images([tmp_path / "both.zip"]))]
        assert sorted(verdicts) == ["allow", "undecided"]
        (tmp_path / "one.zip").write_bytes(program + second.read_bytes())
        assert [result.verdict for result in scanner.scan(find_images([tmp_path / "one.zip"]))] == ["allow"]


def test_an_archive_in_an_archive_is_known_by_its_first_bytes_too(scanner, tmp_path, files):
    inner = write_zip(tmp_path / "slides.pptx", files).read_bytes()
    outer = write_zip(tmp_path / "a.zip", [("slides.pptx", inner)]), write_tar(tmp_path / "a.tgz", [("slides", inner)], "w:gz")
    for path in outer:
        (result,) = scanner.scan(find_images([path]))
        assert result.verdict == "undecided" and "inside an archive" in result.error


def test_what_cannot_be_looked_into_is_listed_whatever_is_to_be_included(tmp_path):
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "link").symlink_to("b" * 300)
    assert len(list(find_images([tmp_path], Selection(include=("*.jpg",))))) == 2
    (tmp_path / "link").unlink()
    assert not list(find_images([tmp_path], Selection(exclude=("broken.zip",))))


def test_an_archive_that_is_excluded_is_not_opened(tmp_path, files):
    write_zip(tmp_path / "a.zip", files)
    write_zip(tmp_path / "b.pptx", files)
    assert not list(find_images([tmp_path], Selection(exclude=("*.zip", "*.pptx"))))


@pytest.mark.parametrize("name", ["a.7z", "a.rar", "a.tar.zst", "a.TZST", "a.cbr"])
def test_an_archive_of_a_kind_that_is_not_read_is_undecided(scanner, tmp_path, files, name):
    inner = write_zip(tmp_path / "inner.zip", files).read_bytes()
    (tmp_path / "inner.zip").unlink()
    for content in (b"7z\xbc\xaf\x27\x1c and so on", b"", b"Rar!\x1a\x07" + inner):
        (tmp_path / name).write_bytes(content)
        (result,) = scanner.scan(find_images([tmp_path]))
        assert (result.path, result.verdict) == (str(tmp_path / name), "undecided")
        assert "not an archive that can be read" in result.error and "unpack it" in result.error


def test_a_zip_by_another_archive_s_name_is_read(tmp_path, files):
    path = write_zip(tmp_path / "comic.cbr", files)
    assert len(list(find_images([path]))) == 3


def test_an_archive_of_another_kind_inside_an_archive_is_undecided(scanner, tmp_path):
    write_zip(tmp_path / "outer.zip", [("inner.7z", b"7z"), ("one.jpg.gz", b"\x1f\x8b")])
    results = list(scanner.scan(find_images([tmp_path])))
    assert [result.verdict for result in results] == ["undecided"] * 2 and "unpack the outer one" in results[0].error
