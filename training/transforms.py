"""What people do to a picture, by accident or to get around a check, as named functions of an RGB image.

`ROBUSTNESS` keeps the picture and changes its looks; `smaller` and `collage_of` need other pictures around it.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

Change = Callable[[Image.Image], Image.Image]
PASTED_SIDE = 320  # pixels of a picture that others are pasted into
BORDER = 0.25  # of the picture's side, on each of its sides


def jpeg(quality: int) -> Change:
    """Save as JPEG of this quality and read back."""

    def change(image: Image.Image) -> Image.Image:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        return Image.open(buffer).convert("RGB")

    return change


def quarter(image: Image.Image) -> Image.Image:
    """Shrink to a quarter of each side and enlarge again."""
    small = image.resize((max(1, image.width // 4), max(1, image.height // 4)), Image.Resampling.BILINEAR)
    return small.resize(image.size, Image.Resampling.BICUBIC)


def border(image: Image.Image) -> Image.Image:
    """Put a white border around the picture."""
    return ImageOps.expand(image, round(BORDER * max(image.size)), "white")


def letterbox(image: Image.Image) -> Image.Image:
    """Set the picture into a black 16:9 frame."""
    width = max(image.width, round(image.height * 16 / 9))
    return ImageOps.pad(image, (width, max(image.height, round(width * 9 / 16))), color="black")


def overlay(image: Image.Image) -> Image.Image:
    """Write text over the picture and put a round sticker into it."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    draw.text((image.width * 0.1, image.height * 0.4), "SAMPLE TEXT", fill="white", font_size=image.width / 8)
    left, top, side = image.width * 0.35, image.height * 0.1, min(image.size) * 0.25
    draw.ellipse((left, top, left + side, top + side), fill="gold", outline="black")
    return image


def noise(image: Image.Image) -> Image.Image:
    """Add Gaussian noise of 8 of 255 levels, the same each time."""
    values = np.asarray(image, dtype=np.float64)
    values = values + np.random.default_rng(0).normal(0, 8, values.shape)
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def halftone(image: Image.Image) -> Image.Image:
    """Reduce to black and white dots."""
    return image.convert("L").convert("1").convert("RGB")


ROBUSTNESS: dict[str, Change] = {
    "as it is": lambda image: image,
    "horizontal flip": ImageOps.mirror,
    "rotated by 90°": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    "rotated by 180°": lambda image: image.transpose(Image.Transpose.ROTATE_180),
    "rotated by 270°": lambda image: image.transpose(Image.Transpose.ROTATE_270),
    "JPEG quality 20": jpeg(20),
    "a quarter of the size and back": quarter,
    "blur, radius 2": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "greyscale": lambda image: image.convert("L").convert("RGB"),
    "40 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.4),
    "40 % darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "white border": border,
    "black letterbox": letterbox,
    "text and sticker": overlay,
    "noise": noise,
    "inverted colours": ImageOps.invert,
    "halftone": halftone,
}


def recoloured(image: Image.Image) -> Image.Image:
    """Warmer and more saturated."""
    red, green, blue = ImageEnhance.Color(image).enhance(1.5).split()
    return Image.merge("RGB", (red.point(lambda level: min(255, level * 1.12)), green, blue.point(lambda level: level * 0.88)))


def restyled(image: Image.Image) -> Image.Image:
    """Flat colours and smooth areas, like a drawing."""
    return ImageOps.posterize(image.filter(ImageFilter.MedianFilter(5)), 3)


def recropped(image: Image.Image) -> Image.Image:
    """Nine tenths of each side, from the middle."""
    return ImageOps.crop(image, round(0.05 * min(image.size)))


EDITS: dict[str, Change] = {"re-encoded": jpeg(40), "recoloured": recoloured, "restyled": restyled, "re-cropped": recropped}


def smaller(share: float, ground: Image.Image, place: float) -> Change:
    """Paste at `share` of the frame's side into another picture; place: 0 to 1, along the diagonal."""

    def change(image: Image.Image) -> Image.Image:
        canvas, cell = _canvas(ground), _cell(image, share)
        left, top = round(place * (PASTED_SIDE - cell.width)), round((1 - place) * (PASTED_SIDE - cell.height))
        canvas.paste(cell, (left, top))
        return canvas

    return change


def beside(share: float, other: Image.Image, ground: Image.Image) -> Change:
    """Paste at `share` of the frame's side into another picture, to the left of somebody else of that size."""

    def change(image: Image.Image) -> Image.Image:
        canvas = _canvas(ground)
        for place, one in ((0.05, image), (0.95, other)):
            cell = _cell(one, share)
            canvas.paste(cell, (round(place * (PASTED_SIDE - cell.width)), (PASTED_SIDE - cell.height) // 2))
        return canvas

    return change


def _canvas(ground: Image.Image) -> Image.Image:
    return ground.resize((PASTED_SIDE, PASTED_SIDE), Image.Resampling.BILINEAR)


def _cell(image: Image.Image, share: float) -> Image.Image:
    return ImageOps.contain(image, (round(PASTED_SIDE * share), round(PASTED_SIDE * share)))


def collage_of(others: list[Image.Image], rows: int, place: int) -> Change:
    """One cell of a grid of `rows * rows`, the other cells filled with other pictures."""

    def change(image: Image.Image) -> Image.Image:
        side = 480 // rows
        canvas = Image.new("RGB", (side * rows, side * rows), "white")
        fillers = iter(others)
        for cell in range(rows * rows):
            tile = image if cell == place else next(fillers)
            canvas.paste(ImageOps.fit(tile, (side, side)), (cell % rows * side, cell // rows * side))
        return canvas

    return change
