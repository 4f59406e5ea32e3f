"""Articles of clothing to make: Fashion-MNIST, judged by a classifier of ours that has seen its train split."""

from collections.abc import Mapping

from airserve.learn import generation
from airserve.learn.tasks import Baseline, Data, fashion_mnist
from airserve.model import Engine
from airserve.registry import Registry

CLASSIFIER = "resnet8", "fashion-mnist"


def load() -> Data:
    """The pictures and splits of the task with classes."""
    return generation.pictures(fashion_mnist.load())


def judge(registry: Registry) -> Engine:
    """The classifier, trained now if it was not before."""
    from airserve.learn.training import train

    return Engine(train(*CLASSIFIER, registry=registry, progress=False).path)


def baseline(data: Data, classifier: Engine) -> Baseline:
    """Pictures drawn from a normal distribution."""
    return generation.baseline(data, classifier)


def assess(parts: Mapping[str, Engine], data: Data, registry: Registry) -> dict[str, float]:
    """The classes that are seen, how surely, how they vary, and nats where there is an encoder."""
    return generation.assess(parts, data, judge(registry))


def sheet(parts: Mapping[str, Engine], data: Data) -> bytes:
    """The first of the pictures that are judged, as PNG."""
    return generation.sheet(generation.make(parts, generation.white(data)), generation.white(data))
