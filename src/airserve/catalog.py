"""The open sets: a file's name is its name (a hyphen in a name is an underscore in the file)."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

from airserve.errors import Unknown


@final
class Catalog(Mapping[str, Any]):
    """The files of a folder as a mapping from name to the one thing each defines; imported when asked for.

    Listing loads nothing, so that naming the nets needs no torch. A missing name raises `LookupError` and
    says what is near.

    >>> "ratio" in slices
    True
    >>> slices["ratioo"]
    Traceback (most recent call last):
    airserve.errors.Unknown: no slice policy named 'ratioo'; perhaps ratio?
    """

    def __init__(self, kind: str, package: str, wanted: str | None = None) -> None:
        self.kind = kind
        self.package = package
        self.wanted = wanted  # attribute that each file must define; None: the module itself

    def names(self) -> list[str]:
        spec = find_spec(self.package)
        folders = spec.submodule_search_locations if spec else None
        files = [file for folder in folders or () for file in Path(folder).glob("*.py")]
        return sorted(file.stem.replace("_", "-") for file in files if not file.stem.startswith("_"))

    def check(self, name: str) -> None:
        """Raise what asking for a missing name would, and load nothing."""
        if name not in (names := self.names()):
            raise Unknown(self.kind, name, names)

    def __getitem__(self, name: str) -> Any:
        self.check(name)
        module = import_module(f"{self.package}.{name.replace('-', '_')}")
        return getattr(module, self.wanted) if self.wanted else module

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        return name in self.names()


nets = Catalog("net", "airserve.learn.nets")
tasks = Catalog("task", "airserve.learn.tasks")
pretexts = Catalog("pretext", "airserve.learn.pretexts")
compressors = Catalog("compressor", "airserve.learn.compressors", "compress")
slices = Catalog("slice policy", "airserve.network.slices")
planners = Catalog("planner", "airserve.place.planners", "choose")
sites = Catalog("site kind", "airserve.place.sites")
protocols = Catalog("protocol", "airserve.serve.protocols")
