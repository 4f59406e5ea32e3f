"""Preparing: the first two steps of training, from a task's data to tensors and from a net's name to the net."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from airserve.catalog import nets, tasks
from airserve.learn.metrics import Metric
from airserve.learn.nets import ANSWERS, Form
from airserve.learn.recipe import Options
from airserve.learn.tasks import Data, Split, TaskError
from airserve.model import Array, ModelError


def load_task(task: str) -> Data:
    """The data of a task. Raises `UserError` when there is no such task, no data, or nothing to learn from."""
    module = tasks[task]
    if not hasattr(module, "load"):
        raise TaskError(
            f"{task} has no labels to train on; it gives samples to a net with published weights (`import`)."
        )
    data: Data = module.load()
    data.check()
    return data


@dataclass(frozen=True)
class Prepared:
    """A task as tensors: numbers float32 of zero mean and unit variance over the train split, ids as they are."""

    train: Sequence[Tensor]  # inputs (n, ...), labels (n, ...)
    validation: Sequence[Tensor]
    test: Split
    mean: Any  # of the sensor's values: one number for pictures, one per column of a table, None for ids
    std: Any
    form: Form
    passes: int  # over the train split in an epoch
    loss: str
    metric: Metric


def preprocess(data: Data) -> Prepared:
    """Step 1: the whole data in memory, normalised by what the train split says."""
    mean: Any = None
    std: Any = None
    if data.scale:
        mean, std = data.scale
    elif data.train.inputs.dtype == np.float32:
        mean, std = (torch.tensor(part) for part in (data.train.inputs.mean(axis=0), data.train.inputs.std(axis=0)))
        std[std == 0] = 1.0  # a column that never changes
    elif not data.ids:
        mean, std = float(data.train.inputs.mean()), float(data.train.inputs.std())

    def tensors(split: Split) -> list[Tensor]:
        return [normalise(split.inputs, mean, std), torch.tensor(split.labels)]

    counted = len(data.classes) or data.symbols
    middle = 0.0 if counted else float(data.train.labels.mean())
    form = Form(data.train.inputs.shape[1:], counted or 1, data.ids, middle)
    return Prepared(
        tensors(data.train),
        tensors(data.validation),
        data.test,
        mean,
        std,
        form,
        data.passes,
        data.loss,
        data.metric,
    )


def normalise(inputs: Array, mean: Any, std: Any) -> Tensor:
    """What the sensor gives as what the net takes."""
    return torch.tensor(inputs) if mean is None else (torch.tensor(inputs).float() - mean) / std


def few(prepared: Prepared, share: float, seed: int) -> Prepared:
    """The same with a share of the labels of the train and the validation split, of each class alike, at least one.

    An epoch passes so often over them that it has the square root of the share of its steps. The test split is whole.
    """
    order = torch.Generator().manual_seed(seed)
    chosen = [[part[rows] for part in split] for split in (prepared.train, prepared.validation)
              for rows in [_draw(split[1], prepared.form.outputs, share, order)]]  # fmt: skip
    passes = max(round(prepared.passes * share**-0.5), 1)
    return replace(prepared, train=chosen[0], validation=chosen[1], passes=passes)


def _draw(labels: Tensor, outputs: int, share: float, order: torch.Generator) -> Tensor:
    """Numbers of rows, a share of each class, where labels are classes."""
    kinds = [(labels == k).nonzero()[:, 0] for k in range(outputs)] if _classed(labels) else [torch.arange(len(labels))]
    return torch.cat(
        [rows[torch.randperm(len(rows), generator=order)[: max(round(share * len(rows)), 1)]] for rows in kinds]
    )


def _classed(labels: Tensor) -> bool:
    """Whether each row has one class."""
    return labels.ndim == 1 and not labels.is_floating_point()


def build(name: str, config: Any, prepared: Prepared, answer: str = "row") -> nn.Module:
    """Step 2: the net for inputs of this form and for so many outputs.

    Raises `ModelError` when it gives other answers than the task asks for.
    """
    module: nn.Module = nets[name].build(config, prepared.form)
    if (given := getattr(module, "answers", "row")) != answer:
        raise ModelError(f"{name} gives {ANSWERS[given]}, but the task asks for {ANSWERS[answer]}.")
    return module


def check_options(name: str, task: str, module: nn.Module, prepared: Prepared, options: Options) -> None:
    """Raises `ModelError` for an option that would not work in this training, or that it would never look at."""
    answers, stated = getattr(module, "answers", "row"), options.stated()
    unfit = (
        (("resample", "vary"), not _classed(prepared.train[1]), "the rows have no class each"),
        (("balance", "smoothing"), prepared.loss != "cross-entropy", "the labels are no classes"),
        (
            ("balance", "smoothing"),
            hasattr(module, "objective") or hasattr(module, "loss"),
            "the net has a loss of its own",
        ),
        (("resample", "vary", "labels", "pretrain"), answers == "move", "the net learns from games that it plays"),
        (("pretrain",), answers != "row", f"the net gives {ANSWERS[answers]}"),
    )
    for keys, so, why in unfit:
        if so and (key := next((key for key in keys if key in stated), None)):
            given = stated[key] if isinstance(stated[key], str) else f"{stated[key]:g}"
            raise ModelError(f"{key}={given} is of no use to {name} on {task}: {why}; leave {key} out.")
