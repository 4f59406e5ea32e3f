"""Model and Function: what is trained, and what runs on a site; the one place that opens an engine session."""

from __future__ import annotations

import ctypes
import io
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from airserve.errors import UserError

Array = NDArray[Any]
Run = Callable[[Sequence[Array]], list[Array]]

ENGINE_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16",
                "tensor(bool)": "bool", "tensor(string)": "bytes"}  # fmt: skip

BFLOAT16 = np.dtype([("bfloat16", "<u2")])  # numpy has none of its own: the upper half of a float32
BFLOAT16_ELEMENT = 16  # onnx.TensorProto.BFLOAT16


class ModelError(UserError, ValueError):
    """A model that cannot be used as asked; the message is one sentence for the user."""


@dataclass(frozen=True)
class Tensor:
    """Name, numpy dtype name ("bytes" for byte strings) and shape (-1 where free) of an input or output."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def unserved(tensor: Tensor) -> str:
    """Why an input or output that no protocol carries cannot be served, and what to do.

    >>> unserved(Tensor("z", "complex64", (-1,)))
    'z is complex64, which cannot be served; export it again with tensors of numbers, booleans or strings'
    """
    instead = "tensors of numbers, booleans or strings"
    if "map(" in tensor.dtype:  # as a classifier of skl2onnx answers by default
        instead = "options={'zipmap': False}, as skl2onnx's to_onnx takes them"
    return f"{tensor.name} is {tensor.dtype}, which cannot be served; export it again with {instead}"


@dataclass(frozen=True)
class Signature:
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Model:
    """A trained graph (ONNX), a version in the registry. A variant shares name and version with its parent."""

    name: str
    version: int
    variant: str
    path: Path
    digest: str  # SHA-256 of the ONNX file
    signature: Signature
    samples_path: Path | None = None
    scores: Mapping[str, float] = field(default_factory=dict)  # on the held samples or the test split
    lineage: Mapping[str, Any] = field(default_factory=dict)  # net, task, seed, data fingerprint, parent, times

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}/{self.variant}"


@dataclass(frozen=True)
class Runtime:
    """Which engine opens a graph. `precision` is in what it may compute: "" as the graph says, or "bf16"."""

    engine: Literal["onnxruntime", "openvino"] = "onnxruntime"
    precision: Literal["", "bf16"] = ""
    threads: int = 1

    def __str__(self) -> str:
        return " ".join(filter(None, (self.engine, self.precision, f"{self.threads} threads" * (self.threads > 1))))


@dataclass(frozen=True)
class Function:
    """What runs on a Site: a Model, a head, a tail, or a pre-process ("jpeg": bytes to uint8 pixels).

    `padded_s` emulates a slower site: compute takes at least so long; None leaves it as it is.
    """

    name: str
    kind: Literal["model", "head", "tail", "preprocess"]
    path: str = ""
    padded_s: float | None = None
    runtime: Runtime = Runtime()


_opening = threading.Lock()


@cache
def _share_memory() -> None:
    """One arena for all engines of the process, which doubles as it grows.

    With an arena of each engine memory grows with every Model that replaces another; one that grows by what is asked
    holds the sum of all sizes that came in rising order. Without one a run asks the system for its memory and gives it
    back: ten megabytes of EfficientNet-Lite0 cost a third of its time.
    """
    import onnxruntime as ort

    kind = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    doubling = ort.OrtArenaCfg(0, 0, -1, -1)  # no bound, kNextPowerOfTwo, the defaults of the rest
    ort.create_and_register_allocator(kind, doubling)


# The smallest graph, y = x, as ONNX's protobuf: arenas shrink at the end of a run, so one is needed that costs nothing.
_IDENTITY = (
    b"\x08\x08"  # version 8 of the format
    b':3\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01g'
    b"Z\r\n\x01x\x12\x08\n\x06\x08\x01\x12\x02\n\x00"  # x and y are float32 of shape (n,)
    b"b\r\n\x01y\x12\x08\n\x06\x08\x01\x12\x02\n\x00"
    b"B\x02\x10\r"  # opset 13
)


@cache
def _shrinking() -> tuple[Any, Any]:
    """A session, and the options of a run with which the arena shrinks."""
    import onnxruntime as ort

    options = ort.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return Engine(_IDENTITY).session, options


def shrink_memory() -> None:
    """Give back the blocks of the engines' arena that no run and no weight needs just now; a run may ask for them anew.

    Else it keeps what the largest runs needed, of Models that are gone as well.
    """
    session, options = _shrinking()
    session.run(None, {"x": np.zeros(1, np.float32)}, options)


@final
class Engine:
    """An ONNX file opened by onnxruntime: one thread, no spinning, so that profile and serve cannot differ."""

    def __init__(self, source: str | Path | bytes, threads: int = 1) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        with _opening:
            _share_memory()
        options.add_session_config_entry("session.use_env_allocators", "1")
        options.log_severity_level = 3
        target = source if isinstance(source, bytes) else str(source)
        try:
            self.session = ort.InferenceSession(target, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            what = "these bytes" if isinstance(source, bytes) else Path(source).name
            reason = str(error).strip().splitlines()[0].split(" : ")[-1][:160].rstrip(".")
            if not isinstance(source, bytes) and not Path(source).exists():
                reason = "there is no such file"
            raise ModelError(f"{what} cannot be opened as an ONNX model: {reason}.") from None
        self.signature = Signature(_tensors(self.session.get_inputs()), _tensors(self.session.get_outputs()))
        # `run` of the Python class looks at names and owners again, a quarter of a small model's time; what it wraps
        # takes the same arguments.
        self._run = getattr(getattr(self.session, "_sess", None), "run", None) or self.session.run
        if any(t.dtype == "bfloat16" for t in (*self.signature.inputs, *self.signature.outputs)):
            self._run = self._run_values
        self._inputs = [tensor.name for tensor in self.signature.inputs]
        self._outputs = [tensor.name for tensor in self.signature.outputs]
        self._strings = {k for k, tensor in enumerate(self.signature.inputs) if tensor.dtype == "bytes"}

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs in the signature's order, for inputs in the signature's order."""
        if self._strings:
            inputs = [_text(array) if k in self._strings else array for k, array in enumerate(inputs)]
        return self._run(self._outputs, dict(zip(self._inputs, inputs, strict=True)), None)  # type: ignore[no-any-return]

    def _run_values(self, outputs: Sequence[str], feed: Mapping[str, Array], _options: None) -> list[Array]:
        """As `run` of the session, with bfloat16, for which its arrays have no type."""
        import onnxruntime as ort

        values = {}
        for name, array in feed.items():
            if array.dtype == BFLOAT16:
                bits = np.ascontiguousarray(array.view(np.uint16))
                values[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, BFLOAT16_ELEMENT)
            else:
                values[name] = ort.OrtValue.ortvalue_from_numpy(array)
        return [_array(value) for value in self.session.run_with_ort_values(list(outputs), values)]


