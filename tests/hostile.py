"""The hostile corpus: files that attack a decoder, a limit or an assumption, made here and never fetched.

`corpus()` yields `Hostile`s: a name, the bytes, and the verdicts that are acceptable. `python -m tests.hostile MODEL POLICY
TIMEOUT FOLDER` judges the corpus one by one with at most `ADDRESS_SPACE` of memory, writing each file below FOLDER and removing it
again, and prints one JSON line per file: name, verdict, error, seconds, peak memory. A file that kills the process ends the output.
"""

import dataclasses
import io
import itertools
import json
import random
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image, ImageDraw

RED, GREEN, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 0)
ANY = ("allow", "review", "block", "undecided")
UNDECIDED = ("undecided",)
FLAGGED = ("review",)
HARMLESS = ("allow",)
ADDRESS_SPACE = 4 * 1024**3
STILL = "JPEG PNG WEBP GIF BMP TIFF AVIF PPM".split()
ANIMATED = "GIF PNG WEBP AVIF TIFF MPO".split()
FLIPPED = 25  # files with flipped bits, per format


@dataclasses.dataclass(frozen=True)
class Hostile:
    """One file. name: with the ending it pretends to have. verdicts: those that are acceptable."""

    name: str
    data: bytes
    verdicts: tuple[str, ...]


def corpus() -> Iterator[Hostile]:
    """Every hostile file; those of one seed are the same each time."""
    families = (damaged, lying, empty_sides, thin, deep, bombs, work, hidden, profiles, polyglots, refused)
    return itertools.chain.from_iterable(family() for family in families)


# --- what the files are made of ---


def picture(size: tuple[int, int] = (64, 48), colour: tuple[int, ...] = RED, mode: str = "RGB") -> Image.Image:
    """A plain picture; red is what the toy model flags."""
    return Image.new(mode, size, colour)


def drawing() -> Image.Image:
    """Shapes and lines on grey, so that a damaged byte shows."""
    image = picture((96, 64), (128, 128, 128))
    draw = ImageDraw.Draw(image)
    for at in range(0, 96, 8):
        draw.line((at, 0, 95 - at, 63), (2 * at, 255 - 2 * at, at))
    draw.ellipse((20, 10, 70, 60), RED)
    return image


