"""A torch module with an example of its inputs, a function of a Python file that gives both, or an exported program.

`torch.export` writes programs as .pt2; their weights are pickles, as torch's manual warns, so they need trust.
"""

import importlib.util
import io
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from airserve.errors import UserError
from airserve.learn.importers import Foreign, Given, agree, refuse_code, sentence, stem
from airserve.model import Array, Engine, ModelError

SUFFIXES = (".pt2", ".pt", ".pth", ".ckpt")
PACKAGE = "torch"
OPSET = 17
SHOW = "give a file and its function: `net.py:make`, which returns the module and an example of its inputs"


def takes(path: str) -> bool:
    file, _, function = path.rpartition(":")
    return path.endswith(SUFFIXES) or (file.endswith(".py") and function.isidentifier()) or path.endswith(".py")


def read(source: Any, given: Given) -> Foreign:
    """A module as a graph whose first axis is free. Raises `ModelError`, in one sentence, for what is none.

    Two exporters are tried, the one that follows a run of the example, which is quick, then the one that reads the
    program; the first whose graph agrees with the module on batches of other sizes is taken.
    """
    try:
        import torch
    except ModuleNotFoundError:
        raise UserError("a torch module needs torch: `pip install 'airserve[learn]'`.") from None

    module, example, name = source, given.example, stem(source)
    if isinstance(source, str | Path):
        module, example, name = opened(str(source), given)
    if isinstance(module, torch.export.ExportedProgram):
        return program(module, name)
    if isinstance(module, Mapping):
        raise ModelError(f"{name} holds weights without the module that they are for; {SHOW}.")
    if not isinstance(module, torch.nn.Module):
        raise ModelError(f"{name} is a {type(module).__name__} and no torch module; {SHOW}.")
    if example is None:
        raise ModelError(f"{name} comes without an example of its inputs; give --samples FILE.npz, or {SHOW}.")
    module.eval().cpu()
    examples = arrays(example, name)
    return traced(module, examples, name, [f"input{k}" if len(examples) > 1 else "input" for k in range(len(examples))])


