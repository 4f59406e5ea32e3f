"""MTCNN: each graph and the whole cascade against the package's own code, on real photographs, and through a server."""

import importlib
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from airserve.errors import UserError
from airserve.learn import faces, mtcnn
from airserve.learn.boxes import overlap
from airserve.learn.importing import import_model
from airserve.learn.tasks import photos
from airserve.model import Engine, Model
from airserve.registry import Registry

present = pytest.mark.skipif(find_spec("facenet_pytorch") is None, reason="facenet-pytorch is absent")


@pytest.fixture(scope="module")
def models(registry: Registry) -> list[Model]:
    first = import_model("mtcnn", registry=registry)
    others = first.lineage["parts"]
    assert (first.name, list(others)) == ("mtcnn-proposal", ["refinement", "output"])
    assert import_model("mtcnn", registry=registry) == first
    return [first, *(registry.get(each) for each in others.values())]


@pytest.fixture(scope="module")
def theirs() -> Iterator[ModuleType]:
    """The package's code. It wants torchvision for one function, which stands here as its definition has it."""

    def kept(boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, most: float) -> torch.Tensor:
        left, found = scores.argsort(descending=True).tolist(), []
        while left:
            found.append(left.pop(0))
            like = overlap(boxes[found[-1:]].numpy(), boxes[left].numpy())[0]
            left = [k for k, shared in zip(left, like, strict=True) if shared <= most or groups[k] != groups[found[-1]]]
        return torch.tensor(found, dtype=torch.int64)

    stubs = {name: ModuleType(name) for name in ("torchvision", "torchvision.ops", "torchvision.ops.boxes")}
    stubs["torchvision.transforms"] = ModuleType("torchvision.transforms")
    stubs["torchvision.transforms"].functional = None  # type: ignore[attr-defined]
    stubs["torchvision.ops.boxes"].batched_nms = kept  # type: ignore[attr-defined]
    absent = {name: stub for name, stub in stubs.items() if find_spec("torchvision") is None}
    sys.modules.update(absent)
    spec = find_spec("facenet_pytorch")
    assert spec is not None
    assert spec.origin is not None
    package = ModuleType("facenet_pytorch")
    package.__path__ = [str(Path(spec.origin).parent)]
    sys.modules["facenet_pytorch"] = package
    yield importlib.import_module("facenet_pytorch.models.mtcnn")
    for name in (*absent, *(name for name in sys.modules if name.startswith("facenet_pytorch"))):
        sys.modules.pop(name, None)


def photograph(name: str) -> np.ndarray:
    path = next(path for path in photos.paths() if path.stem == name)
    return np.asarray(Image.open(path).convert("RGB"))


@present
def test_the_graphs_are_the_packages_nets(models: list[Model], theirs: Any) -> None:
    rng = np.random.default_rng(0)
    kinds = (theirs.PNet, theirs.RNet, theirs.ONet)
    for model, kind, side in zip(models, kinds, ((31, 44), (24, 24), (48, 48)), strict=True):
        rows = rng.integers(0, 256, (3, *side, 3), np.uint8)
        with torch.no_grad():
            offsets, *points, scores = kind()((torch.tensor(rows).permute(0, 3, 1, 2).float() - 127.5) * 0.0078125)
        found = Engine(model.path).run([rows])
        np.testing.assert_allclose(found[0], scores[:, 1], atol=1e-5)
        np.testing.assert_allclose(np.moveaxis(found[1], -1, 1), offsets, atol=1e-5)
        for ours, wanted in zip(found[2:], points, strict=True):
            np.testing.assert_allclose(ours, wanted, atol=1e-5)


@present
def test_a_face_is_found_where_the_package_finds_it(models: list[Model], theirs: Any) -> None:
    """Up to the rounding of crops to whole values, which a server is sent. A cat, a cup and a rocket have no face."""
    engines = [Engine(model.path).run for model in models]
    picture = photograph("astronaut")
    found = faces.find(*engines, picture)
    nets = theirs.PNet(), theirs.RNet(), theirs.ONet()
    with torch.no_grad():
        boxes, points = theirs.detect_face(picture, 20, *nets, [0.6, 0.7, 0.7], 0.709, "cpu")
    (wanted,) = boxes[0].astype(float)
    assert overlap(found.boxes, wanted[[1, 0, 3, 2]][None])[0, 0] > 0.95
    assert found.scores == pytest.approx(wanted[4:], abs=1e-3)
    assert np.abs(found.points[0] - points[0][0].astype(float)[:, ::-1]).max() < 2
    for name in ("chelsea", "coffee", "rocket"):
        assert faces.find(*engines, photograph(name)).boxes.shape == (0, 4), name


def test_means_over_pixels_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for old, new in (((7, 9), (3, 4)), ((5, 5), (12, 7)), ((13, 6), (13, 6)), ((40, 31), (24, 24))):
        picture = rng.normal(size=(*old, 3))
        wanted = torch.nn.functional.interpolate(torch.tensor(picture).permute(2, 0, 1)[None], new, mode="area")
        np.testing.assert_allclose(faces.resized(picture, *new), wanted[0].permute(1, 2, 0), atol=1e-12)
    monkeypatch.setattr(mtcnn, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"`pip install --no-deps facenet-pytorch==2\.6\.0`"):
        mtcnn.weights()