def encoded(image: Image.Image, format_: str, **options: object) -> bytes:
    """The file's bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def animation(format_: str, colours: list[tuple[int, int, int]]) -> bytes:
    """One frame or page per colour."""
    frames = [picture(colour=colour) for colour in colours]
    return encoded(frames[0], format_, save_all=True, append_images=frames[1:])


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """One PNG chunk."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes, colour: int = 2, depth: int = 8, before: bytes = b"") -> bytes:
    """A PNG that says what it is told. before: chunks between header and pixels; pixels: compressed."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + chunk(b"IEND")


def zeros(count: int) -> bytes:
    """So many zero bytes, compressed."""
    packer = zlib.compressobj(9)
    block = bytes(1 << 20)
    parts = [packer.compress(block) for _ in range(count >> 20)]
    return b"".join([*parts, packer.compress(bytes(count & 0xFFFFF)), packer.flush()])


def patched(data: bytes, at: int, value: bytes) -> bytes:
    """The data with some bytes replaced."""
    return data[:at] + value + data[at + len(value) :]


def tiff(entries: dict[int, tuple[int, int, int]], tail: bytes = b"", following: int = 0) -> bytes:
    """A little-endian TIFF with one directory; entries: tag to (type, count, value or offset)."""
    directory = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(entries.items()))
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + struct.pack("<I", following) + tail


def tiff_entries(
    width: int, height: int, strip_bytes: int, offset: int = 134, compression: int = 1
) -> dict[int, tuple[int, int, int]]:
    """The directory of a grey picture in one strip; ten entries end at byte 134."""
    return {
        256: (4, 1, width),
        257: (4, 1, height),
        258: (3, 1, 8),
        259: (3, 1, compression),
        262: (3, 1, 1),
        273: (4, 1, offset),
        277: (3, 1, 1),
        278: (4, 1, height),
        279: (4, 1, strip_bytes),
        284: (3, 1, 1),
    }


def gif(size: tuple[int, int], frames: Iterator[bytes]) -> bytes:
    """A GIF of ready image blocks, with a palette of red and green."""
    return b"GIF89a" + struct.pack("<HHBBB", *size, 0x80, 0, 0) + bytes((*RED, *GREEN)) + b"".join(frames) + b";"


def gif_frame(size: tuple[int, int] = (1, 1), codes: bytes = b"\x02\x4c\x01") -> bytes:
    """One image block; codes: LZW data in sub-blocks, by default one pixel of colour 1."""
    return b"," + struct.pack("<HHHHB", 0, 0, *size, 0) + b"\x02" + codes + b"\0"


# --- the families ---


def damaged() -> Iterator[Hostile]:
    """Cut and bit-flipped files of every format."""
    made = {f"{name.lower()}": encoded(drawing(), name) for name in STILL}
    made["progressive.jpeg"] = encoded(drawing(), "JPEG", progressive=True)
    made["lossless.webp"] = encoded(drawing(), "WEBP", lossless=True)
    made |= {f"{kind}.tiff": encoded(drawing(), "TIFF", compression=kind) for kind in ("tiff_lzw", "tiff_deflate", "jpeg")}
    made |= {f"animated.{name.lower()}": animation(name, [RED, GREEN, BLACK]) for name in ANIMATED}
    for name, data in made.items():
        for percent in (5, 50, 90):
            # An animation may end after its first frames and a raw row more or less; a still picture may not.
            yield Hostile(f"cut-{percent}.{name}", data[: len(data) * percent // 100], ANY if "animated" in name else UNDECIDED)
        chance = random.Random(name)
        for number in range(FLIPPED):
            flipped = bytearray(data)
            for _ in range(chance.choice((1, 2, 8, 64))):
                flipped[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            yield Hostile(f"flipped-{number}.{name}", bytes(flipped), ANY)


def lying() -> Iterator[Hostile]:
    """Headers that promise what does not follow."""
    plain = {name: encoded(picture(), name) for name in STILL}
    # A viewer shows the rows that are there, and so do we: a picture that is cut off may have a verdict.
    yield Hostile("taller-than-data.png", png(64, 4_000, zlib.compress(bytes(64 * 193))), ANY)
    yield Hostile("65535-squared.png", png(65535, 65535, b""), UNDECIDED)
    yield Hostile("two-to-the-31.png", png(2**31 - 1, 2**31 - 1, b""), UNDECIDED)
    yield Hostile("chunk-length-too-long.png", patched(plain["PNG"], 33, b"\x7f\xff\xff\xff"), ANY)
    yield Hostile("screen-65535.gif", patched(plain["GIF"], 6, b"\xff\xff\xff\xff"), UNDECIDED)
    yield Hostile("frame-larger-than-screen.gif", gif((1, 1), iter([gif_frame((65535, 2000))])), UNDECIDED)
    frame = plain["JPEG"].index(b"\xff\xc0")
    yield Hostile("65500-squared.jpg", patched(plain["JPEG"], frame + 5, struct.pack(">HH", 65500, 65500)), UNDECIDED)
    yield Hostile("taller-than-data.jpg", patched(plain["JPEG"], frame + 5, struct.pack(">HH", 4000, 64)), ANY)
    yield Hostile("segment-too-long.jpg", patched(plain["JPEG"], 4, b"\xff\xff"), UNDECIDED)
    yield Hostile("million-wide.bmp", patched(plain["BMP"], 18, struct.pack("<i", 10**6)), UNDECIDED)
    yield Hostile("negative.bmp", patched(plain["BMP"], 18, struct.pack("<ii", -64, -(2**31))), UNDECIDED)
    yield Hostile("2-billion-colours.bmp", patched(plain["BMP"], 46, struct.pack("<I", 2**31 - 1)), ANY)
    yield Hostile("pixels-beyond-the-end.bmp", patched(plain["BMP"], 10, struct.pack("<I", 2**31)), UNDECIDED)
    yield Hostile("huge.tiff", tiff(tiff_entries(2**31 - 1, 2**31 - 1, 100)), UNDECIDED)
    yield Hostile("strip-beyond-the-end.tiff", tiff(tiff_entries(64, 64, 4096, offset=2**31)), UNDECIDED)
    yield Hostile("strip-of-4-gigabytes.tiff", tiff(tiff_entries(64, 64, 2**32 - 1)), UNDECIDED)
    many = tiff_entries(64, 64, 4096) | {273: (4, 2**31 - 1, 134), 279: (4, 2**31 - 1, 134)}
    yield Hostile("2-billion-strips.tiff", tiff(many, bytes(4096)), UNDECIDED)
    yield Hostile("digits.ppm", b"P6\n" + b"9" * 4000 + b" 1\n255\n", UNDECIDED)
    yield Hostile("huge.ppm", b"P6\n999999999 999999999\n255\n", UNDECIDED)
    yield Hostile("taller-than-data.ppm", b"P6\n64 4000\n255\n" + bytes(64 * 3), UNDECIDED)
    still = encoded(picture(), "WEBP", lossless=True)
    yield Hostile("16383-squared.webp", patched(still, 21, struct.pack("<I", 16382 | 16382 << 14)), UNDECIDED)
    yield Hostile("riff-of-4-gigabytes.webp", patched(still, 4, b"\xfe\xff\xff\xff"), ANY)
    size = plain["AVIF"].index(b"ispe") + 8
    yield Hostile("60000-squared.avif", patched(plain["AVIF"], size, struct.pack(">II", 60000, 60000)), UNDECIDED)
    yield Hostile("box-of-4-gigabytes.avif", patched(plain["AVIF"], 0, b"\xff\xff\xff\xff"), UNDECIDED)


def empty_sides() -> Iterator[Hostile]:
    """Pictures without width or height."""
    for width, height in ((0, 0), (0, 9), (9, 0)):
        yield Hostile(f"{width}x{height}.png", png(width, height, zlib.compress(b"")), UNDECIDED)
        yield Hostile(f"{width}x{height}.ppm", f"P6\n{width} {height}\n255\n".encode(), UNDECIDED)
        yield Hostile(f"{width}x{height}.gif", gif((width, height), iter([gif_frame((width, height))])), UNDECIDED)
        bmp = patched(encoded(picture(), "BMP"), 18, struct.pack("<ii", width, height))
        yield Hostile(f"{width}x{height}.bmp", bmp, UNDECIDED)
        yield Hostile(f"{width}x{height}.tiff", tiff(tiff_entries(width, height, 0)), UNDECIDED)
    data = encoded(picture(), "JPEG")
    yield Hostile("64x0.jpg", patched(data, data.index(b"\xff\xc0") + 5, b"\0\0"), UNDECIDED)


def thin() -> Iterator[Hostile]:
    """One pixel wide or high, up to the limit and beyond it."""
    for length in (1, 65_535, 65_536, 70_000_000):
        for size in dict.fromkeys(((length, 1), (1, length))):
            rows = zlib.compress((b"\0" + b"\xff\0\0" * size[0]) * size[1], 1)
            yield Hostile(f"{size[0]}x{size[1]}.png", png(*size, rows), FLAGGED if length < 65_536 else UNDECIDED)
    yield Hostile("1x90000000.png", png(1, 90_000_000, b""), UNDECIDED)
    yield Hostile("65500x1.jpg", encoded(picture((65500, 1)), "JPEG"), FLAGGED)
    yield Hostile("1x16383.webp", encoded(picture((1, 16383)), "WEBP", lossless=True), FLAGGED)


def deep() -> Iterator[Hostile]:
    """More bits per channel than eight."""
    row = b"\0" + b"\xff\xff\0\0\0\0" * 64
    yield Hostile("rgb16.png", png(64, 48, zlib.compress(row * 48), depth=16), FLAGGED)
    row = b"\0" + b"\xff\xff\0\0\0\0\xff\xff" * 64
    yield Hostile("rgba16.png", png(64, 48, zlib.compress(row * 48), colour=6, depth=16), FLAGGED)
    yield Hostile("65535-levels.ppm", b"P6\n64 48\n65535\n" + b"\xff\xff\0\0\0\0" * 64 * 48, FLAGGED)


def bombs() -> Iterator[Hostile]:
    """Small files that become large pictures."""
    yield Hostile("80-megapixels.png", png(8944, 8944, zeros(8944 * 26833)), HARMLESS)
    yield Hostile("80-megapixels-clear.png", png(8944, 8944, zeros(8944 * 35777), colour=6), HARMLESS)
    yield Hostile("81-megapixels.png", png(9000, 9000, zeros(9000 * 27001)), UNDECIDED)
    yield Hostile("2-gigapixels.png", png(50_000, 50_000, zeros(1 << 24), colour=0, depth=1), UNDECIDED)
    large = picture((8900, 8900), RED).quantize(2)
    frames = [large, large.point([1 - min(level, 1) for level in range(256)])] * 4
    yield Hostile("8-frames-of-79-megapixels.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), ANY)
    yield Hostile("80-megapixels.tiff", tiff(tiff_entries(8944, 8944, 100_000, compression=8), zeros(8944 * 8944)), ANY)
    strip = zeros(1 << 28)
    yield Hostile("strip-of-256-megabytes.tiff", tiff(tiff_entries(64, 64, len(strip), compression=8), strip), ANY)
    yield Hostile("16383-squared-real.webp", encoded(picture((16383, 5000)), "WEBP", lossless=True, method=0), UNDECIDED)
    text = chunk(b"zTXt", b"Comment\0\0" + zeros(1 << 28))
    yield Hostile("text-of-256-megabytes.png", png(64, 48, zlib.compress((b"\0" + b"\xff\0\0" * 64) * 48), before=text), ANY)
    texts = chunk(b"zTXt", b"Comment\0\0" + zeros(1_000_000)) * 500
    yield Hostile("500-texts-of-a-megabyte.png", png(64, 48, zlib.compress((b"\0" + b"\xff\0\0" * 64) * 48), before=texts), ANY)
    profile = chunk(b"iCCP", b"icc\0\0" + zeros(1 << 28))
    yield Hostile("profile-of-256-megabytes.png", png(64, 48, zlib.compress((b"\0" + b"\xff\0\0" * 64) * 48), before=profile), ANY)


def work() -> Iterator[Hostile]:
    """Small files that take long."""
    yield Hostile("100000-frames.gif", gif((1, 1), itertools.repeat(gif_frame(), 100_000)), UNDECIDED)
    growing = [gif_frame(), gif_frame((65535, 2700)), gif_frame()]
    yield Hostile("frame-grows.gif", gif((1, 1), iter(growing)), UNDECIDED)
    animated = animation("WEBP", [RED, GREEN])
    at = animated.index(b"ANMF")
    body = animated[12:at] + animated[at:] * 50_000
    yield Hostile("100000-frames.webp", b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body, UNDECIDED)
    yield Hostile("100000-pages.tiff", _chained(100_000), UNDECIDED)
    yield Hostile("page-that-follows-itself.tiff", tiff(tiff_entries(8, 8, 64), bytes(64), following=8), ANY)
    nested = tiff_entries(8, 8, 64, offset=146) | {330: (4, 1, 8)}
    yield Hostile("page-inside-itself.tiff", tiff(nested, bytes(64)), ANY)
    yield Hostile("200000-chunks.png", png(1, 1, zlib.compress(b"\0\xff\0\0"), before=chunk(b"abCd") * 200_000), ANY)
    yield Hostile("100000-scans.jpg", slow_jpeg(), UNDECIDED)


def slow_jpeg(side: int = 8900) -> bytes:
    """A JPEG whose last pass over all of its pixels comes 100,000 times more: hours of work in a few megabytes."""
    progressive = encoded(picture((side, side)).convert("L"), "JPEG", progressive=True)
    scan = progressive.rindex(b"\xff\xda")
    return progressive[:scan] + progressive[scan:-2] * 100_000 + b"\xff\xd9"


def _chained(count: int) -> bytes:
    """A TIFF of one picture and so many empty pages."""
    first = tiff_entries(8, 8, 64)
    start = 134 + 64
    pages = b"".join(struct.pack("<HI", 0, start + 6 * (number + 1)) for number in range(count - 1)) + bytes(6)
    return tiff(first, bytes(64) + pages, following=start)


def hidden() -> Iterator[Hostile]:
    """What only some viewers, or only patient ones, see."""
    for format_ in ANIMATED:
        harmless = [GREEN, BLACK] * (1 if format_ == "MPO" else 6)  # Pillow cannot read back more that it wrote
        yield Hostile(f"last-frame.{format_.lower()}", animation(format_, [*harmless, RED]), FLAGGED)
    # Over black this is dark red, over white it is pink, which the toy model does not mind.
    faint = picture(colour=(*RED, 153), mode="RGBA")
    yield Hostile("only-over-black.png", encoded(faint, "PNG"), FLAGGED)
    yield Hostile("only-over-black.webp", encoded(faint, "WEBP", lossless=True), FLAGGED)


def profiles() -> Iterator[Hostile]:
    """Colour profiles that are none."""
    for name, profile in (("garbage", b"\xff" * 3000), ("short", b"acsp"), ("zeros", bytes(128)), ("megabyte", b"acsp" * 2**18)):
        for format_ in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
            if (name, format_) != ("megabyte", "PNG"):  # Pillow itself refuses to read more than a megabyte of text
                yield Hostile(f"profile-{name}.{format_.lower()}", encoded(picture(), format_, icc_profile=profile), FLAGGED)


def polyglots() -> Iterator[Hostile]:
    """Files that are two things, and files that say they are another."""
    plain = {name: encoded(picture(), name) for name in STILL}
    script = b"\n<html><script>alert(1)</script></html>\n"
    for name, data in plain.items():
        yield Hostile(f"and-a-page.{name.lower()}", data + script, FLAGGED)
    yield Hostile("page-first.html.jpg", script + plain["JPEG"], UNDECIDED)
    yield Hostile("document-first.png", b"%PDF-1.7\n" + plain["PNG"], UNDECIDED)
    comment = b"!\xfe" + bytes([len(script)]) + script + b"\0"
    yield Hostile("page-in-comment.gif", patched(plain["GIF"], len(plain["GIF"]) - 1, comment + b";"), FLAGGED)
    yield Hostile(
        "picture-after-picture.jpg", encoded(picture(colour=RED), "JPEG") + encoded(picture(colour=GREEN), "JPEG"), FLAGGED
    )
    for name, pretended in zip(STILL, STILL[1:] + STILL[:1], strict=True):
        yield Hostile(f"is-a-{name.lower()}.{pretended.lower()}", plain[name], FLAGGED)


def refused() -> Iterator[Hostile]:
    """Formats outside the allow-list."""
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd" width="9" height="9"/></svg>'
    yield Hostile("plain.svg", svg, UNDECIDED)
    yield Hostile("svg-named.png", b'<?xml version="1.0"?>' + svg, UNDECIDED)
    yield Hostile("script.eps.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNDECIDED)
    yield Hostile("empty.png", b"", UNDECIDED)
    for format_ in ("ICO", "TGA", "PCX", "SGI", "JPEG2000", "ICNS"):
        yield Hostile(f"{format_.lower()}-named.png", encoded(picture((64, 64)), format_), UNDECIDED)


# --- judging it within limits ---


def main(model: str, policy: str, timeout: str, folder: str, *names: str) -> None:
    """Judge the corpus, or the files of it that are named, and print a JSON line for each."""
    from imgsafety import Scanner

    scanner = Scanner(model, policy, workers=1, timeout=float(timeout))
    scanner.check(picture())
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    for hostile in corpus():
        if not names or hostile.name in names:
            sys.stdout.write(json.dumps(measured(scanner.check, hostile, Path(folder))) + "\n")
            sys.stdout.flush()


def measured(check: Callable[[Path], object], hostile: Hostile, folder: Path) -> dict[str, object]:
    """One line of the output."""
    path = folder / hostile.name
    path.write_bytes(hostile.data)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before, started = memory("VmRSS"), time.monotonic()
    result = check(path)
    spent = {"seconds": round(time.monotonic() - started, 3), "megabytes": memory("VmHWM") - before}
    path.unlink()
    line = {
        "name": hostile.name,
        "acceptable": hostile.verdicts,
        "bytes": len(hostile.data),
        "verdict": result.verdict,
        "error": result.error,
    }
    return line | spent


def memory(field: str) -> int:
    """A field of this process's status, in megabytes."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index(f"{field}:") + 1]) // 1024


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    main(*sys.argv[1:])
