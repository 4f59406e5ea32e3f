"""Digits to make: those of scikit-learn, judged by a classifier of ours that has seen its train split."""

from collections.abc import Mapping
from functools import partial

from airserve.learn import generation
from airserve.learn.tasks import Data, digits
from airserve.model import Engine
from airserve.registry import Registry

judge = partial(generation.classifier, "mlp", "digits")
baseline, sheet = generation.baseline, generation.sheet


def load() -> Data:
    """The pictures and splits of the task with classes."""
    return generation.pictures(digits.load())


def assess(parts: Mapping[str, Engine], data: Data, registry: Registry) -> dict[str, float]:
    """What the classifier says of pictures that the exported graphs make, and nats where there is an encoder."""
    return generation.assess(parts, data, judge(registry))
