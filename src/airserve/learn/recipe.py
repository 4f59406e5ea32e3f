"""A recipe: a net with its settings, a task and a seed; all that training depends on, and a name for it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from airserve import documents
from airserve.catalog import nets, pretexts, tasks
from airserve.model import ModelError

RECIPE = 2  # raise it when a change of learn would train another Model from the same settings

CHOICES: dict[str, Sequence[str]] = {  # of settings that are words
    "optimizer": ("adamw", "adam", "sgd", "descent", "muon"),
    "precision": ("auto", "float32", "bfloat16"),
    "layout": ("channels-last", "contiguous"),
    "pretrain": ("none", *pretexts),
}
SHARES = ("dropout", "smoothing", "labels")  # settings that are a part of something, of a net's Config or of Options
LAST_SEED = 2**63 - 1  # a signed number of 64 bits, which all that draw take


@dataclass(frozen=True)
class Options:
    """How any net can be trained beside what its own Config says. Zero means without."""

    optimizer: str = "adamw"
    clip: float = 0.0  # largest norm of a step's gradient
    accumulate: int = 1  # parts in which a batch is computed, where memory is short
    smoothing: float = 0.0  # of labels
    balance: float = 0.0  # of classes: 1 when all count alike however rare
    resample: float = 0.0  # of rows: 1 when all classes are drawn as often however rare
    vary: float = 0.0  # of rows of rare classes: part of a text's words hidden, noise in a table, a picture moved
    precision: str = "auto"  # float32, bfloat16 where matrices are multiplied, or what is faster
    layout: str = "channels-last"  # of pictures in memory, or contiguous
    pretrain: str = "none"  # by a pretext (pretexts/), from the train split's inputs, before any label is seen
    labels: float = 0.0  # share of the labels that training sees, as if the others were not known; 0: all
    lasso: float = 0.0  # nats per sum of the weights' sizes (L1); a Config's `decay` is the squared one (L2)

    def stated(self) -> dict[str, Any]:
        """Those that are not the default, so that a new option leaves old recipes as they are."""
        return {key: value for key, value in asdict(self).items() if value != getattr(Options, key)}


def unbalanced(options: Options) -> Options:
    """The same without what is done for rare classes."""
    return replace(options, balance=0.0, resample=0.0, vary=0.0)


def read_net(net: str) -> tuple[str, Any, Options]:
    """Name, Config and Options of "resnet8,width=32,epochs=8". Raises `UserError` with what is near.

    >>> name, config, options = read_net("mlp,hidden=32,clip=1")
    >>> name, config.hidden, config.epochs, options.clip
    ('mlp', 32, 8, 1.0)
    """
    name, *parameters = net.split(",")
    config, options = nets[name].Config(), Options()
    own = {field.name for field in fields(config)}
    general = [field.name for field in fields(options) if field.name not in own]
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key in own:
            config = replace(config, **{key: read_value(name, config, key, value)})
        elif key in general:
            options = replace(options, **{key: read_value(name, options, key, value)})
        else:
            raise ModelError(
                f"{name} has no parameter {key!r}; it has {', '.join(asdict(config))}, and as every net "
                f"{', '.join(general)}."
            )
    return name, config, options


def read_value(net: str, settings: Any, key: str, value: str) -> Any:
    """The value of a setting, of the kind of its default."""
    default = getattr(settings, key)
    if isinstance(default, str):
        if value not in CHOICES[key]:
            raise ModelError(f"{key}={value} of {net} is none of {', '.join(CHOICES[key])}.")
        return value
    try:
        number = type(default)(value)
    except ValueError:
        number = -1
    if not 0 < number < float("inf"):
        raise ModelError(f"{key}={value} of {net} is not a number above 0; {key} is {default} by default.")
    if key in SHARES and number > 1:
        raise ModelError(f"{key}={value} of {net} is no share; give one of at most 1.")
    return number


def digest(net: str, config: Any, options: Options, task: str, data: str, seed: int) -> str:
    """SHA-256 over all that training depends on; `data` is the fingerprint."""
    settings = {"net": net, **asdict(config), **options.stated(), "task": task, "data": data, "seed": seed}
    recipe = RECIPE + (options.balance > 0)  # whose loss was weighted otherwise
    return hashlib.sha256(json.dumps({**settings, "recipe": recipe}, sort_keys=True).encode()).hexdigest()


def read_recipe(path: Path) -> tuple[str, str, int | None]:
    """Net with settings, task and seed (None where it states none) of a YAML file. Raises `ModelError`.

    net: resnet8
    task: fashion-mnist
    seed: 1
    settings: {width: 32, epochs: 8}
    """
    try:
        read, _ = documents.parse(path.read_text(encoding="utf-8"), f"the recipe {path}")
    except OSError as error:
        raise ModelError(f"the recipe {path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ModelError(f"the recipe {path} is not YAML: it is no text.") from None
    except documents.DocumentError as error:
        raise ModelError(str(error)) from None
    known = ("net", "task", "seed", "settings")
    if not isinstance(read, dict) or not {"net", "task"} <= set(read):
        raise ModelError(f"the recipe {path} must state `net` and `task`, and may state `seed` and `settings`.")
    if unknown := [key for key in read if key not in known]:
        raise ModelError(f"the recipe {path} has an unknown key {unknown[0]!r}; a recipe has {', '.join(known)}.")
    settings, seed = read.get("settings") or {}, read.get("seed")
    if not isinstance(settings, dict):
        raise ModelError(f"`settings` of the recipe {path} must be keys and values, as in {{width: 32}}.")
    if seed is not None and (not isinstance(seed, int) or not 0 <= seed <= LAST_SEED):
        raise ModelError(f"`seed` of the recipe {path} must be a whole number from 0 to {LAST_SEED}, not {seed!r}.")
    return ",".join([str(read["net"]), *(f"{key}={value}" for key, value in settings.items())]), str(read["task"]), seed


def choose(net: str, task: str | None, seed: int | None) -> tuple[str, str, int]:
    """Net, task and seed as a command line gives them: NET TASK, or a recipe's file. A seed given wins.

    Both names are looked up before anything that computes is loaded, so a wrong one is told at once.
    """
    if net.endswith((".yaml", ".yml")):
        if task is not None:
            raise ModelError(f"the recipe {net} states its task; leave {task!r} out.")
        net, task, stated = read_recipe(Path(net))
        seed = stated if seed is None else seed
    if task is None:
        raise ModelError(f"give a task for {net}: {', '.join(tasks)}; or a recipe in YAML that states both.")
    nets.check(net.split(",")[0])
    tasks.check(task)
    return net, task, seed or 0
