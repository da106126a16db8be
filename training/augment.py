"""One RGB image to a changed one: what other cameras, generators, editors and web pages do to pictures.

Every function takes and returns an RGB `PIL.Image` and draws from the generator it is given. What a
reader would get wrong: degradations hit every source alike. Catalogue pictures are 60x80 pixels and hold
most of the minimal attire; if only they were soft, softness would be learned instead of attire.
"""

import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from scipy import ndimage

Random = np.random.Generator
GROUND_LEVEL = 242  # a pixel whose darkest channel is above this may be the white ground of a catalogue


def cut_out(image: Image.Image) -> Image.Image | None:
    """Return RGBA with the white ground transparent, or none when the picture has no white ground."""
    values = np.asarray(image)
    light = values.min(axis=2) > GROUND_LEVEL
    edge = np.concatenate([light[0], light[:, 0], light[:, -1]])
    if edge.mean() < 0.6:
        return None
    figure = ndimage.binary_fill_holes(~light)
    if not 0.03 < figure.mean() < 0.9:
        return None
    alpha = Image.fromarray(figure.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(0.6))
    cut = image.copy()
    cut.putalpha(alpha)
    return cut.crop(alpha.point(lambda level: 255 * (level > 127)).getbbox())


def soft_window(image: Image.Image, random: Random) -> Image.Image:
    """Return RGBA: the picture behind a soft ellipse, or whole, so that a pasted face has no fixed frame."""
    cut = image.copy()
    mask = Image.new("L", image.size, 255)
    if random.random() < 0.6:
        mask = Image.new("L", image.size, 0)
        inset = random.uniform(0, 0.08)
        box = [inset * image.width, inset * image.height, (1 - inset) * image.width, (1 - inset) * image.height]
        ImageDraw.Draw(mask).ellipse(box, fill=255)
        mask = mask.filter(ImageFilter.GaussianBlur(image.width * random.uniform(0.01, 0.06)))
    cut.putalpha(mask)
    return cut


def paste(figure: Image.Image, ground: Image.Image, share: float, random: Random) -> Image.Image:
    """Paste RGBA `figure` anywhere into `ground` so that it takes `share` of the ground's height or width."""
    scale = share * min(ground.height / figure.height, ground.width / figure.width)
    size = (max(8, round(figure.width * scale)), max(8, round(figure.height * scale)))
    figure = figure.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        figure = figure.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < 0.3:
        figure = figure.rotate(random.uniform(-20, 20), Image.Resampling.BILINEAR, expand=True)
    left = round(random.uniform(0, max(0, ground.width - figure.width)))
    top = round(random.uniform(0, max(0, ground.height - figure.height)))
    canvas = ground.copy()
    canvas.paste(figure, (left, top), figure)
    return canvas


def plain_ground(random: Random, side: int = 224) -> Image.Image:
    """A ground without content: one colour, a gradient, or coarse noise."""
    grid = int(random.choice([1, 2, 5, 12]))
    colours = random.integers(0, 256, size=(grid, grid, 3)).astype(np.uint8)
    return Image.fromarray(colours).resize((side, side), Image.Resampling.BICUBIC)


