"""From what a user names to what is served: an .onnx or .gguf file, a folder as Triton, MLflow or Optimum lay it out,
the registry.

Triton: repository/MODEL/VERSION/model.onnx, with an optional config.pbtxt whose version_policy is kept (by default the
latest version alone). MLflow: a folder with an MLmodel file of flavour onnx. Optimum: a folder with model.onnx, and
beside it what belongs to it, such as its tokenizer. The registry: `inquiring`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from airserve.contract import Endpoint, from_plain
from airserve.model import Function, ModelError, Runtime
from airserve.serve import rereading
from airserve.serve.inquiring import Inquiry
from airserve.serve.untrusted import check_graph

FILES = (".onnx", ".gguf")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Offer:
    """A version of a model: the file it comes from as it was seen, and where it is counted."""

    endpoint: Endpoint
    stamp: tuple[int, ...]
    slot: int = 0
    source: str = ""  # what the user named

    @property
    def key(self) -> tuple[str, str]:
        return self.endpoint.name, self.endpoint.version


def stamp(path: str) -> tuple[int, ...]:
    """What tells a file from another of its name. Raises `ModelError`."""
    try:
        return rereading.stamp(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); see that it is there.") from None


def mark(offer: Offer) -> str:
    """What tells a version as it was read from all others, in any worker."""
    return json.dumps([*offer.key, offer.endpoint.functions[0].path, *offer.stamp])


def names(source: str) -> list[str]:
    """The models that a source holds, none where it names a model of the registry.

    Raises `ModelError` for a folder that holds none.
    """
    path = Path(source)
    if path.suffix in FILES:
        return [path.stem]
    if not path.is_dir():
        return []
    if _alone(path):
        return [path.resolve().name]
    found = sorted(
        child.name
        for child in path.iterdir()
        if child.is_dir() and (_versions(child) or (child / "model.onnx").is_file())
    )
    if not found:
        raise ModelError(
            f"{source} holds no model; wanted is {source}/MODEL/1/model.onnx, a folder with MLmodel or model.onnx, or "
            "an .onnx file."
        )
    return found


def offers(source: str, only: str | None = None, cores: int = 1) -> list[Offer]:
    """Every version that a source holds, or those of the model named `only`, for workers that have so many cores.

    Raises `ModelError` for what cannot be read, and for a graph that reaches outside its folder.
    """
    path, found = Path(source), []
    if path.suffix in FILES:
        found = [Endpoint(_named(path.stem, source), (_model(path),))]
    elif path.is_dir():
        for name in names(source):
            if only is None or name == only:
                folder = path if _alone(path) else path / name
                if (folder / "MLmodel").is_file():
                    found += _mlflow(folder, name)
                elif _versions(folder):
                    found += _triton(folder, name)
                else:
                    found.append(Endpoint(_named(name, source), (_model(folder / "model.onnx"),)))
    else:
        try:
            found = [answered(Inquiry(source).answer(), cores)]
        except ModelError:
            if not path.is_file():
                raise
            raise ModelError(
                f"{source} is a file of no kind that is served; wanted is an .onnx or .gguf file, a folder that holds "
                "one, a model of the registry, or what `airserve import` takes."
            ) from None
    return [offered(endpoint, source) for endpoint in found if only is None or endpoint.name == only]


def offered(endpoint: Endpoint, source: str) -> Offer:
    """An endpoint with its file as it is now. Raises `ModelError`."""
    file = endpoint.functions[0].path
    if not file.endswith(".gguf"):
        check_graph(Path(file))
    return Offer(endpoint, stamp(file), source=source)


def together(sources: Sequence[str], cores: int = 1) -> list[Offer]:
    """The versions of all sources. Raises `ModelError` where two say the same name and version."""
    made: dict[tuple[str, str], Offer] = {}
    for source in sources:
        for offer in offers(source, cores=cores):
            if offer.key in made:
                name, version = offer.key
                raise ModelError(f"{source} and another source both hold {name} version {version}; rename one.")
            made[offer.key] = offer
    return list(made.values())


def _model(path: Path) -> Function:
    return Function(path.stem, "model", str(path.absolute()))


def _named(name: str, source: str) -> str:
    if not NAME.fullmatch(name):
        raise ModelError(f"{source}: {name!r} is not a usable name; use letters, digits, dots, hyphens, underscores.")
    return name


def _alone(folder: Path) -> bool:
    """Whether a folder is one model's."""
    return bool(_versions(folder)) or any((folder / name).is_file() for name in ("MLmodel", "model.onnx"))


def _versions(folder: Path) -> list[int]:
    """Numbers of the version folders that hold a graph."""
    return sorted(int(v.name) for v in folder.iterdir() if v.name.isdecimal() and (v / "model.onnx").is_file())


def _triton(folder: Path, name: str) -> list[Endpoint]:
    versions, config = _versions(folder), folder / "config.pbtxt"
    text = config.read_text(encoding="utf-8", errors="replace") if config.is_file() else ""
    platform = re.search(r'^\s*(?:backend|platform)\s*:\s*"([^"]*)"', text, re.MULTILINE)
    if platform and platform[1] not in ("onnxruntime", "onnxruntime_onnx"):
        raise ModelError(f"{config} wants {platform[1]}; onnxruntime alone is served.")
    policy = re.search(r"version_policy\s*:?\s*\{\s*(all|latest|specific)\s*:?\s*\{([^}]*)\}", text)
    numbers = [int(number) for number in re.findall(r"\d+", policy[2])] if policy else []
    match policy[1] if policy else "latest":
        case "latest":
            versions = versions[-(numbers[0] if numbers else 1) :]
        case "specific":
            if missing := sorted(set(numbers) - set(versions)):
                raise ModelError(f"{config} names version {missing[0]}, which {folder} does not hold.")
            versions = numbers
    return [
        Endpoint(_named(name, str(folder)), (_model(folder / str(v) / "model.onnx"),), version=str(v)) for v in versions
    ]


def _mlflow(folder: Path, name: str) -> list[Endpoint]:
    text = (folder / "MLmodel").read_text(encoding="utf-8", errors="replace")
    data = re.search(r"^  onnx:\s*$(?:\n    .*)*?\n    data:\s*(\S+)", text, re.MULTILINE)
    if data is None:
        raise ModelError(f"{folder / 'MLmodel'} has no flavour onnx; log the model with mlflow.onnx.")
    file = folder / data[1]
    if not file.resolve().is_relative_to(folder.resolve()):
        raise ModelError(f"{folder / 'MLmodel'} names {data[1]}, outside its folder.")
    return [Endpoint(_named(name, str(folder)), (_model(file),))]


def registered(source: str) -> bool:
    """Whether a source names a model of the registry."""
    return Path(source).suffix not in FILES and not Path(source).is_dir()


def answered(said: str | bytes, cores: int = 1) -> Endpoint:
    """What the registry answered, for a worker that has so many cores."""
    found = json.loads(said)
    name = found["name"] if found["variant"] == "fp32" else f"{found['name']}-{found['variant']}"
    runtime = found["runtimes"][max((count for count in found["runtimes"] if int(count) <= cores), key=int)]
    function = replace(_model(Path(found["path"])), runtime=from_plain(Runtime, runtime))
    return Endpoint(name, (function,), None, str(found["version"]), tuple(found["aliases"]))
