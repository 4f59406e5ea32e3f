"""Checkpoints: the state of a training after each epoch, so that one that was killed goes on to the same weights."""

import os
import tempfile
from pathlib import Path
from typing import Any, final

import torch

from airserve.linux import born
from airserve.model import ModelError

PART = ".part"  # how the name of a file ends that is being written


@final
class Checkpoint:
    """A file that holds the newest whole epoch of one recipe. `recipe` is the hash of all that training depends on."""

    def __init__(self, path: Path, recipe: str) -> None:
        self.path, self.recipe = path, recipe

    def save(self, state: dict[str, Any]) -> None:
        """Write the state whole or not at all. Raises `ModelError` when the disk does not take it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                dir=self.path.parent, prefix=f"{self.path.stem}-{os.getpid()}-", suffix=PART, delete=False
            ) as file:
                try:
                    torch.save({"recipe": self.recipe, **state}, file)
                    file.close()
                    os.replace(file.name, self.path)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError for a full disk
            raise ModelError(
                f"the checkpoint {self.path} cannot be written: {str(error).splitlines()[0][:120]}."
            ) from None

    def load(self) -> dict[str, Any] | None:
        """The state, None where there is none. Raises `ModelError` for a file that is another training's or broken."""
        if not self.path.exists():
            return None
        try:
            state: Any = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch's reader raises whatever broken bytes make it do
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:80]
            raise ModelError(f"the checkpoint {self.path} cannot be read ({reason}); delete it.") from None
        if not isinstance(state, dict) or state.get("recipe") != self.recipe:
            raise ModelError(f"the checkpoint {self.path} is of another net, task or seed; delete it.")
        found: dict[str, Any] = state
        return found

    def remove(self) -> None:
        """The file, and what processes left that were killed while they wrote one; one that lives may write yet."""
        self.path.unlink(missing_ok=True)
        for path in self.path.parent.glob(f"{self.path.stem}-*{PART}"):
            writer = path.name.removeprefix(f"{self.path.stem}-").partition("-")[0]
            if not writer.isdecimal() or born(int(writer)) is None:
                path.unlink(missing_ok=True)
