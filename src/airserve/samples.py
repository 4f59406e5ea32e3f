"""Samples: real inputs of a Model, and the .npz files that hold them."""

from __future__ import annotations

import itertools
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from airserve.model import Array, ModelError, decode_jpeg

CALIBRATION_ROWS = 200  # of samples that do not say how many calibrate: a third, but no more

NOT_NPZ = (
    OSError,
    ValueError,
    EOFError,
    TypeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)  # what numpy raises; TypeError for an .npy file, RuntimeError for a zip that is encrypted or packed in other ways


@dataclass(frozen=True)
class Samples:
    """Real inputs of a Model: the first `calibration` rows calibrate, the rest gate and are driven.

    `inputs` is as the graph takes them, shape (n, ...). Where the sensor sends something else, `encoded` holds
    those bytes, one per row, and `media` names them ("image/jpeg").
    """

    inputs: Array
    labels: Array | None = None
    calibration: int = 0
    encoded: tuple[bytes, ...] | None = None
    media: str | None = None

    def held(self) -> Samples:
        """The rows that calibration did not see."""
        k = self.calibration
        return Samples(
            self.inputs[k:],
            None if self.labels is None else self.labels[k:],
            0,
            None if self.encoded is None else self.encoded[k:],
            self.media,
        )


def load_samples(path: Path) -> Samples:
    """Samples from an .npz file: `inputs`, or `encoded` bytes with `offsets` and `media`; `labels`, `calibration`.

    Where `calibration` is not stated, a third of the rows is for it, at most CALIBRATION_ROWS. Raises `ModelError` when
    the file holds neither, or no such number.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            data = {key: file[key] for key in file.files}
    except FileNotFoundError:
        raise ModelError(f"there is no file {path}; give the path of samples, an .npz file with `inputs`.") from None
    except NOT_NPZ as error:
        raise ModelError(f"{Path(path).name} is not a samples file (.npz with `inputs`): {str(error)[:80]}.") from None
    labels = data.get("labels")
    stated = data.get("calibration")
    if "encoded" in data:
        flat, at = data["encoded"].tobytes(), data["offsets"]
        encoded = tuple(flat[a:b] for a, b in itertools.pairwise(at))
        pixels = decode_jpeg([np.array(encoded, dtype=object)])[0]
        return Samples(pixels, labels, _calibration(stated, len(pixels), path), encoded, str(data["media"]))
    if "inputs" not in data:
        raise ModelError(f"{Path(path).name} has no array named `inputs`; it has {', '.join(data) or 'nothing'}.")
    inputs = data["inputs"]
    if not inputs.ndim:
        raise ModelError(f"{Path(path).name} has one number as `inputs`; they are an array, its first axis the rows.")
    return Samples(inputs, labels, _calibration(stated, len(inputs), path))


def _calibration(stated: Array | None, rows: int, path: Path) -> int:
    if stated is None:
        return min(rows // 3, CALIBRATION_ROWS)
    if stated.size == 1 and stated.dtype.kind in "iuf" and 0 <= (count := stated.item()) <= rows and count % 1 == 0:
        return int(count)
    said = stated.item() if stated.size == 1 else f"an array of shape {list(stated.shape)}"
    raise ModelError(
        f"{Path(path).name}: `calibration` is {said!s:.40}; it is how many of the {rows} rows calibrate, the first "
        "ones, a whole number that leaves some to score on."
    )


def save_samples(samples: Samples, path: Path) -> None:
    """Write Samples as `load_samples` reads them."""
    data: dict[str, Any] = {"calibration": np.array(samples.calibration)}
    if samples.labels is not None:
        data["labels"] = samples.labels
    if samples.encoded is not None:
        data["encoded"] = np.frombuffer(b"".join(samples.encoded), np.uint8)
        data["offsets"] = np.cumsum([0, *map(len, samples.encoded)])
        data["media"] = np.array(samples.media or "image/jpeg")
    else:
        data["inputs"] = samples.inputs
    np.savez(path, **data)