@final
class OpenVino:
    """An ONNX file opened by OpenVINO (extra `openvino`): one stream, computed on the thread that calls.

    The signature is onnxruntime's, for OpenVINO may rename what it rewrites; outputs come in the same order.
    Raises `ModelError`.
    """

    def __init__(self, source: str | Path | bytes, runtime: Runtime) -> None:
        try:
            import openvino
        except ImportError:
            raise ModelError("openvino is not installed: pip install 'airserve[openvino]'.") from None
        self.signature = Engine(source).signature
        for tensor in (*self.signature.inputs, *self.signature.outputs):
            if tensor.dtype in ("bytes", "bfloat16"):
                raise ModelError(f"{tensor.name} is {tensor.dtype}, which is not run by openvino; use onnxruntime.")
        properties = {
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": runtime.threads,
            "INFERENCE_PRECISION_HINT": runtime.precision or "f32",
        }
        core = openvino.Core()
        try:
            self._compiled = core.compile_model(
                core.read_model(model=source if isinstance(source, bytes) else str(source)), "CPU", properties
            )
        except RuntimeError as error:
            what = "these bytes" if isinstance(source, bytes) else Path(source).name
            reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
            raise ModelError(f"{what} cannot be opened by openvino: {reason.strip()[:160]}.") from None
        self._requests = threading.local()  # one serves one thread

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Outputs in the signature's order, for inputs in the signature's order."""
        request = getattr(self._requests, "one", None)
        if request is None:
            request = self._requests.one = self._compiled.create_infer_request()
        found = request.infer(dict(enumerate(inputs)), share_inputs=True)
        return [found[k] for k in range(len(self.signature.outputs))]


def open_engine(source: str | Path | bytes, runtime: Runtime | None = None) -> Engine | OpenVino:
    """A graph opened by the engine that a Runtime names. Raises `ModelError`."""
    runtime = runtime or Runtime()
    if runtime.engine == "openvino":
        return OpenVino(source, runtime)
    return Engine(source, runtime.threads)


def _array(value: Any) -> Array:
    if value.element_type() != BFLOAT16_ELEMENT:
        made: Array = value.numpy()
        return made
    shape = value.shape()
    raw = ctypes.string_at(value.data_ptr(), 2 * math.prod(shape))
    return np.frombuffer(raw, BFLOAT16).reshape(shape)


def _text(array: Array) -> Array:
    """Byte strings as text: onnxruntime would take the bytes b"a" for the text "b'a'"."""
    try:
        text = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel()]
    except UnicodeDecodeError:
        raise ModelError("a text input is not UTF-8; ONNX strings hold text, so encode it before sending.") from None
    return np.array([*text, None], dtype=object)[:-1].reshape(array.shape)


def _tensors(values: Sequence[Any]) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(
            value.name,
            ENGINE_TYPES.get(value.type, _element(value.type)),
            tuple(axis if isinstance(axis, int) else -1 for axis in value.shape),
        )
        for value in values
    )


def _element(kind: str) -> str:
    """What a tensor of the engine holds; anything else by the engine's own name for it."""
    return kind.removeprefix("tensor(").removesuffix(")") if kind.startswith("tensor(") else kind


