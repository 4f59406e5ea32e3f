"""Models that several tests look at, trained once."""

from pathlib import Path

import pytest

from airserve.learn.training import train
from airserve.model import Model
from airserve.registry import Registry


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    return Registry(Path(tmp_path_factory.mktemp("learn")))


@pytest.fixture(scope="session")
def digits(registry: Registry) -> Model:
    """A ResNet-8 for the digits."""
    return train("resnet8,epochs=1", "digits", registry=registry, progress=False)


@pytest.fixture(scope="session")
def perceptron(registry: Registry) -> Model:
    """An MLP for the digits."""
    return train("mlp", "digits", registry=registry, progress=False)
