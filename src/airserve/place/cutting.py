"""Where a graph can be cut into head and tail, and the two graphs. Kang et al. 2017 (Neurosurgeon), ONNX only.

A cut is a tensor that alone is live in topological order. What hangs on constants alone is not live: initialisers,
and in a QDQ graph the weights' DequantizeLinear. Both halves get their own copy of the constants that they use.
Raw, the two make what the whole makes; only at a float inside a QDQ pair an engine fuses other nodes and may round a
value one step away, and those cuts are shadowed by the uint8 beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from airserve.model import Array, ModelError

LAYERS = frozenset(
    {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "ConvInteger", "MatMulInteger"}
)


@dataclass(frozen=True)
class Cut:
    """A tensor at which a graph is cut; `shape` is of one row, `bytes` what a row takes as it is.

    `shadowed`: a cut with as many layers before it carries less, or the same and lies later; or the input does, or
    the answer. Planning leaves it out: it is before an activation, behind padding, or beside the uint8 of a QDQ
    graph as a float.
    """

    name: str  # readable, unique in the graph, stable
    tensor: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    nodes: int  # live nodes in the head
    shadowed: bool


@dataclass(frozen=True)
class Scale:
    """How a float tensor travels as uint8: q = round(x / step) + zero, along `axis` when per channel."""

    step: Array  # float32, shape () or (channels,)
    zero: Array  # uint8, the same shape
    axis: int = 1

    @classmethod
    def between(cls, low: Array, high: Array) -> Scale:
        """The scale that covers [low, high] and zero, by channel when they are arrays of shape (channels,).

        >>> float(Scale.between(np.float32(0), np.float32(5.1)).step)
        0.019999999552965164
        """
        low = np.minimum(np.asarray(low, np.float32), 0)
        high = np.maximum(np.asarray(high, np.float32), 0)
        step = np.asarray((high - low) / 255, np.float32)
        step = np.asarray(np.where(step > 0, step, 1), np.float32)
        zero = np.asarray(np.clip(np.rint(-low / step), 0, 255), np.uint8)
        return cls(step, zero)

    def encode(self, x: Array) -> Array:
        """What QuantizeLinear gives for x, shape (n, channels, ...): uint8, the same shape."""
        along = (1, -1, *(1,) * (x.ndim - 2)) if self.step.ndim else ()
        step, zero = self.step.reshape(along), self.zero.reshape(along)
        q: Array = np.clip(np.rint(x / step) + zero, 0, 255).astype(np.uint8)
        return q


def read(model: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """The graph of a file. Raises `ModelError` when it is not ONNX."""
    if isinstance(model, onnx.ModelProto):
        return model
    try:
        return onnx.load(str(model))
    except Exception as error:
        raise ModelError(f"{Path(model).name} cannot be read as an ONNX graph: {str(error)[:120]}.") from None


def cuts(model: str | Path | onnx.ModelProto) -> list[Cut]:
    """All single-tensor cuts in topological order, the input and the outputs aside.

    A tensor whose shape beyond the batch axis cannot be inferred is no cut. A graph of several inputs has cuts only
    where the last of them has been used. Raises `ModelError` when the file is not ONNX.
    """
    graph = read(model).graph
    live = {value.name for value in _inputs(graph)}
    if not live:
        return []
    shapes = _shapes(read(model))
    nodes = [node for node in graph.node if _follow(node, live)]
    last = {name: i for i, node in enumerate(nodes) for name in _reads(node)}
    outputs = {value.name for value in graph.output}
    for name in outputs:
        last[name] = len(nodes)
    inputs = {value.name for value in _inputs(graph)}
    sent = sum(prod(map(abs, shape)) * np.dtype(dtype).itemsize for dtype, shape in map(shapes.__getitem__, inputs))
    open_now = {name for name in inputs if name in last}
    batch = _batch(graph)
    found: list[Cut] = []
    names: set[str] = set()
    for i, node in enumerate(nodes):
        open_now |= {name for name in node.output if last.get(name, -1) > i}
        open_now = {name for name in open_now if last[name] > i}
        if len(open_now) != 1 or (tensor := next(iter(open_now))) not in node.output or tensor in outputs:
            continue
        dtype, shape = shapes.get(tensor, ("", ()))
        if not dtype or not shape or shape[0] not in (-1, batch) or min(shape[1:], default=1) < 1:
            continue
        row = tuple(shape[1:])
        size = prod(row) * np.dtype(dtype).itemsize
        name = _readable(tensor, node.op_type, i, names)
        found.append(Cut(name, tensor, row, dtype, size, i + 1, False))
    return _shadowed(found, nodes, sent)


def _shadowed(found: list[Cut], nodes: list[onnx.NodeProto], sent: int) -> list[Cut]:
    """The cuts, with those marked that another one with as many layers before it makes needless."""
    layers = [i for i, node in enumerate(nodes) if node.op_type in LAYERS] or list(range(len(nodes)))
    before = [sum(i < cut.nodes for i in layers) for cut in found]
    least: dict[int, int] = {0: sent}  # layers before -> bytes
    for cut, depth in zip(found, before, strict=True):
        least[depth] = min(least.get(depth, cut.bytes), cut.bytes)
    last = {(depth, cut.bytes): cut.name for cut, depth in zip(found, before, strict=True)}
    return [
        replace(
            cut,
            shadowed=depth == len(layers)
            or cut.bytes > least[depth]
            or (depth == 0 and cut.bytes >= sent)
            or last[depth, cut.bytes] != cut.name,
        )
        for cut, depth in zip(found, before, strict=True)
    ]


def split(
    model: str | Path | onnx.ModelProto, cut: Cut, encoding: str = "raw", scale: Scale | None = None
) -> tuple[bytes, bytes]:
    """Head and tail as ONNX files; the head's output and the tail's input have the same name.

    With encoding "int8" the head ends with QuantizeLinear, the tail starts with DequantizeLinear, and uint8 travels;
    `scale` comes from calibration rows. Raises `ModelError` for an encoding that the tensor cannot have.
    """
    proto = read(model)
    if encoding == "raw":
        head = _part(proto, [], [cut.tensor], {}, [_value(proto, cut.tensor, cut)])
        tail = _part(proto, [cut.tensor], [v.name for v in proto.graph.output], {cut.tensor: cut}, proto.graph.output)
        return head.SerializeToString(), tail.SerializeToString()
    if encoding != "int8" or cut.dtype != "float32" or scale is None:
        raise ModelError(
            f"the cut {cut.name} carries {cut.dtype} and cannot travel as {encoding!r}; choose raw, "
            "or int8 for a float32 tensor of a Model with samples."
        )
    wire = f"{cut.tensor}_uint8"
    encode, decode, constants = _scaling_nodes(cut, scale, wire)
    sent = _value(proto, wire, cut, np.dtype("uint8"))
    head = _part(proto, [], [cut.tensor], {}, [sent])
    head.graph.node.append(encode)
    head.graph.initializer.extend(constants)
    tail = _part(proto, [cut.tensor], [v.name for v in proto.graph.output], {}, proto.graph.output)
    nodes = [decode, *tail.graph.node]
    del tail.graph.node[:]
    tail.graph.node.extend(nodes)
    tail.graph.initializer.extend(constants)
    tail.graph.input.append(sent)
    return head.SerializeToString(), tail.SerializeToString()


def _scaling_nodes(cut: Cut, scale: Scale, wire: str) -> tuple[onnx.NodeProto, onnx.NodeProto, list[onnx.TensorProto]]:
    """QuantizeLinear to `wire`, DequantizeLinear from it, and the constants that both need."""
    constants = [
        numpy_helper.from_array(np.asarray(scale.step, np.float32), f"{wire}_step"),
        numpy_helper.from_array(np.asarray(scale.zero, np.uint8), f"{wire}_zero"),
    ]
    attributes = {"axis": scale.axis} if np.ndim(scale.step) else {}
    ends = [constant.name for constant in constants]
    encode = helper.make_node("QuantizeLinear", [cut.tensor, *ends], [wire], **attributes)
    decode = helper.make_node("DequantizeLinear", [wire, *ends], [cut.tensor], **attributes)
    return encode, decode, constants


def scaling(cut: Cut, scale: Scale) -> tuple[bytes, bytes]:
    """The two encodings alone, float32 to uint8 and back, as ONNX files: what they cost can be measured."""
    wire = f"{cut.tensor}_uint8"
    encode, decode, constants = _scaling_nodes(cut, scale, wire)
    shape = ["batch", *cut.shape]
    plain = helper.make_tensor_value_info(cut.tensor, onnx.TensorProto.FLOAT, shape)
    sent = helper.make_tensor_value_info(wire, onnx.TensorProto.UINT8, shape)
    made = []
    for node, given, got in ((encode, plain, sent), (decode, sent, plain)):
        graph = helper.make_graph([node], "scaling", [given], [got], constants)
        made.append(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    return made[0].SerializeToString(), made[1].SerializeToString()


def tapped(model: str | Path | onnx.ModelProto, chosen: Sequence[Cut]) -> bytes:
    """The graph with the cuts' tensors as its outputs, in that order: one run shows what every cut would carry."""
    proto = read(model)
    values = [_value(proto, cut.tensor, cut) for cut in chosen]
    made: bytes = _part(proto, [], [cut.tensor for cut in chosen], {}, values).SerializeToString()
    return made