def opened(source: str, given: Given) -> tuple[Any, Any, str]:
    """What a path holds, an example of its inputs, and its name."""
    import torch

    file, _, function = source.rpartition(":")
    if not source.endswith(SUFFIXES):
        if not file:
            raise ModelError(f"{source} does not say which function makes the module: name it, `{source}:make`.")
        made = called(Path(file), function)
        module, example = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
        return module, given.example if given.example is not None else example, function.replace("_", "-")
    path = Path(source)
    if not path.is_file():
        raise ModelError(f"{path} is not there.")
    if not given.trust:
        raise refuse_code(path, SHOW.replace("give", "instead give"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if path.suffix == ".pt2":
                return torch.export.load(path), None, path.stem
            return torch.load(path, map_location="cpu", weights_only=False), given.example, path.stem
    except Exception as error:
        raise ModelError(f"{path.name} cannot be opened as a torch model: {sentence(error)}.") from None


def called(path: Path, function: str) -> Any:
    """What a function of a Python file returns, called without arguments. Raises `ModelError`."""
    spec = importlib.util.spec_from_file_location(f"airserve_import_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ModelError(f"{path} is not there.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ModelError(f"{path} does not run: {type(error).__name__}: {sentence(error)}.") from None
    if not callable(make := getattr(module, function, None)):
        there = [name for name, value in vars(module).items() if callable(value) and value.__module__ == spec.name]
        raise ModelError(f"{path} has no function {function!r}; it has {', '.join(there) or 'none'}.")
    try:
        return make()
    except Exception as error:
        raise ModelError(f"{function} of {path} fails: {type(error).__name__}: {sentence(error)}.") from None


def arrays(example: Any, name: str) -> tuple[Array, ...]:
    """An example's inputs as arrays, one for each. Raises `ModelError` when they do not have as many rows."""
    parts = example if isinstance(example, tuple | list) else (example,)
    found = tuple(np.ascontiguousarray(part.detach().numpy() if hasattr(part, "detach") else part) for part in parts)
    rows = {len(array) if array.ndim else 0 for array in found}
    if len(rows) != 1 or 0 in rows:
        shapes = ", ".join(str(list(array.shape)) for array in found) or "nothing"
        raise ModelError(f"the example of {name} must have rows, as many for each input; it is of {shapes}.")
    return found


def traced(
    module: Any,
    examples: tuple[Array, ...],
    name: str,
    inputs: Sequence[str],
    free: Sequence[int] = (),
    exporters: Sequence[bool] = (False, True),
    **lineage: Any,
) -> Foreign:
    """A module as a Foreign, by the first exporter that agrees; `exporters` says of each whether it is the slow one.

    `free` are axes, beside the first, that are free.
    """
    import torch

    def answer(rows: Sequence[Array]) -> list[Array]:
        with torch.no_grad():
            return outputs(module(*[torch.tensor(array) for array in rows]))

    rows = tuple(np.concatenate([array, array])[:2] if len(array) < 2 else array for array in examples)
    try:
        names = [f"output{k}" if k else "output" for k in range(len(answer(rows)))]
    except Exception as error:
        shapes = ", ".join(f"{array.dtype} of {list(array.shape)}" for array in rows)
        raise ModelError(f"{name} does not take its example, {shapes}: {sentence(error)}.") from None
    why = ""
    for dynamo in exporters:
        try:
            graph = exported(module, rows, inputs, names, free, dynamo)
            facts = {"parameters": sum(weight.numel() for weight in module.parameters()), "torch": torch.__version__}
            foreign = Foreign(name, graph, rows, answer, lineage={**facts, **lineage})
            agree(foreign, Engine(graph))
            return foreign
        except ModelError as error:
            why = why or sentence(error)
        except Exception as error:  # exporters raise whatever they meet
            why = why or f"{type(error).__name__}: {sentence(error)}"
    raise ModelError(f"{name} cannot be exported so that it answers as in torch: {why}.")


def outputs(found: Any) -> list[Array]:
    """What a module returns, as arrays: a tensor, or several in a sequence or a mapping."""
    parts = found.values() if isinstance(found, Mapping) else found if isinstance(found, tuple | list) else [found]
    return [part.detach().numpy() for part in parts]


def exported(
    module: Any, rows: Sequence[Array], inputs: Sequence[str], names: Sequence[str], free: Sequence[int], dynamo: bool
) -> bytes:
    """A module as ONNX, by a trace of the example's run, or with `dynamo` by torch.export."""
    import torch

    from airserve.learn.exporting import tidy

    axes = {
        name: {0: "n", **{k: f"axis{k}" for k in free if k < array.ndim}}
        for name, array in zip(inputs, rows, strict=True)
    }
    given = tuple(torch.tensor(array) for array in rows)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # what exporters say of themselves; the graph is checked
        if not dynamo:
            file = io.BytesIO()
            torch.onnx.export(
                module, given, file, dynamo=False, opset_version=OPSET, input_names=list(inputs),
                output_names=list(names), dynamic_axes={**axes, **{name: {0: "n"} for name in names}},
            )  # fmt: skip
            return tidy(file.getvalue())
        shapes = tuple(dict.fromkeys(axes[name], torch.export.Dim.DYNAMIC) for name in inputs)
        return saved(torch.export.export(module, given, dynamic_shapes=shapes), list(inputs), list(names))


def saved(program: Any, inputs: Any = None, names: Any = None) -> bytes:
    """An exported program as ONNX."""
    import torch

    from airserve.learn.exporting import tidy

    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)  # it tells of packages that no model here wants
    try:
        made = torch.onnx.export(
            program, dynamo=True, external_data=False, verbose=False, input_names=inputs, output_names=names
        )
    finally:
        quiet.setLevel(level)
    with tempfile.TemporaryDirectory(prefix="airserve-") as folder:
        path = Path(folder) / "program.onnx"
        made.save(path)
        return tidy(path.read_bytes())


def program(exported: Any, name: str) -> Foreign:
    """An exported program with the example that it brings. Raises `ModelError` when its batch is not free."""
    import torch

    if not exported.example_inputs or exported.example_inputs[1]:
        raise ModelError(f"{name} has no example inputs, or has named ones; export it again with a tuple of tensors.")
    examples = arrays(exported.example_inputs[0], name)
    held = {node.name: node.meta["val"].shape for node in exported.graph.nodes if node.op == "placeholder"}
    if any(isinstance(held[key][0], int) for key in exported.graph_signature.user_inputs):
        raise ModelError(
            f"{name} takes batches of {len(examples[0])} only; export it again with "
            "`dynamic_shapes=({0: torch.export.Dim('n')},)`."
        )
    module = exported.module()

    def answer(rows: Sequence[Array]) -> list[Array]:
        with torch.no_grad():
            return outputs(module(*[torch.tensor(array) for array in rows]))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph = saved(exported)
        except Exception as error:
            raise ModelError(f"{name} cannot be exported to ONNX: {sentence(error)}.") from None
    weights = sum(weight.numel() for weight in exported.state_dict.values())
    return Foreign(name, graph, examples, answer, lineage={"parameters": weights, "torch": torch.__version__})