def collage(images: list[Image.Image], rows: int, random: Random, side: int = 240) -> Image.Image:
    """Lay `rows * rows` pictures out in a grid, in random order, with or without a gap."""
    cell = side // rows
    gap = int(random.integers(0, 5))
    shade = tuple(int(level) for level in random.integers(0, 256, 3))
    canvas = Image.new("RGB", (cell * rows, cell * rows), shade)
    for place, index in enumerate(random.permutation(len(images))):
        tile = images[index].resize((cell - gap, cell - gap), Image.Resampling.BILINEAR)
        canvas.paste(tile, (place % rows * cell, place // rows * cell))
    return canvas


def crop(image: Image.Image, least: float, random: Random) -> Image.Image:
    """Keep a random window of at least `least` of the area, its sides stretched against each other by up to 1.35."""
    area, stretch = random.uniform(least, 1), math.exp(random.uniform(-0.3, 0.3))
    width = min(1.0, math.sqrt(area) * stretch)
    height = min(1.0, math.sqrt(area) / stretch)
    left, top = random.uniform(0, 1 - width), random.uniform(0, 1 - height)
    box = (left * image.width, top * image.height, (left + width) * image.width, (top + height) * image.height)
    return image.crop(tuple(round(side) for side in box))  # type: ignore[arg-type]  # four sides


def turn(image: Image.Image, random: Random) -> Image.Image:
    """Flip, tilt, and now and then turn by a quarter."""
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < 0.25:
        corner = image.getpixel((0, 0))
        image = image.rotate(random.uniform(-20, 20), Image.Resampling.BILINEAR, fillcolor=corner)
    if random.random() < 0.15:
        image = image.rotate(90 * int(random.integers(1, 4)), expand=True)
    return image


def recolour(image: Image.Image, random: Random) -> Image.Image:
    """Change light, contrast, gamma, colour cast and saturation; sometimes greyscale, sepia, negative or halftone."""
    levels = np.arange(256) / 255
    tables = []
    gamma, contrast, light = math.exp(random.uniform(-0.45, 0.45)), random.uniform(0.65, 1.35), random.uniform(-0.15, 0.15)
    for _ in range(3):
        gain = random.uniform(0.85, 1.15)
        tables.append(np.clip(((levels**gamma - 0.5) * contrast + 0.5 + light) * gain, 0, 1) * 255)
    image = image.point(np.concatenate(tables).astype(int).tolist())
    style = random.random()
    grey = image.convert("L").convert("RGB")
    if style < 0.12:
        return grey
    if style < 0.15:
        return Image.blend(grey, Image.new("RGB", image.size, (160, 110, 60)), random.uniform(0.15, 0.4))
    if style < 0.19:
        return image.point(lambda level: 255 - level)
    if style < 0.22:
        return grey.convert("1").convert("RGB")
    return Image.blend(grey, image, random.uniform(0.5, 1.4)) if style < 0.6 else image


def stylise(image: Image.Image, random: Random) -> Image.Image:
    """Smooth areas and few levels or colours, as drawings, paintings and prints have them."""
    smooth = (ImageFilter.MedianFilter(3), ImageFilter.MedianFilter(5), ImageFilter.ModeFilter(5))
    image = image.filter(smooth[random.integers(len(smooth))])
    if random.random() < 0.5:
        return ImageOps.posterize(image, int(random.integers(2, 5)))
    return image.quantize(int(random.integers(6, 33))).convert("RGB")


def change_lightly(image: Image.Image, random: Random) -> Image.Image:
    """Crop a little, flip, now and then tilt, dim or compress: what keeps fine detail."""
    image = crop(image, 0.75, random)
    if random.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if random.random() < 0.3:
        image = image.rotate(random.uniform(-12, 12), Image.Resampling.BILINEAR)
    if random.random() < 0.5:
        light, contrast = random.uniform(-30, 30), random.uniform(0.8, 1.2)
        image = image.point(lambda level: min(255, max(0, (level - 128) * contrast + 128 + light)))
    if random.random() < 0.15:
        image = image.convert("L").convert("RGB")
    return compress(image, random) if random.random() < 0.2 else image


def cover(image: Image.Image, random: Random) -> Image.Image:
    """Hide small parts behind shapes or text, or set the picture into a border."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    if random.random() < 0.2:
        for _ in range(int(random.integers(1, 4))):
            left, top = random.uniform(0, 0.9) * image.width, random.uniform(0, 0.9) * image.height
            width, height = random.uniform(0.05, 0.3) * image.width, random.uniform(0.05, 0.3) * image.height
            shade = tuple(int(level) for level in random.integers(0, 256, 3))
            shape = draw.ellipse if random.random() < 0.5 else draw.rectangle
            shape((left, top, left + width, top + height), fill=shade)
    if random.random() < 0.1:
        words = "".join(chr(int(letter)) for letter in random.integers(33, 122, int(random.integers(4, 16))))
        shade = tuple(int(level) for level in random.integers(0, 256, 3))
        at = (random.uniform(0, 0.6) * image.width, random.uniform(0, 0.9) * image.height)
        draw.text(at, words, fill=shade, font_size=random.uniform(0.06, 0.25) * image.height)
    if random.random() < 0.15:
        wide, high = (1 + random.uniform(0, 0.7) * (random.random() < 0.6) for _ in range(2))
        shade = tuple(int(level) for level in random.choice([0, 255, 128], 1).repeat(3))
        frame = Image.new("RGB", (round(image.width * wide), round(image.height * high)), shade)
        frame.paste(image, ((frame.width - image.width) // 2, (frame.height - image.height) // 2))
        image = frame
    return image


def degrade(image: Image.Image, least_side: float, random: Random) -> Image.Image:
    """Lose resolution (not below `least_side`), blur, add noise, compress: the same odds for every source."""
    if random.random() < 0.4:
        side = math.exp(random.uniform(math.log(least_side), math.log(max(least_side, 180))))
        scale = side / max(image.size)
        if scale < 1:
            small = (max(4, round(image.width * scale)), max(4, round(image.height * scale)))
            image = image.resize(small, Image.Resampling.BILINEAR)
            if random.random() < 0.5:
                image = compress(image, random)
    if random.random() < 0.12:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.5, 2.0)))
    if random.random() < 0.2:
        image = add_noise(image, random)
    return compress(image, random) if random.random() < 0.35 else image


def compress(image: Image.Image, random: Random) -> Image.Image:
    """Save as JPEG and read back."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(random.integers(15, 90)))
    return Image.open(buffer).convert("RGB")


def add_noise(image: Image.Image, random: Random) -> Image.Image:
    """Add grain of up to 20 of 255 levels, the same in all channels or not."""
    values: npt.NDArray[np.float32] = np.asarray(image, dtype=np.float32)
    shape = values.shape if random.random() < 0.5 else (*values.shape[:2], 1)
    noise = random.standard_normal(shape, dtype=np.float32) * random.uniform(3, 20)
    return Image.fromarray(np.clip(values + noise, 0, 255).astype(np.uint8))