def working_bytes(model: str | Path | onnx.ModelProto) -> int:
    """The most bytes of tensors that are live at once for one row, constants aside."""
    proto = read(model)
    live = {value.name for value in _inputs(proto.graph)}
    shapes = _shapes(proto)
    nodes = [node for node in proto.graph.node if _follow(node, live)]
    last = {name: i for i, node in enumerate(nodes) for name in _reads(node)}
    size = {name: prod(map(abs, shape)) * np.dtype(dtype).itemsize for name, (dtype, shape) in shapes.items()}
    now = {value.name for value in _inputs(proto.graph)}
    most = 0
    for i, node in enumerate(nodes):
        now |= set(node.output)
        most = max(most, sum(size.get(name, 0) for name in now))
        now = {name for name in now if last.get(name, -1) > i}
    return most


def _inputs(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    constant = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in constant]


def _reads(node: onnx.NodeProto) -> set[str]:
    """Tensors that a node needs, those that its subgraphs capture included."""
    names = set(filter(None, node.input))
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs] if attribute.type in (5, 10) else ():
            made = {v.name for v in graph.input} | {t.name for t in graph.initializer}
            made |= {name for inner in graph.node for name in inner.output}
            names |= {name for inner in graph.node for name in _reads(inner)} - made
            names |= {v.name for v in graph.output} - made
    return names


