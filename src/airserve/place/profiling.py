"""The profile of a description's models: what `measuring` measures, made once and remembered.

Kept by the content of graph and samples, the engine's version and the machine.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import onnxruntime

from airserve.contract import from_plain, to_plain
from airserve.model import Array, Engine, Model, ModelError
from airserve.place.choosing import Timed, choose, machine
from airserve.place.description import Factory
from airserve.place.measuring import VariantProfile, Way, decode_s, halves, measure, measured_score
from airserve.progress import bar
from airserve.registry import Registry, check_served
from airserve.samples import Samples, load_samples

BUSY = 1.5  # times: where two rounds of one graph differ by more, somebody else had the machine
RECIPE = 5  # of measuring: raise it when figures that are kept no longer compare


@dataclass(frozen=True)
class ModelProfile:
    """A Model's variants, fp32 first; `decode_s` are the samples of its pre-process Function, where it has one."""

    model: str  # as the description names it
    media: str
    decode_s: Array
    variants: tuple[VariantProfile, ...]
    runtimes: tuple[tuple[str, Timed], ...] = ()  # by variant; none where there is no choice


@dataclass(frozen=True)
class Profile:
    """The profiles of a description's models."""

    COLUMNS: ClassVar = ["model", "variant", "cut", "encoding", "kB up", "zstd", "head ms", "tail ms", "score", "note"]
    ENGINE_COLUMNS: ClassVar = ["model", "variant", "engine", "ms", "error", "score drop", "chosen"]
    models: tuple[ModelProfile, ...]

    def of(self, model: str) -> ModelProfile:
        return next(one for one in self.models if one.model == model)

    def plain(self) -> dict[str, Any]:
        """As data that JSON can carry: medians, one row a way; and the engines, where there are several."""
        return {
            "ways": [dict(zip(self.COLUMNS, row, strict=True)) for row in self.rows()],
            "engines": [dict(zip(self.ENGINE_COLUMNS, row, strict=True)) for row in self.engine_rows()],
        }

    def engine_rows(self) -> list[list[Any]]:
        """A table, one row an engine, in the order of ENGINE_COLUMNS."""
        return [
            [
                one.model,
                variant,
                str(timed.runtime),
                round(1e3 * timed.seconds, 3),
                float(f"{timed.error:.1e}"),
                timed.score_drop,
                {0: "", 1: "yes"}.get(timed.chosen, f"from {timed.chosen} cores"),
            ]
            for one in self.models
            for variant, timed in one.runtimes
        ]

    def rows(self) -> list[list[Any]]:
        """A table, one row a way, in the order of COLUMNS."""
        return [
            [
                one.model,
                variant.variant,
                way.cut,
                way.encoding,
                _kilo(way.bytes_up),
                _kilo(way.packed_up),
                _milli(way.head_s),
                _milli(way.tail_s),
                None if way.encoding == "int8" or variant.score is None else round(variant.score, 4),
                _note(variant) if way.cut == "none" else "",
            ]
            for one in self.models
            for variant in one.variants
            for way in variant.ways
        ]


def profile(factory: Factory, *, registry: Registry, fresh: bool = False, progress: bool = True) -> Profile:
    """Measure every way to run the models of a description, or remember it; `fresh` measures again.

    Raises `errors.Unknown` for a model that does not exist and `ModelError` for one that cannot be run or served.
    """
    names = list(dict.fromkeys(service.model for service in factory.services if service.model))
    found = []
    with bar("profile", wanted=progress) as done:
        for name in names:
            model = resolve(name, registry)
            variants = registry.variants(model)
            done.to(0, text=f"profile {name}")
            samples = Lazy(model)
            made: list[VariantProfile] = []
            runtimes: list[tuple[str, Timed]] = []
            for variant in variants:
                key = f"profile/{_content(variant, model)}"
                kept = None if fresh else registry.kept(key)
                fp32_s = made[0].fp32_s if made else None
                if kept is None or fp32_s not in (None, kept["fp32_s"]):  # fp32 was measured again meanwhile
                    kept = to_plain(measure(variant, model, samples.read(), done.to, fp32_s))
                    registry.keep(key, kept)
                made.append(replace(from_plain(VariantProfile, kept), reference=variant.reference))
                timed = choose(variant, model, samples.read, registry=registry, fresh=fresh)
                runtimes.extend((variant.variant, one) for one in timed)
            whole = _with_preprocess(name, model, samples, tuple(made), registry, fresh)
            found.append(replace(whole, runtimes=tuple(runtimes)))
    return Profile(tuple(found))


@final
class Lazy:
    """The samples of a Model, read when first asked for: decoding pictures takes longer than remembering figures."""

    def __init__(self, model: Model) -> None:
        self._path = model.samples_path
        self._samples: Samples | None = None

    def read(self) -> Samples | None:
        if self._samples is None and self._path is not None:
            self._samples = load_samples(self._path)
        return self._samples


def _with_preprocess(
    name: str, model: Model, samples: Lazy, variants: tuple[VariantProfile, ...], registry: Registry, fresh: bool
) -> ModelProfile:
    """A Model's profile with the seconds of the Function that its encoded samples need; kept."""
    key = f"preprocess/{_content(model, model)}"
    kept = None if fresh else registry.kept(key)
    if kept is None:
        found = samples.read()
        kept = {"media": (found and found.media) or "", "decode_s": to_plain(decode_s(found))}
        registry.keep(key, kept)
    return ModelProfile(name, kept["media"], np.array(kept["decode_s"]), variants)


def resolve(name: str, registry: Registry) -> Model:
    """The Model that a description names: in the registry, or the path of an ONNX file, which is then registered."""
    if name.endswith(".onnx"):
        path = Path(name)
        if not path.is_file():
            raise ModelError(f"{name} does not exist; give the path of an ONNX file or a name of `airserve models`.")
        return registry.register(path.stem, path)
    model = registry.get(name)
    check_served(model.reference, model.signature)  # it may have been registered before that was looked at
    return model


def cut_score(way: Way, model: Model, parent: Model, samples: Lazy, registry: Registry) -> float:
    """The score of a Model whose cut travels as int8, head and tail on the held rows; kept."""
    key = f"score/{way.cut}/{way.encoding}/{_content(model, parent)}"
    kept = registry.kept(key)
    if kept is None:
        head, tail = (Engine(half) for half in halves(way, model))
        kept = measured_score(model, parent, head, samples.read(), tail)[1] or 0.0
        registry.keep(key, kept)
    return float(kept)


def _content(model: Model, parent: Model) -> str:
    """Digest of all that a measured figure depends on."""
    samples = parent.samples_path.stem if parent.samples_path else "none"
    parts = (RECIPE, model.digest, parent.digest, samples, onnxruntime.__version__, machine())
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _note(variant: VariantProfile) -> str:
    if variant.rounds_differ <= BUSY:
        return ""
    return f"this machine was busy: two rounds differ {variant.rounds_differ:.1f} times; profile again with --fresh"


def _kilo(values: Array) -> float | None:
    return round(float(np.mean(values)) / 1e3, 2) if len(values) else None


def _milli(values: Array) -> float | None:
    return round(float(np.median(values)) * 1e3, 3) if len(values) else None
