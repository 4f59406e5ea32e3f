"""What is done of a long computation with random numbers, kept so that a stopped run goes on as if never stopped."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.random import Generator

from airserve.model import Array


class Part:
    """Rows of named arrays that grow, with the states of the generators that made them: numpy's, torch's and Sionna's.

    `path`: where it is kept after every `add`, or None. `key` says what is computed: a file of another key, or one
    that cannot be read, is not used. States that a file has are put back, `rng` included.
    """

    def __init__(self, path: Path | None, key: str, rng: Generator) -> None:
        self._path, self._key, self._rng = path, key, rng
        self._rows: dict[str, list[Array]] = {}
        if path is not None and path.is_file():
            self._read(path)

    def __len__(self) -> int:
        """How many rows are done."""
        return sum(len(rows) for rows in next(iter(self._rows.values()), []))

    @property
    def rows(self) -> dict[str, Array]:
        """All rows that are done."""
        return {name: np.concatenate(rows) for name, rows in self._rows.items()}

    def add(self, **rows: Array) -> None:
        """More rows of each array, kept at once."""
        for name, some in rows.items():
            self._rows.setdefault(name, []).append(some)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._path.with_name(self._path.name + ".new")
            with fresh.open("wb") as file:
                state = {"key": np.array(self._key), "state": np.array(json.dumps(self._states()))}
                np.savez(file, allow_pickle=False, **state, **self.rows)
            os.replace(fresh, self._path)

    def close(self) -> None:
        """All is done: the file goes."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _read(self, path: Path) -> None:
        try:
            with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
                if str(file["key"]) != self._key:
                    return
                state = json.loads(str(file["state"]))
                rows = {name: [file[name]] for name in file.files if name not in ("key", "state")}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):
            return
        self._rows = rows
        self._restore(state)

    def _states(self) -> dict[str, Any]:
        import torch
        from sionna.phy import config

        return {
            "numpy": self._rng.bit_generator.state,
            "torch": torch.get_rng_state().numpy().tobytes().hex(),
            "sionna": config.torch_rng("cpu").get_state().numpy().tobytes().hex(),
            "sionna_numpy": config.np_rng.bit_generator.state,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        import torch
        from sionna.phy import config

        def tensor(text: str) -> Any:
            return torch.tensor(list(bytes.fromhex(text)), dtype=torch.uint8)

        self._rng.bit_generator.state = state["numpy"]
        torch.set_rng_state(tensor(state["torch"]))
        config.torch_rng("cpu").set_state(tensor(state["sionna"]))
        config.np_rng.bit_generator.state = state["sionna_numpy"]