def _follow(node: onnx.NodeProto, live: set[str]) -> bool:
    """Whether a node depends on the graph's inputs; its outputs then do too."""
    if _reads(node) & live:
        live.update(filter(None, node.output))
        return True
    return False


def _shapes(proto: onnx.ModelProto) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Numpy dtype name and shape (-1 where free) of every tensor that can be inferred."""
    try:
        graph = onnx.shape_inference.infer_shapes(proto).graph
    except Exception as error:
        raise ModelError(f"the shapes of {proto.graph.name or 'the graph'} cannot be inferred: {error}.") from None
    found = {}
    for value in [*graph.value_info, *graph.input, *graph.output]:
        tensor = value.type.tensor_type
        if not tensor.elem_type or not tensor.HasField("shape"):
            continue
        shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
        found[value.name] = (helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)
    return found


def _batch(graph: onnx.GraphProto) -> int:
    """The batch size that the first input fixes, -1 where it is free."""
    shape = _inputs(graph)[0].type.tensor_type.shape.dim
    return shape[0].dim_value if shape and shape[0].HasField("dim_value") else -1


def _value(proto: onnx.ModelProto, name: str, cut: Cut, dtype: np.dtype[np.uint8] | None = None) -> onnx.ValueInfoProto:
    batch = _batch(proto.graph)
    kind = helper.np_dtype_to_tensor_dtype(dtype or np.dtype(cut.dtype))
    value: onnx.ValueInfoProto = helper.make_tensor_value_info(
        name, kind, ["batch" if batch < 0 else batch, *cut.shape]
    )
    return value


def _part(
    proto: onnx.ModelProto,
    given: Sequence[str],
    wanted: Sequence[str],
    inputs: dict[str, Cut],
    outputs: Iterable[onnx.ValueInfoProto],
) -> onnx.ModelProto:
    """The part of a graph that makes `wanted` when `given` are there, with the constants that it uses."""
    graph = proto.graph
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needed, todo, chosen = set[str](), list(wanted), set[int]()
    while todo:
        name = todo.pop()
        if name in needed or name in given:
            continue
        needed.add(name)
        if name in maker and maker[name] not in chosen:
            chosen.add(maker[name])
            todo.extend(_reads(graph.node[maker[name]]))
    part = helper.make_graph(
        [graph.node[i] for i in sorted(chosen)],
        graph.name or "part",
        [v for v in _inputs(graph) if v.name in needed] + [_value(proto, name, cut) for name, cut in inputs.items()],
        list(outputs),
        [tensor for tensor in graph.initializer if tensor.name in needed],
    )
    part.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in needed)
    made = helper.make_model(part, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    made.functions.extend(proto.functions)
    return made


def _readable(tensor: str, op: str, at: int, taken: set[str]) -> str:
    """A short name: the last words of the tensor's path, or the operator and its place; unique among `taken`."""
    text = re.sub(
        r"(_output)?_\d+(_(Quantize|Dequantize)Linear_Output)?$|_(Quantize|Dequantize)Linear_Output$", "", tensor
    )
    words: list[str] = []
    before = ""
    for part in text.strip("/").split("/"):  # torch repeats the path in every part: /blocks/blocks.3/blocks.3.0
        words += re.findall(r"[a-z0-9]+", part.removeprefix(f"{before}.").lower())
        before = part
    words = [word for i, word in enumerate(words) if word not in words[i - 1 : i]]
    suffix = {"QuantizeLinear": "-q", "DequantizeLinear": "-dq"}.get(op, "")
    name = "-".join(words[-6:]) + suffix if any(w[0].isalpha() for w in words) else f"{op.lower()}-{at}"
    while name in taken:
        name = f"{name}-{at}"
    taken.add(name)
    return name