def decode_jpeg(inputs: Sequence[Array]) -> list[Array]:
    """Byte strings, shape (n,), to RGB pixels, uint8, shape (n, height, width, 3)."""
    from PIL import Image

    try:
        return [np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in inputs[0]])]
    except (OSError, ValueError) as error:
        raise ModelError(f"the picture cannot be decoded: {str(error)[:80]}.") from None


def small_jpeg() -> list[Array]:
    """What `decode_jpeg` takes: a black picture of 8 by 8."""
    from PIL import Image

    Image.new("RGB", (8, 8)).save(picture := io.BytesIO(), "JPEG")
    return [np.array([picture.getvalue()], dtype=object)]


PREPROCESS: dict[str, tuple[Signature, Run, Callable[[], list[Array]]]] = {  # the last: an example of its input
    "jpeg": (
        Signature((Tensor("image", "bytes", (-1,)),), (Tensor("pixels", "uint8", (-1, -1, -1, 3)),)),
        decode_jpeg,
        small_jpeg,
    ),
}


def open_function(function: Function) -> tuple[Signature, Run]:
    """The signature of a Function and the callable that runs it (without padding).

    A pre-process has run once by then: its library opens in tenths of a second, for which no request is to wait.
    """
    if function.kind == "preprocess":
        signature, run, example = PREPROCESS[function.name]
        run(example())
        return signature, run
    engine = open_engine(function.path, function.runtime)
    return engine.signature, engine.run
