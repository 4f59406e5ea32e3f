"""Crops at 224x224 of the real photographs that scikit-image and scikit-learn ship, as JPEG; no labels."""

import io
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from airserve.learn.tasks import TaskError
from airserve.model import decode_jpeg
from airserve.samples import Samples

SIDE = 224
CALIBRATION, HELD = 40, 80
QUALITY = 90
PICTURES = {
    "skimage": [
        f"data/{name}" for name in ["astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg"]
    ],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
}


def samples(seed: int = 0) -> Samples:
    """40 crops to calibrate on and 80 held ones: `inputs` uint8 (120, 224, 224, 3), `encoded` as a camera sends them.

    Every picture gives equally many, mirrored at times, each a square of a random place and of a third of the shorter
    side to all of it. Raises `TaskError` when a package is absent.
    """
    rng = np.random.default_rng(seed)
    pictures = [Image.open(path).convert("RGB") for path in paths()]
    encoded = [jpeg(crop(pictures[k % len(pictures)], rng)) for k in range(CALIBRATION + HELD)]
    rng.shuffle(encoded)
    pixels = decode_jpeg([np.array(encoded, dtype=object)])[0]
    return Samples(pixels, None, CALIBRATION, tuple(encoded), "image/jpeg")


def paths() -> list[Path]:
    """The files of the pictures; the packages themselves are not imported."""
    found = []
    for package, files in PICTURES.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise TaskError("the photographs come with two packages: `pip install scikit-image scikit-learn`.")
        found += [Path(spec.origin).parent / file for file in files]
    for path in found:
        if not path.is_file():
            raise TaskError(f"{path} is missing: install its package again, `pip install --force-reinstall`.")
    return found


def crop(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A square of the picture, 224x224."""
    side = int(rng.uniform(1 / 3, 1) * min(picture.size))
    left, top = (int(rng.integers(0, axis - side + 1)) for axis in picture.size)
    square = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else square


def jpeg(picture: Image.Image) -> bytes:
    """The picture as JPEG of quality 90."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
