"""Finding pictures, and reading one item of any kind."""

import hashlib
import io
import os

import numpy as np
import pytest
from PIL import Image

from imgsafety import ImageError, find_images, source
from imgsafety.source import load, name_of


def names(paths):
    return [path.name for path in paths]


def test_folders_are_searched_to_the_bottom_in_order(folder):
    assert names(find_images([folder])) == ["a.png", "b.jpg", "c.webp"]


def test_named_files_are_kept_whatever_they_are(folder):
    assert names(find_images([folder / "notes.txt", folder / "missing.png"])) == ["notes.txt", "missing.png"]


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF"])
def test_a_renamed_picture_is_found_by_its_first_bytes(tmp_path, draw, format_):
    draw("clothed").save(tmp_path / "report.pdf", format_)
    assert names(find_images([tmp_path])) == ["report.pdf"]


def test_endings_count_in_any_case(tmp_path):
    (tmp_path / "EMPTY.JPG").touch()
    assert names(find_images([tmp_path])) == ["EMPTY.JPG"]


def test_a_link_that_runs_in_a_circle_ends(folder):
    (folder / "deep" / "again").symlink_to(folder, target_is_directory=True)
    assert sorted(names(find_images([folder]))) == ["a.png", "b.jpg", "c.webp"]


def test_a_folder_named_twice_is_searched_once(folder):
    assert len(list(find_images([folder, folder]))) == 3


def test_listing_is_lazy(folder):
    found = find_images([folder, folder / "nowhere"])
    assert next(found).name == "a.png"
    (folder / "deep" / "er" / "d.png").touch()
    assert "d.png" in names(found)


def test_a_folder_that_cannot_be_listed_is_reported(folder, forbid):
    forbid(folder / "deep")
    assert names(find_images([folder])) == ["a.png", "deep"]


def test_a_folder_as_an_item_is_an_error(tmp_path):
    with pytest.raises(ImageError, match="folder that cannot be listed"):
        load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.png")
    assert names(find_images([tmp_path])) == ["pipe.png"]
    with pytest.raises(ImageError, match="not a regular file"):
        load(tmp_path / "pipe.png")


@pytest.mark.parametrize("path", ["nowhere.png", "", "nul\0byte.png", "a" * 5000])
def test_a_path_that_cannot_be_read_is_an_image_error(path):
    with pytest.raises(ImageError, match="cannot be read"):
        load(path)


def test_a_file_without_permission_is_an_image_error(folder, forbid):
    forbid(folder / "a.png")
    with pytest.raises(ImageError, match="cannot be read: Permission denied"):
        load(folder / "a.png")


def test_a_dangling_link_is_found_and_reported(tmp_path):
    (tmp_path / "gone.png").symlink_to(tmp_path / "nothing")
    (path,) = find_images([tmp_path])
    with pytest.raises(ImageError, match="No such file"):
        load(path)


def test_paths_bytes_and_files_load_the_same_bytes(folder):
    data = (folder / "a.png").read_bytes()
    with (folder / "a.png").open("rb") as file:
        loaded = [load(folder / "a.png"), load(str(folder / "a.png")), load(data), load(bytearray(data)), load(file)]
    assert {one.content for one in loaded} == {data}
    assert {one.sha256 for one in loaded} == {hashlib.sha256(data).hexdigest()}


def test_items_keep_the_names_they_have(folder):
    with (folder / "a.png").open("rb") as file, Image.open(folder / "a.png") as image:
        assert {name_of(file), name_of(image), name_of(folder / "a.png")} == {str(folder / "a.png")}
    assert [name_of(item) for item in (b"", io.BytesIO(), np.zeros((2, 2)), Image.new("L", (2, 2)))] == [None] * 4


def test_pictures_and_arrays_are_passed_on_unchanged(draw):
    image, array = draw("clothed"), np.zeros((4, 4, 3), np.uint8)
    assert load(image).content is image and load(array).content is array and load(array).sha256 is None


def test_a_file_over_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(source, "MAX_BYTES", 10)
    assert load(bytes(10)).content == bytes(10)
    with pytest.raises(ImageError, match="over the limit of 10 bytes"):
        load(io.BytesIO(bytes(11)))


def test_a_file_in_text_mode_says_what_to_do(folder):
    with (folder / "notes.txt").open() as file, pytest.raises(ImageError, match="open it with 'rb'"):
        load(file)


class Hostile:
    """Whatever is asked of it raises."""

    def __getattr__(self, name):
        raise RuntimeError(f"no {name} today")

    def __fspath__(self):
        raise RuntimeError("no path today")


