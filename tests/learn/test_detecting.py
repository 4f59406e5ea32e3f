"""A detector: default boxes, matching and coding against loops, scenes and their labels, what stays of many boxes."""

import numpy as np
import pytest
import torch
from PIL import Image

from airserve.catalog import nets
from airserve.learn import detecting
from airserve.learn.boxes import mean_average_precision, overlap
from airserve.learn.exporting import export_all
from airserve.learn.nets import Form, detector
from airserve.learn.tasks import digit_scenes
from airserve.model import Engine, ModelError


def test_default_boxes_are_about_the_middle_of_every_place() -> None:
    found = detector.defaults((16, 24), 8, (10, 20)).tolist()
    wanted = [
        [y - size / 2, x - size / 2, y + size / 2, x + size / 2]
        for y in (4, 12)
        for x in (4, 12, 20)
        for size in (10, 20)
    ]
    assert found == wanted


def wanted_boxes(rng: np.random.Generator, many: int) -> np.ndarray:
    corners = rng.uniform(0, 20, (many, 2))
    return np.concatenate([corners, corners + rng.uniform(6, 12, (many, 2))], axis=1).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_matching_is_by_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = detector.defaults((32, 32), 8, (8, 14))
    wanted = np.stack([wanted_boxes(rng, 3), wanted_boxes(rng, 3)])
    there = np.array([[True, True, True], [True, False, False]])
    chosen, near = (part.numpy() for part in detector.match(boxes, torch.tensor(wanted), torch.tensor(there)))
    for n in range(2):
        table = overlap(boxes.numpy(), wanted[n][there[n]])
        best = {int(table[:, k].argmax()): k for k in range(there[n].sum())}  # the last one wins, as it does there
        for a in range(len(boxes)):
            assert near[n, a] == (table[a].max() >= 0.5 or a in best)
            if near[n, a]:
                assert chosen[n, a] == best.get(a, table[a].argmax())


def test_decoding_undoes_encoding() -> None:
    boxes = detector.defaults((32, 32), 8, (8, 14))
    wanted = torch.tensor(wanted_boxes(np.random.default_rng(0), len(boxes)))[None]
    torch.testing.assert_close(detector.decode(boxes, detector.encode(boxes, wanted)), wanted)
    same = detector.encode(boxes, boxes[None])
    torch.testing.assert_close(same, torch.zeros_like(same))


def test_the_objective_is_least_when_all_is_found() -> None:
    net = nets["detector"].build(nets["detector"].Config(width=8), Form((32, 32), 3))
    wanted = np.array([[[1, 4, 4, 18, 18], [-1, 0, 0, 0, 0]]], np.float32)
    labels = torch.tensor(wanted)
    chosen, near = detector.match(net.defaults, labels[..., 1:], labels[..., 0] >= 0)
    assert 0 < near.sum() < near.numel()
    perfect = torch.zeros(1, len(net.defaults), 8)
    perfect[..., :4] = detector.encode(net.defaults, labels[0, chosen[0], 1:][None])
    perfect[..., 4:] = torch.nn.functional.one_hot(torch.where(near, 2, 0), 4) * 30.0
    worse = perfect.clone()
    worse[..., 0] += 0.5
    for answers, least, most in ((perfect, 0, 1e-6), (worse, 0.1, 0.2), (perfect * 0, 3, 9)):
        net.forward = lambda x, answers=answers: answers
        assert least <= net.objective(torch.zeros(1, 32, 32), labels).item() <= most
    empty = torch.full((1, 2, 5), -1.0)
    assert torch.isfinite(net.objective(torch.zeros(1, 32, 32), empty))  # a picture with nothing in it


