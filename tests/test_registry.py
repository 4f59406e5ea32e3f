"""The registry: versions, aliases, atomicity, and several processes at once."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from airserve.model import Engine, ModelError
from airserve.registry import Registry
from airserve.samples import Samples, load_samples


def linear(weight: float = 2.0) -> bytes:
    """A graph that multiplies its one column."""
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.array([weight], np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def files(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file() and path.suffix != ".db-shm"}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "home")


SAMPLES = Samples(np.arange(6, dtype=np.float32).reshape(6, 1), np.arange(6), calibration=2)


def test_a_registered_model_is_whole(registry: Registry) -> None:
    model = registry.register(
        "double",
        linear(),
        samples=SAMPLES,
        scores={"accuracy": 0.5},
        lineage={"seed": 3, "curve": (1, 2)},
        alias="live",
    )
    assert (model.reference, model.scores, model.lineage) == (
        "double@1/fp32",
        {"accuracy": 0.5},
        {"seed": 3, "curve": [1, 2]},
    )
    assert model.signature.inputs[0].shape == (-1, 1)
    assert Engine(model.path).run([np.array([[4]], np.float32)])[0].item() == 8
    assert model.samples_path is not None
    held = load_samples(model.samples_path).held()
    assert held.inputs.ravel().tolist() == [2, 3, 4, 5]
    assert held.labels is not None
    assert held.labels.tolist() == [2, 3, 4, 5]
    assert registry.get("double@live") == registry.get("double") == registry.get("double@1/fp32") == model


def test_the_same_again_is_the_same_version(registry: Registry) -> None:
    first = registry.register("double", linear(), samples=SAMPLES, lineage={"seed": 1})
    assert registry.register("double", linear(), samples=SAMPLES, lineage={"seed": 1}) == first
    again = registry.register("double", linear(), samples=SAMPLES, scores={"r2": 0.5}, lineage={"seed": 1})
    assert (again.version, again.scores) == (1, {"r2": 0.5})  # scores are no part of it, and the newest are right
    assert registry.register("double", linear(), samples=SAMPLES, lineage={"seed": 1}) == again
    assert registry.register("double", linear(), samples=SAMPLES, lineage={"seed": 2}).version == 2
    assert registry.register("double", linear(), lineage={"seed": 2}).version == 3
    assert registry.register("double", linear(3.0), lineage={"seed": 2}).version == 4
    assert registry.register("other", linear(3.0)).version == 1
    assert [model.reference for model in registry.models()] == [
        *(f"double@{version}/fp32" for version in (4, 3, 2, 1)),
        "other@1/fp32",
    ]


def test_variants_stand_beside_their_parent(registry: Registry) -> None:
    parent = registry.register("double", linear())
    registry.register("double", linear(9.0))
    small = registry.register("double", linear(2.5), variant="int8", version=1)
    assert registry.variants(parent) == [parent, small]
    assert registry.get("double@1/int8") == small
    again = registry.register("double", linear(2.25), variant="int8", version=1, scores={"accuracy": 1})
    assert registry.variants(small) == [parent, again]
    with pytest.raises(ModelError, match="double@1 is another graph; register this one as a new version"):
        registry.register("double", linear(5.0), version=1)
    with pytest.raises(LookupError, match=r"double@2 has no variant 'int8'; it has fp32: .*compress double@2 int8"):
        registry.get("double/int8")


def test_aliases_move(registry: Registry) -> None:
    one = registry.register("double", linear(1.0), alias="live")
    two = registry.register("double", linear(2.0))
    assert registry.aliases(one) == ["live"]
    registry.alias(two, "live")
    registry.alias(two, "best")
    assert registry.aliases(one) == []
    assert registry.aliases(two) == ["best", "live"]
    assert registry.get("double@live") == two
    with pytest.raises(LookupError, match="double has no alias 'lve'; perhaps live"):
        registry.get("double@lve")
    with pytest.raises(ModelError, match="an alias cannot be a number"):
        registry.alias(two, "3")


def test_a_missing_model_says_what_is_near(registry: Registry) -> None:
    with pytest.raises(LookupError, match=r"no model named 'resnet8': the registry in .* is empty"):
        registry.get("resnet8")
    registry.register("resnet8-fashion", linear())
    with pytest.raises(LookupError, match="perhaps resnet8-fashion"):
        registry.get("resnet8-fasion")
    with pytest.raises(LookupError, match="resnet8-fashion has no version 7; it has 1"):
        registry.get("resnet8-fashion@7")


def test_a_failed_registration_leaves_nothing(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.register("double", linear(), lineage={"seed": 1})
    before = files(registry.home)
    for onnx_bytes, options in (
        (b"not a graph", {}),
        (linear(4.0), {"variant": "a/b"}),
        (linear(4.0), {"alias": "7"}),
        (linear(4.0), {"samples": registry.home / "none.npz"}),
        (linear(4.0), {"version": 1, "samples": SAMPLES}),
    ):
        with pytest.raises(ModelError):
            registry.register("double", onnx_bytes, **options)
    import airserve.registry as module

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_point", full)  # after row and files are written
    with pytest.raises(ModelError, match="cannot be written: No space left on device; nothing was kept"):
        registry.register("double", linear(4.0), samples=SAMPLES, alias="live")
    assert files(registry.home) == before
    assert [model.reference for model in registry.models()] == ["double@1/fp32"]


def test_what_a_failed_registration_wrote_goes_while_nobody_else_can_write(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else another process could find the file there, count on it, and lose it."""
    unlink, locked = Path.unlink, []

    def unlinked(path: Path, missing_ok: bool = False) -> None:
        with closing(sqlite3.connect(registry.home / "registry.db", timeout=0)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                locked.append(str(error))
        unlink(path, missing_ok)

    def fails(*given: object) -> None:
        raise ValueError("stop")

    monkeypatch.setattr(Path, "unlink", unlinked)
    monkeypatch.setattr("airserve.registry._point", fails)
    with pytest.raises(ValueError, match="stop"):
        registry.register("linear", linear(), samples=SAMPLES, alias="live")
    assert locked == ["database is locked"] * 2
    assert not list((registry.home / "models").iterdir())


def test_a_file_that_is_no_database_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"something else " * 500)
    with pytest.raises(ModelError, match=r"^the registry \S+registry\.db cannot be read: file is not a database; rest"):
        Registry(tmp_path)
    (tmp_path / "registry.db").unlink()
    model = Registry(tmp_path).register("double", linear())
    whole = (tmp_path / "registry.db").read_bytes()
    (tmp_path / "registry.db").write_bytes(whole[:4096] + b"?" * (len(whole) - 4096))
    with pytest.raises(ModelError, match=r"cannot be read: database disk image is malformed; restore it"):
        Registry(tmp_path).get(model.name)