@pytest.mark.parametrize("item", [None, 3, ["a.png"], {"a": 1}, np.array([object()]), Hostile()], ids=lambda item: str(type(item)))
def test_items_of_other_kinds_are_image_errors(item):
    assert name_of(item) is None
    with pytest.raises(ImageError):
        load(item)


def test_a_file_object_that_fails_is_an_image_error():
    class Failing:
        def read(self, _size):
            raise ConnectionError("lost")

    with pytest.raises(ImageError, match="lost"):
        load(Failing())


def test_tensors_become_arrays_with_channels_last():
    torch = pytest.importorskip("torch", reason="tensors need torch")
    planes = torch.rand(3, 4, 5, requires_grad=True)
    assert np.array_equal(load(planes).content, planes.detach().permute(1, 2, 0).numpy())
    assert load(torch.rand(2, 3, 4, 5)).content.shape == (2, 4, 5, 3)
    assert load(torch.rand(3, 4, 5).bfloat16()).content.dtype == np.float32


def test_tensors_that_cannot_be_read_are_image_errors():
    torch = pytest.importorskip("torch", reason="tensors need torch")
    for tensor in (torch.rand(4, 5), torch.zeros(3, 4, 5, device="meta"), torch.zeros(3, 4, 5).to_sparse()):
        with pytest.raises(ImageError):
            load(tensor)


NOT_DECODED = "heic svg jxl ico psd pcx tga qoi icns j2k j2c exr dng cr2 nef arw jpg.gz png.bz2 webp.xz gif.zst"


@pytest.mark.parametrize("name", [f"a.{ending}" for ending in NOT_DECODED.split()])
def test_pictures_that_are_not_decoded_are_listed_all_the_same(scanner, tmp_path, name):
    (tmp_path / name).write_bytes(b"not decoded")
    assert list(find_images([tmp_path])) == [tmp_path / name]
    result = scanner.check(tmp_path / name)
    assert result.verdict == "undecided" and "not an image of a kind we read" in result.error


def test_what_is_compressed_and_no_picture_is_left_out(tmp_path):
    for name in ("log.gz", "gz", "notes.txt.xz"):
        (tmp_path / name).write_bytes(b"not a picture")
    assert list(find_images([tmp_path])) == []


@pytest.mark.parametrize("head", [b"P6 1 1 255\n", b"II\0*\0\0\0\x08", b"MM*\0\0\0\0\x08"])
def test_what_the_decoder_takes_is_found_under_any_name(tmp_path, head):
    (tmp_path / "x.dat").write_bytes(head + bytes(16))
    assert list(find_images([tmp_path])) == [tmp_path / "x.dat"]


def test_a_file_that_gives_a_little_at_a_time_is_read_to_its_end():
    class Slow(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 7))

    assert load(Slow(b"picture" * 9)).content == b"picture" * 9


def test_a_name_that_the_system_refuses_is_found_and_ends_nothing(scanner, tmp_path, draw):
    draw("clothed").save(tmp_path / "good.png")
    (tmp_path / "link").symlink_to("b" * 300)
    assert {result.path: result.verdict for result in scanner.scan(find_images([tmp_path]))} == {
        str(tmp_path / "good.png"): "allow",
        str(tmp_path / "link"): "undecided",
    }
    assert [result.verdict for result in scanner.scan(find_images(["a" * 5000]))] == ["undecided"]


class Pieces:
    """A file object of a caller's own class that gives a few bytes at a time."""

    def __init__(self, *pieces):
        self.pieces = [*pieces, b""]

    def read(self, _size):
        """Give the next piece."""
        return self.pieces.pop(0)


def test_an_object_that_gives_a_little_at_a_time_is_read_to_its_end():
    assert load(Pieces(b"pic", b"ture")).content == b"picture"


@pytest.mark.parametrize("pieces", [[None], [b"pic", None, b"ture"]])
def test_an_object_that_has_no_more_bytes_yet_is_an_image_error(pieces):
    with pytest.raises(ImageError, match="no more bytes yet"):
        load(Pieces(*pieces))


def test_a_pipe_that_nobody_has_filled_is_not_judged_by_its_first_bytes(scanner, draw):
    file = io.BytesIO()
    draw("clothed").save(file, "BMP")
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with open(reading, "rb", buffering=0) as pipe, open(writing, "wb", buffering=0) as end:
        end.write(file.getvalue())
        result = scanner.check(pipe)
    assert result.verdict == "undecided" and "no more bytes yet" in result.error
