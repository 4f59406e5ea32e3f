"""Generation: what is said of pictures that a net makes, by a classifier that has seen real ones only."""

import io
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from airserve.learn.metrics import Metric
from airserve.learn.tasks import Baseline, Data
from airserve.model import Array, Engine
from airserve.registry import Registry

MADE = 2_000  # pictures that are judged
SEEN, SURE = 0.02, 0.6  # a class is seen when this share of them is taken for it, with this mean probability
DISTANCE = Metric("frechet_distance", less_is_better=True)
GENERATORS = ("generator", "decoder")  # the part of a net that makes pictures of a latent
ROWS, COLUMNS = 8, 16  # of a sheet


def pictures(data: Data) -> Data:
    """A task of classes as one of making pictures like its own: pixels in 0 to 1, labels for no one."""
    return replace(data, metric=DISTANCE, answer="picture", scale=(0.0, white(data)))


def classifier(net: str, task: str, registry: Registry) -> Engine:
    """The Model that judges pictures, trained now if it was not before."""
    from airserve.learn.training import train

    return Engine(train(net, task, registry=registry, progress=False).path)


def white(data: Data) -> float:
    """The largest pixel of the train split, 1 for a net."""
    return float(data.train.inputs.max())


def baseline(data: Data, classifier: Engine) -> Baseline:
    """Pictures drawn from the normal distribution that has the train split's mean and covariance."""
    rows = data.train.inputs.reshape(len(data.train), -1)[:20_000].astype(np.float64)
    mean, covariance = rows.mean(axis=0), np.cov(rows.T)
    size, ways = np.linalg.eigh(covariance)
    draws = np.random.default_rng(0).normal(size=(MADE, len(size)))
    made = mean + draws * np.sqrt(size.clip(min=0)) @ ways.T
    shaped = made.clip(0, white(data)).round().astype(np.uint8).reshape(MADE, *data.train.inputs.shape[1:])
    return Baseline("normal distribution of pixels", judge(shaped, data, classifier)[DISTANCE.name])


def assess(parts: Mapping[str, Engine], data: Data, classifier: Engine) -> dict[str, float]:
    """What the classifier says of pictures made by the exported graphs, and nats where there is an encoder."""
    scores = judge(make(parts, white(data)), data, classifier)
    if "encoder" in parts:
        scores["nats"] = nats(parts["encoder"], parts["decoder"], data)
        scores["nats_of_independent_pixels"] = independent(data)
    return scores


def make(parts: Mapping[str, Engine], white: float, many: int = MADE, seed: int = 0) -> Array:
    """Pictures of latents drawn from N(0, 1), uint8, shape (many, ...)."""
    engine = next(parts[name] for name in GENERATORS if name in parts)
    width = engine.signature.inputs[0].shape[1]
    latents = np.random.default_rng(seed).normal(size=(many, width)).astype(np.float32)
    pixels = np.concatenate([engine.run([each])[0] for each in np.array_split(latents, -(-many // 100))])
    return np.asarray((white * pixels).round(), np.uint8)


def judge(made: Array, data: Data, classifier: Engine) -> dict[str, float]:
    """How far pictures are from the test split's, how many classes are seen, how surely, and how they vary.

    `frechet_distance` is that of the classifier's logits as normal distributions, |m1 - m2|^2 + tr(C1 + C2 -
    2 (C1 C2)^(1/2)): Heusel et al. 2017, arXiv:1706.08500, whose features are another classifier's, of photographs.
    `confidence` is the mean probability of the class that a picture is taken for, over the classes that are seen, each
    counting alike. `variety` is the root mean square difference of two pictures, relative to that of two real ones: 0
    when all are the same.
    """
    logits, real = (
        np.concatenate([classifier.run([rows[k : k + 100]])[0] for k in range(0, len(rows), 100)]).astype(np.float64)
        for rows in (made, np.ascontiguousarray(data.test.inputs))
    )
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    taken, sure = p.argmax(axis=1), p.max(axis=1)
    of_class = [sure[taken == k] for k in range(len(data.classes))]
    seen = [each.mean() for each in of_class if len(each) >= SEEN * len(made) and each.mean() >= SURE]
    apart = [np.sqrt(each.astype(np.float64).var(axis=0).mean()) for each in (made, data.test.inputs)]
    return {
        DISTANCE.name: frechet(logits, real),
        "classes_seen": float(len(seen)),
        "confidence": float(np.mean(seen)) if seen else 0.0,
        "variety": float(apart[0] / apart[1]),
    }


def frechet(one: Array, other: Array) -> float:
    """The Frechet distance, squared, of normal distributions with the means and covariances of two sets of rows.

    >>> round(frechet(np.array([[0.0], [2.0]]), np.array([[5.0], [5.0]])), 6)  # (1 - 5)^2 + (sqrt 2 - 0)^2
    18.0
    """
    apart = ((one.mean(axis=0) - other.mean(axis=0)) ** 2).sum()
    first, second = (np.atleast_2d(np.cov(rows.T)) for rows in (one, other))
    middle = np.sqrt(np.linalg.eigvals(first @ second).real.clip(min=0)).sum()
    return float(apart + np.trace(first + second) - 2 * middle)


def nats(encoder: Engine, decoder: Engine, data: Data, seed: int = 0) -> float:
    """Minus the evidence lower bound, nats a picture of the test split, by exported graphs, one draw each."""
    rng, total, rows = np.random.default_rng(seed), 0.0, data.test.inputs
    for at in range(0, len(rows), 500):
        part = np.ascontiguousarray(rows[at : at + 500])
        mean, log_variance = encoder.run([part])
        latent = mean + np.exp(log_variance / 2) * rng.normal(size=mean.shape)
        pixels = decoder.run([latent.astype(np.float32)])[0]
        total += described(part / white(data), pixels).sum() + divergence(mean, log_variance).sum()
    return total / len(rows)


def described(wanted: Array, pixels: Array) -> Array:
    """Nats to say pixels in 0 to 1 by Bernoulli distributions of these means, shape (n,)."""
    p = pixels.astype(np.float64).clip(1e-7, 1 - 1e-7)
    each = -(wanted * np.log(p) + (1 - wanted) * np.log(1 - p))
    return np.asarray(each.reshape(len(each), -1).sum(axis=1))


def divergence(mean: Array, log_variance: Array) -> Array:
    """KL(N(mean, variance) || N(0, 1)), shape (n,)."""
    return np.asarray(0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(axis=1))


def independent(data: Data) -> float:
    """Nats a picture of the test split where each pixel is said by its mean over the train split."""
    means = data.train.inputs.mean(axis=0, dtype=np.float64) / white(data)
    wanted = data.test.inputs / white(data)
    return float(described(wanted, np.broadcast_to(means, wanted.shape)).mean())


def sheet(parts: Mapping[str, Engine], data: Data) -> bytes:
    """The first of the pictures that are judged, as PNG."""
    return drawn(make(parts, white(data)), white(data))


def drawn(made: Array, white: float) -> bytes:
    """Grey pictures side by side, as PNG, dark on light."""
    from PIL import Image

    few = made[: ROWS * COLUMNS]
    height, width = few.shape[1:]
    page = few.reshape(ROWS, COLUMNS, height, width).swapaxes(1, 2).reshape(ROWS * height, COLUMNS * width)
    file = io.BytesIO()
    Image.fromarray((255 - page * (255 / white)).round().astype(np.uint8)).save(file, "PNG", optimize=True)
    return file.getvalue()
