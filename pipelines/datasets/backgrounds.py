"""Backgrounds with a name: plain colours, gradients, textures and photographs, each a pure function of a Draw."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imprint.config.jobs.prepare import BackgroundMix
from imprint.errors import DataError
from imprint.pipelines.datasets.draw import Draw

# Far enough apart to be told from one another at 64 px, and with names that a caption can use.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (217, 54, 54),
    "orange": (242, 140, 40),
    "yellow": (245, 211, 59),
    "green": (61, 163, 77),
    "blue": (47, 111, 222),
    "purple": (132, 68, 184),
    "pink": (245, 145, 184),
    "white": (255, 255, 255),
    "gray": (140, 140, 140),
    "black": (26, 26, 26),
    "brown": (122, 74, 42),
}

# Photographs inside scikit-image's own package (where they are from: NOTICE), and what they show.
PHOTOS: dict[str, str] = {
    "brick.png": "a brick wall",
    "chelsea.png": "a cat",
    "coffee.png": "a cup of coffee",
    "coins.png": "coins",
    "grass.png": "grass",
    "gravel.png": "gravel",
    "hubble_deep_field.jpg": "stars",
    "moon.png": "the moon",
    "motorcycle_left.png": "a motorcycle",
    "rocket.jpg": "a rocket",
}

TEXTURES = ("stripes", "dots", "checks")


class Background(NamedTuple):
    """A drawn background. `words` names it in the attributes, `phrase` in a caption."""

    pixels: NDArray[np.uint8]  # [size, size, 3]
    kind: str  # plain | gradient | texture | photo
    words: str
    phrase: str


def draw_background(draw: Draw, size: int, mix: BackgroundMix) -> Background:
    """A background of `size` px square, of a kind drawn from `mix`.

    Raises:
        DataError: scikit-image, or one of its photographs, is not installed.
    """
    kind = draw.weighted(mix.model_dump())
    if kind == "plain":
        name = draw.choice(tuple(COLORS))
        pixels = np.broadcast_to(_shade(draw, name), (size, size, 3))
        return Background(_to_uint8(pixels), kind, name, f"on {_article(name)} {name} background")
    if kind == "gradient":
        first, second = draw.pair(tuple(COLORS))
        pixels = _gradient(draw, _shade(draw, first), _shade(draw, second), size)
        words = f"{first} to {second} gradient"
        return Background(_to_uint8(pixels), kind, words, f"on a background fading from {first} to {second}")
    if kind == "texture":
        texture = draw.choice(TEXTURES)
        first, second = draw.pair(tuple(COLORS))
        pixels = _texture(draw, texture, _shade(draw, first), _shade(draw, second), size)
        words = f"{first} and {second} {texture}"
        return Background(_to_uint8(pixels), kind, words, f"on a background of {words}")
    file = draw.choice(tuple(PHOTOS))
    words = f"photo of {PHOTOS[file]}"
    return Background(_photo(draw, file, size), kind, words, f"in front of a {words}")


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _to_uint8(pixels: NDArray[np.floating]) -> NDArray[np.uint8]:
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def _shade(draw: Draw, name: str) -> NDArray[np.float64]:
    """The named colour, a little lighter or darker, so that a name is a neighbourhood and not one value."""
    return np.clip(np.asarray(COLORS[name], dtype=np.float64) + draw.between(-10, 10), 0, 255)


def _grid(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """x and y of the pixel centres, in 0..1, each [size, size]."""
    ticks = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(ticks, ticks)
    return x, y


def _gradient(draw: Draw, first: NDArray[np.float64], second: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    x, y = _grid(size)
    along = {"down": y, "across": x, "diagonal": (x + y) / 2}[draw.choice(("down", "across", "diagonal"))]
    return first + (second - first) * along[..., None]


def _texture(
    draw: Draw, texture: str, first: NDArray[np.float64], second: NDArray[np.float64], size: int
) -> NDArray[np.float64]:
    x, y = _grid(size)
    repeats = draw.integer(4, 7)
    if texture == "stripes":
        along = draw.choice((x, y, (x + y) / 2**0.5))
        inside = (along * repeats) % 1.0 < 0.5
    elif texture == "checks":
        inside = (np.floor(x * repeats) + np.floor(y * repeats)) % 2 == 0
    else:
        inside = (((x * repeats) % 1.0 - 0.5) ** 2 + ((y * repeats) % 1.0 - 0.5) ** 2) >= 0.32**2
    return np.where(inside[..., None], first, second)


def _photo(draw: Draw, file: str, size: int) -> NDArray[np.uint8]:
    """A random square crop, at least 60 % of the short side, so that what it shows can still be seen."""
    photo = _open_photo(file)
    short = min(photo.size)
    side = draw.between(0.6, 1.0) * short
    left, top = draw.between(0, photo.width - side), draw.between(0, photo.height - side)
    box = (left, top, left + side, top + side)
    return np.asarray(photo.resize((size, size), Image.Resampling.LANCZOS, box=box))


@functools.cache
def _open_photo(file: str) -> Image.Image:
    # The path is found without importing scikit-image: its loaders would download what is not in the package.
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise DataError(
            "reading background photographs: scikit-image is not installed; run `pip install scikit-image` or "
            "set backgrounds.photo to 0"
        )
    path = Path(package.origin).parent / "data" / file
    try:
        with Image.open(path) as photo:
            return photo.convert("RGB")
    except OSError as error:
        raise DataError(
            f"reading a background photograph of scikit-image: {error}; reinstall scikit-image, or set "
            "backgrounds.photo to 0",
            photo=file,
        ) from error