def test_the_graph_gives_boxes_and_probabilities_that_stay_or_go() -> None:
    torch.manual_seed(0)
    net = nets["detector"].build(nets["detector"].Config(width=8), Form((32, 32), 3))
    pictures = np.random.default_rng(0).integers(0, 256, (5, 32, 32)).astype(np.uint8)
    engine = Engine(export_all(net, 128.0, 64.0, pictures, "", False, {})[""])
    boxes, scores = engine.run([pictures])
    assert boxes.shape == (5, len(net.defaults), 4)
    assert scores.shape == (5, len(net.defaults), 3)
    assert 0 < scores.min() < scores.sum(-1).max() < 1
    together = detecting.found(engine, pictures, least=0.2)
    for picture, (kept, classes, each) in zip(pictures, together, strict=True):
        alone = detecting.found(engine, picture[None], least=0.2)[0]
        np.testing.assert_allclose(kept, alone[0], atol=1e-3)
        assert (each >= 0.2).all()
        for k in range(3):
            near = overlap(kept[classes == k], kept[classes == k]) - np.eye((classes == k).sum())
            assert near.max(initial=0) <= 0.45


def test_a_detector_finds_what_it_has_seen() -> None:
    """Two kinds of squares: a few steps are enough to find both, on scenes of the same kind."""
    rng = np.random.default_rng(0)

    def scenes(many: int) -> tuple[np.ndarray, np.ndarray]:
        pictures, labels = np.zeros((many, 32, 32), np.float32), np.zeros((many, 1, 5), np.float32)
        for k in range(many):
            kind, (y, x) = int(rng.integers(2)), rng.integers(0, 18, 2)
            pictures[k, y : y + 14, x : x + 14] = 1.0 if kind else -1.0
            labels[k, 0] = kind, y, x, y + 14, x + 14
        return pictures, labels

    torch.manual_seed(0)
    net = nets["detector"].build(nets["detector"].Config(width=8), Form((32, 32), 2))
    rule = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        pictures, labels = (torch.tensor(part) for part in scenes(16))
        rule.zero_grad()
        net.objective(pictures, labels).backward()
        rule.step()
    pictures, labels = scenes(20)
    with torch.no_grad():
        answers = net.eval()(torch.tensor(pictures))
    boxes = detector.decode(net.defaults, answers[..., :4]).numpy()
    scores = answers[..., 4:].softmax(-1)[..., 1:].numpy()
    found = [detecting.kept(*each, 0.05, 0.45) for each in zip(boxes, scores, strict=True)]
    wanted = [(row[:, 1:], row[:, 0].astype(int)) for row in labels]
    assert mean_average_precision(found, wanted, 2) > 0.8


def test_sides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ModelError, match="multiples of 8"):
        nets["detector"].build(nets["detector"].Config(), Form((30, 32), 3))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> digit_scenes.Data:
    monkeypatch.setattr(digit_scenes, "SCENES", {"train": 60, "validation": 10, "test": 20})
    return digit_scenes.load.__wrapped__()


def test_labels_say_where_the_digits_are(few: digit_scenes.Data) -> None:
    assert few.train.inputs.shape == (60, 64, 64)
    assert few.train.labels.shape == (60, 4, 5)
    for picture, (boxes, classes) in zip(few.train.inputs, digit_scenes.truths(few.train), strict=True):
        assert 1 <= len(boxes) <= 4
        assert set(classes) <= set(range(10))
        assert overlap(boxes, boxes)[~np.eye(len(boxes), dtype=bool)].max(initial=0) <= digit_scenes.APART
        for top, left, bottom, right in boxes.astype(int):
            assert 0 <= top < bottom <= 64
            assert 0 <= left < right <= 64
            assert picture[top:bottom, left:right].max() > 150  # a digit is bright
    again = digit_scenes.load.__wrapped__()
    assert again.fingerprint == few.fingerprint


def test_the_baseline_sees_bright_regions(few: digit_scenes.Data) -> None:
    assert 0.2 < digit_scenes.baseline(few).score < 0.8


def test_a_patch_is_what_is_in_a_box() -> None:
    picture = np.zeros((64, 64), np.uint8)
    picture[8:24, 8:24] = np.asarray(
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).resize((16, 16), 0)
    )
    np.testing.assert_allclose(
        digit_scenes.patch(picture, np.array([8, 8, 24, 24])), np.arange(64) * 4 / 255, atol=0.04
    )