def test_a_registry_that_may_not_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the image of a container: not a file may be made in the folder, nor one be changed."""
    home = tmp_path / "read only? 100 %"
    made = Registry(home)
    model = made.register("double", linear(), samples=SAMPLES, alias="live")
    made.keep("fact", [1, 2])
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    before = {path: path.stat().st_mtime_ns for path in [home, *home.rglob("*")]}
    registry = Registry(home)
    assert registry.get("double@live") == model
    assert (registry.models(), registry.aliases(model), registry.kept("fact")) == ([model], ["live"], [1, 2])
    with pytest.raises(ModelError, match=r"cannot be written: attempt to write a readonly database; nothing was kept"):
        registry.register("triple", linear(3.0))
    assert {path: path.stat().st_mtime_ns for path in [home, *home.rglob("*")]} == before
    with pytest.raises(ModelError, match=r"the registry in \S+ cannot be written: unable to open database file"):
        Registry(tmp_path / "empty")


def test_a_registry_that_is_there_is_opened_without_a_write_lock(tmp_path: Path) -> None:
    model = Registry(tmp_path).register("double", linear())
    with closing(sqlite3.connect(tmp_path / "registry.db")) as other:
        other.execute("BEGIN IMMEDIATE")
        assert Registry(tmp_path).get("double") == model
        other.rollback()


def test_a_file_that_is_not_onnx_is_named(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "photo.onnx"
    path.write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ModelError, match=r"photo\.onnx cannot be opened as an ONNX model"):
        registry.register("photo", path)
    with pytest.raises(ModelError, match=r"absent\.onnx cannot be opened"):
        registry.register("photo", tmp_path / "absent.onnx")


def test_facts_and_files_are_kept(registry: Registry) -> None:
    assert registry.kept("profile") is None
    registry.keep("profile", {"seconds": [0.5, 1], "site": Path("mast")})
    registry.keep("profile", {"seconds": [0.25]})
    assert Registry(registry.home).kept("profile") == {"seconds": [0.25]}
    path = registry.store(linear(), ".onnx")
    assert registry.store(linear(), ".onnx") == path
    assert onnx.load(path).graph.name == "linear"


def test_a_recipe_finds_its_model(registry: Registry) -> None:
    assert registry.trained("abc") is None
    registry.register("double", linear(), lineage={"recipe": "abc"})
    newer = registry.register("double", linear(3.0), lineage={"recipe": "abc"})
    assert registry.trained("abc") == newer


def test_the_folder_can_be_moved(registry: Registry, tmp_path: Path) -> None:
    registry.register("double", linear(), samples=SAMPLES)
    moved = Registry(registry.home.rename(tmp_path / "elsewhere")).get("double")
    assert moved.path.parent.parent == tmp_path / "elsewhere"
    assert Engine(moved.path).signature == moved.signature


WORKER = """
import sys, numpy as np, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_registry import linear
from airserve.registry import Registry
me = int(sys.argv[2])
registry = Registry(Path(sys.argv[1]))
for i in range(5):
    registry.register("own", linear(100.0 * me + i), alias=f"w{me}-{i}")
    registry.register("shared", linear(i), version=i + 1)
    registry.keep(f"{me}-{i}", i)
"""


def test_processes_register_at_once(tmp_path: Path) -> None:
    """Four processes open a new registry together; nothing is lost, doubled or refused."""
    here = str(Path(__file__).parent)
    workers = [
        subprocess.Popen([sys.executable, "-c", WORKER, str(tmp_path / "home"), str(k), here], stderr=subprocess.PIPE)
        for k in range(4)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=60)
        assert worker.returncode == 0, errors.decode()
    registry = Registry(tmp_path / "home")
    own = [model for model in registry.models() if model.name == "own"]
    assert sorted(model.version for model in own) == list(range(1, 21))
    assert len({model.digest for model in own}) == 20
    assert [model.version for model in registry.models() if model.name == "shared"] == [5, 4, 3, 2, 1]
    for k in range(4):
        assert registry.kept(f"{k}-4") == 4
        weight = Engine(registry.get(f"own@w{k}-3").path).run([np.ones((1, 1), np.float32)])[0].item()
        assert weight == 100.0 * k + 3


def test_the_registry_loads_no_torch_and_no_engine() -> None:
    heavy = "torch", "onnx", "onnxruntime", "numba"
    code = f"import sys, airserve.registry; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
