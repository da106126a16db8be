"""Write the golden pairs: a drawn picture in one file format, and beside it what a viewer would see.

`python -m tests.golden.make` rewrites this folder. `NAME.npy` is `uint8 (views, height, width, 3)`. It is taken from
the drawing, never from `imgsafety.decode`, so the pairs do not agree with it by construction.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

FOLDER = Path(__file__).parent
SIZE = (32, 16)
ORIENTATION = 0x0112
# How the stored picture lies, by EXIF orientation, when the upright one is as drawn.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,  # first row is the right side: a viewer turns it clockwise, so it is stored the other way
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def draw(shift: int = 0) -> Image.Image:
    """Blocks of 8 pixels, different in each corner, so that no turn or mirror image looks the same."""
    image = Image.new("RGB", SIZE, "white")
    pen = ImageDraw.Draw(image)
    for left, top, colour in ((0, 0, "red"), (8, 0, "lime"), (24, 0, "blue"), (0, 8, "yellow"), (16, 8, "black")):
        pen.rectangle(((left + shift) % 32, top, (left + shift) % 32 + 7, top + 7), fill=colour)
    return image


def mask() -> Image.Image:
    """Left half opaque, right half clear, eight columns between them half clear."""
    alpha = np.full(SIZE[::-1], 255, np.uint8)
    alpha[:, 12:20], alpha[:, 20:] = 128, 0
    return Image.fromarray(alpha)


def over(image: Image.Image, alpha: Image.Image, ground: int) -> np.ndarray:
    """Blend by hand: what shows through is the ground."""
    share = np.asarray(alpha, np.float64)[..., None] / 255
    return np.rint(np.asarray(image.convert("RGB")) * share + ground * (1 - share)).astype(np.uint8)


def write(name: str, views: list[np.ndarray], save: Callable[[Path], None]) -> None:
    path = FOLDER / name
    save(path)
    np.save(path.with_suffix(".npy"), np.stack(views))


def main() -> None:
    upright, rgb = draw(), np.asarray(draw())
    for name in ("rgb.png", "rgb_bmp.bmp", "rgb_tiff.tif"):
        write(name, [rgb], upright.save)
    write("rgb_webp.webp", [rgb], lambda path: upright.save(path, lossless=True))
    write("rgb_avif.avif", [rgb], lambda path: upright.save(path, quality=95, subsampling="4:4:4"))
    write("rgb_jpeg.jpg", [rgb], lambda path: upright.save(path, quality=95, subsampling=0))
    write("progressive.jpg", [rgb], lambda path: upright.save(path, quality=95, subsampling=0, progressive=True))
    make_orientations(upright, rgb)
    make_greys(upright)
    make_cmyk(upright, rgb)
    make_palettes(upright, rgb)
    make_transparent(upright)
    make_animations()


def make_orientations(upright: Image.Image, rgb: np.ndarray) -> None:
    for orientation, method in STORED.items():
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        stored = upright.transpose(method)
        quality = {"quality": 95, "subsampling": 0}
        write(f"exif{orientation}.jpg", [rgb], lambda path, s=stored, e=exif, q=quality: s.save(path, exif=e, **q))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = upright.transpose(STORED[6])
    write("exif6_png.png", [rgb], lambda path: stored.save(path, exif=exif))
    write("exif6_webp.webp", [rgb], lambda path: stored.save(path, exif=exif, lossless=True))


def make_greys(upright: Image.Image) -> None:
    grey = np.asarray(upright.convert("L"))
    as_rgb = np.repeat(grey[..., None], 3, axis=2)
    write("grey_jpeg.jpg", [as_rgb], lambda path: Image.fromarray(grey).save(path, quality=95))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    write("grey16.png", [as_rgb], deep.save)
    write("grey16_tiff.tif", [as_rgb], deep.save)
    bits = grey > 127
    write("bits.png", [np.repeat(bits[..., None] * np.uint8(255), 3, axis=2)], Image.fromarray(bits).save)


def make_cmyk(upright: Image.Image, rgb: np.ndarray) -> None:
    inks = Image.fromarray(np.dstack([255 - rgb, np.zeros_like(rgb[..., :1])]), mode="CMYK")
    write("cmyk.jpg", [rgb], lambda path: inks.save(path, quality=95))
    write("cmyk_tiff.tif", [rgb], inks.save)


def make_palettes(upright: Image.Image, rgb: np.ndarray) -> None:
    palette = upright.quantize(8)
    write("palette.png", [rgb], palette.save)
    write("palette_gif.gif", [rgb], palette.save)
    white = palette.getpixel((16, 0))
    clear = Image.fromarray(np.where(np.asarray(palette) == white, 0, 255).astype(np.uint8))
    both = [over(upright, clear, 255), over(upright, clear, 0)]
    write("palette_clear.png", both, lambda path: palette.save(path, transparency=white))
    write("palette_clear_gif.gif", both, lambda path: palette.save(path, transparency=white))


def make_transparent(upright: Image.Image) -> None:
    alpha, full = mask(), Image.new("L", SIZE, 255)
    clear, opaque, grey = upright.copy(), upright.copy(), upright.convert("LA")
    clear.putalpha(alpha)
    opaque.putalpha(full)
    grey.putalpha(alpha)
    both = [over(upright, alpha, 255), over(upright, alpha, 0)]
    write("clear.png", both, clear.save)
    write("clear_webp.webp", both, lambda path: clear.save(path, lossless=True, exact=True))
    write("clear_grey.png", [over(upright.convert("L"), alpha, ground) for ground in (255, 0)], grey.save)
    write("opaque_alpha.png", [np.asarray(upright)], opaque.save)
    keyed = Image.fromarray(np.where(np.all(np.asarray(upright) == 255, axis=2), 0, 255).astype(np.uint8))
    both = [over(upright, keyed, 255), over(upright, keyed, 0)]
    write("clear_key.png", both, lambda path: upright.save(path, transparency=(255, 255, 255)))


def make_animations() -> None:
    frames = [draw(8 * shift) for shift in range(3)]
    rest = {"save_all": True, "append_images": frames[1:], "duration": 40, "loop": 0}
    views = [np.asarray(frame) for frame in frames]
    write("animated.gif", views, lambda path: frames[0].quantize(8).save(path, **rest))
    write("animated_webp.webp", views, lambda path: frames[0].save(path, lossless=True, **rest))
    write("animated_png.png", views, lambda path: frames[0].save(path, **rest))
    write("pages.tif", views, lambda path: frames[0].save(path, save_all=True, append_images=frames[1:]))


if __name__ == "__main__":
    main()
