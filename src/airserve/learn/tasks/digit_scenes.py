"""Find written digits on photographs. COMPOSED: scikit-learn's digits, enlarged, laid over scikit-image's photographs;
both are real, the scenes are not. No digit and no photograph is in two splits."""

from collections.abc import Mapping
from functools import cache

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from airserve.learn.boxes import Found, Wanted, mean_average_precision, overlap
from airserve.learn.detecting import found
from airserve.learn.metrics import Metric
from airserve.learn.tasks import Baseline, Data, Split
from airserve.learn.tasks.photos import paths
from airserve.model import Array, Engine
from airserve.registry import Registry

SIDE = 64  # pixels
MOST = 4  # digits on a scene, at least one
SIZES = (12, 29)  # pixels of a digit's picture, from and below
APART = 0.1  # largest overlap of two digits
SCENES = {"train": 4_000, "validation": 300, "test": 600}
DIGITS = {"validation": 300, "test": 500}  # the other 997 are those of the train split
PHOTOGRAPHS = {"train": (0, 1, 2, 3, 4), "validation": (5,), "test": (6,)}
BRIGHT = 140  # of 255: where the baseline sees a digit


@cache
def load() -> Data:
    """Scenes uint8 (n, 64, 64), labels float32 (n, 4, 5): class, -1 for none, top, left, bottom, right in pixels.

    4,000 to train on, 300 to validate, 600 to test. Raises `TaskError` when a package is absent.
    """
    rng = np.random.default_rng(0)
    pictures, classes = load_digits(return_X_y=True)
    pictures = np.rint(pictures.reshape(-1, 8, 8) * 255 / 16).astype(np.uint8)
    drawn = np.split(rng.permutation(len(classes)), np.cumsum(list(DIGITS.values())))
    rows = dict(zip((*DIGITS, "train"), drawn, strict=True))
    photographs = [np.asarray(Image.open(path).convert("L").reduce(2)) for path in paths()]
    splits = {}
    for name, many in SCENES.items():
        grounds = [photographs[k] for k in PHOTOGRAPHS[name]]
        scenes = [scene(pictures[rows[name]], classes[rows[name]], grounds, rng) for _ in range(many)]
        splits[name] = Split(*(np.stack(part) for part in zip(*scenes, strict=True)))
    return Data(
        "scenes",
        (),
        splits["train"],
        splits["validation"],
        splits["test"],
        metric=Metric("map50"),
        answer="boxes",
        symbols=10,
    )


def baseline(data: Data) -> Baseline:
    """Bright regions as boxes, each of the class whose mean digit is nearest."""
    from scipy.ndimage import find_objects, label

    sums, counts = np.zeros((10, 64)), np.zeros(10)
    for picture, wanted in zip(data.train.inputs, truths(data.train), strict=True):
        for box, k in zip(*wanted, strict=True):
            sums[k] += patch(picture, box)
            counts[k] += 1
    means = sums / counts[:, None]
    answers: list[Found] = []
    for picture in data.test.inputs:
        regions = find_objects(label(picture >= BRIGHT, np.ones((3, 3)))[0])
        boxes = np.array([(y.start, x.start, y.stop, x.stop) for y, x in regions], np.float64).reshape(-1, 4)
        boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).max(1) >= SIZES[0] // 2]
        far = np.array([((patch(picture, box) - means) ** 2).sum(1) for box in boxes]).reshape(-1, 10)
        answers.append((boxes, far.argmin(1), -far.min(1, initial=np.inf)))
    score = mean_average_precision(answers, truths(data.test), 10)
    return Baseline("bright regions, nearest mean digit", score)


def assess(parts: Mapping[str, Engine], data: Data, registry: Registry) -> dict[str, float]:
    """mAP at an overlap of 0.5, and at 0.75, of the exported graph on the test split."""
    answers = found(parts[""], data.test.inputs)
    wanted = truths(data.test)
    return {
        "map50": mean_average_precision(answers, wanted, 10),
        "map75": mean_average_precision(answers, wanted, 10, 0.75),
    }


def truths(split: Split) -> list[Wanted]:
    """Boxes and classes of each scene."""
    kept = [labels[labels[:, 0] >= 0] for labels in split.labels]
    return [(each[:, 1:], each[:, 0].astype(np.int64)) for each in kept]


def patch(picture: Array, box: Array) -> Array:
    """What is in a box, as 8x8 numbers in 0 to 1, shape (64,)."""
    top, left, bottom, right = (round(float(edge)) for edge in box)
    cut = Image.fromarray(picture[top : max(bottom, top + 1), left : max(right, left + 1)])
    return np.asarray(cut.resize((8, 8), Image.Resampling.BILINEAR), np.float64).ravel() / 255


def scene(digits: Array, classes: Array, grounds: list[Array], rng: np.random.Generator) -> tuple[Array, Array]:
    """A picture (64, 64) and its labels (4, 5): one to four digits, bright, on a piece of a photograph, dimmed."""
    ground = grounds[rng.integers(len(grounds))]
    top, left = (int(rng.integers(0, side - SIDE + 1)) for side in ground.shape)
    canvas = ground[top : top + SIDE, left : left + SIDE] * float(rng.uniform(0.2, 0.6))
    labels = np.full((MOST, 5), -1, np.float32)
    labels[:, 1:] = 0
    for k in range(int(rng.integers(1, MOST + 1))):
        which, size = int(rng.integers(len(digits))), int(rng.integers(*SIZES))
        digit = np.asarray(Image.fromarray(digits[which]).resize((size, size), Image.Resampling.BICUBIC)) / 255.0
        top, left = (int(rng.integers(0, SIDE - size + 1)) for _ in range(2))
        rows, columns = (np.flatnonzero((digit > 0.25).any(axis)) for axis in (1, 0))
        box = np.array([top + rows[0], left + columns[0], top + rows[-1] + 1, left + columns[-1] + 1], np.float32)
        if k and overlap(box[None], labels[:k, 1:]).max() > APART:
            break  # no room: fewer digits
        place = np.s_[top : top + size, left : left + size]
        bright = float(rng.uniform(180, 255))
        canvas[place] = canvas[place] * (1 - digit) + bright * digit
        labels[k] = (classes[which], *box)
    return np.rint(canvas.clip(0, 255)).astype(np.uint8), labels
