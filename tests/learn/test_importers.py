"""The exam that every importer sits: the graph answers as its source, at other shapes; and what each refuses."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

os.environ["KERAS_BACKEND"] = "torch"

from airserve.errors import UserError
from airserve.learn.importers import Foreign, agree, importers, which
from airserve.learn.importing import import_model
from airserve.model import Engine, ModelError
from airserve.registry import Registry
from airserve.samples import load_samples

keras = pytest.importorskip("keras")
pytest.importorskip("skl2onnx")
skops = pytest.importorskip("skops.io")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras on torch and numpy 2
RNG = np.random.default_rng(0)
FOUR = RNG.normal(size=(40, 4)).astype(np.float32)
CLASSES = (FOUR[:, 0] > 0).astype(int) + (FOUR[:, 1] > 0.5)

MAKE = '''
import torch
from torch import nn

class Two(nn.Module):
    """Two inputs, a branch on data that a trace would lose, two outputs."""
    def __init__(self):
        super().__init__()
        self.of = nn.Linear(4, 3)
    def forward(self, x, y):
        return self.of(x) + y, torch.relu(x)

def two():
    torch.manual_seed(0)
    return Two(), (torch.randn(5, 4), torch.randn(5, 3))

def conv():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    return net, torch.randn(2, 1, 8, 8)

def bare():
    return nn.Linear(4, 3)

def fails():
    raise ValueError("no weights here")

def number():
    return 3, torch.zeros(2, 4)

class Batched(nn.Module):
    def forward(self, x):
        return x * int(x.shape[0])

def batched():
    return Batched(), torch.ones(2, 4)
'''


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "net.py"
    path.write_text(MAKE)
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def conv() -> Any:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [layers.Input((8, 8, 1)), layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization(), layers.Flatten(),
         layers.Dense(3, activation="softmax")], name="conv",
    )  # fmt: skip


def pipeline() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression()).fit(FOUR, np.array(["low", "mid", "top"])[CLASSES])


def encoder(folder: Path, kind: str = "BertModel", **settings: Any) -> tuple[Path, Any]:
    """A tiny net of transformers with drawn weights, saved in its layout."""
    torch.manual_seed(0)
    config = {"BertModel": transformers.BertConfig, "Roberta": transformers.RobertaConfig}.get(
        kind, getattr(transformers, kind.split("For")[0].removesuffix("Model") + "Config")
    )
    small = {"vocab_size": 50, "max_position_embeddings": 40, "pad_token_id": 1 if "Roberta" in kind else 0}
    if kind.startswith("Distil"):
        shape = {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 4}
    else:
        shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    net = getattr(transformers, kind)(config(**small, **shape, **settings)).eval()
    for weight in net.parameters():  # biases and norms begin at 0 and 1, where a mistake would not show
        weight.data += 0.1 * torch.randn_like(weight)
    net.save_pretrained(folder)
    return folder, net


def sources(tmp_path: Path, made: Path) -> dict[str, Any]:
    """One source of each importer."""
    conv().save(tmp_path / "conv.keras")
    skops.dump(pipeline(), tmp_path / "levels.skops")
    torch.onnx.export(
        nn.Linear(4, 3), (torch.zeros(1, 4),), tmp_path / "linear.onnx", dynamo=False, input_names=["x"],
        dynamic_axes={"x": {0: "n"}},
    )  # fmt: skip
    return {
        "keras": tmp_path / "conv.keras",
        "sklearn": tmp_path / "levels.skops",
        "torch": f"{made}:conv",
        "onnx": tmp_path / "linear.onnx",
        "huggingface": encoder(tmp_path / "tiny")[0],
    }


@pytest.mark.parametrize("kind", importers)
def test_every_importer_gives_a_model_with_signature_and_example(kind: str, tmp_path: Path, made: Path) -> None:
    source = sources(tmp_path, made)[kind]
    assert which(source) == kind
    registry = Registry(tmp_path / "home")
    model = import_model(str(source), registry=registry)
    assert model.lineage["kind"] == kind
    assert all(tensor.shape[0] == -1 for tensor in model.signature.inputs)
    if kind != "onnx":
        assert model.samples_path is not None
        rows = load_samples(model.samples_path).inputs
        assert len(Engine(model.path).run([rows])[0]) == len(rows) >= 2
        assert model.scores == {"agreement": 1.0}
    assert import_model(str(source), registry=registry) == model


def test_a_torch_module_with_two_inputs(tmp_path: Path, made: Path) -> None:
    model = import_model(f"{made}:two", registry=Registry(tmp_path / "home"))
    assert [tensor.shape for tensor in model.signature.inputs] == [(-1, 4), (-1, 3)]
    x, y = FOUR, RNG.normal(size=(40, 3)).astype(np.float32)
    engine = Engine(model.path)
    sums, positive = engine.run([x, y])
    np.testing.assert_array_equal(positive, np.maximum(x, 0))
    torch.manual_seed(0)
    of = nn.Linear(4, 3)
    np.testing.assert_allclose(sums, of(torch.tensor(x)).detach().numpy() + y, rtol=1e-4, atol=1e-5)


def test_a_module_in_memory_and_labels_give_a_score(tmp_path: Path) -> None:
    net = nn.Linear(4, 3)
    nn.init.eye_(net.weight)
    nn.init.zeros_(net.bias)
    model = import_model(net, "mine", example=FOUR, registry=Registry(tmp_path))
    np.testing.assert_array_equal(Engine(model.path).run([FOUR])[0], FOUR[:, :3])
    with pytest.raises(ModelError, match=r"linear comes without an example of its inputs; give --samples"):
        import_model(net, registry=Registry(tmp_path))


def test_an_exported_program_needs_trust_and_a_free_batch(tmp_path: Path) -> None:
    net, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.tensor(FOUR[:6])
    registry = Registry(tmp_path / "home")
    torch.export.save(torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("n")},)), tmp_path / "p.pt2")
    with pytest.raises(ModelError, match=r"p\.pt2 is a pickle, and opening one runs whatever code .* --trust"):
        import_model(tmp_path / "p.pt2", registry=registry)
    model = import_model(tmp_path / "p.pt2", trust=True, registry=registry)
    np.testing.assert_allclose(Engine(model.path).run([FOUR])[0], net(torch.tensor(FOUR)).detach().numpy(), atol=1e-5)
    torch.export.save(torch.export.export(net, (x,)), tmp_path / "fixed.pt2")
    with pytest.raises(ModelError, match="fixed takes batches of 6 only; export it again with"):
        import_model(tmp_path / "fixed.pt2", trust=True, registry=registry)


def test_keras_answers_as_keras(tmp_path: Path) -> None:
    net = conv()
    model = import_model(net, registry=Registry(tmp_path / "home"))
    assert (model.name, model.signature.inputs[0].shape) == ("conv", (-1, 8, 8, 1))
    x = RNG.normal(size=(7, 8, 8, 1)).astype(np.float32)
    np.testing.assert_allclose(Engine(model.path).run([x])[0], net.predict(x, verbose=0), atol=1e-6)


def test_a_keras_net_of_any_length_needs_one(tmp_path: Path) -> None:
    """Recurrent layers are unrolled: right for one length alone, which must be given."""
    layers, registry = keras.layers, Registry(tmp_path / "home")
    net = keras.Sequential(
        [layers.Input((None,), dtype="int32"), layers.Embedding(30, 8), layers.GRU(6), layers.Dense(3)]
    )
    with pytest.raises(ModelError, match="hold for one length alone: give --samples"):
        import_model(net, registry=registry)
    ids = RNG.integers(0, 30, (9, 5)).astype(np.int32)
    model = import_model(net, "reader", example=ids, registry=registry)
    assert model.signature.inputs[0].shape == (-1, 5)
    np.testing.assert_allclose(Engine(model.path).run([ids])[0], net.predict(ids, verbose=0), atol=1e-5)


@pytest.mark.parametrize("name", ["twice.keras", "twice.h5"])
@pytest.mark.filterwarnings("ignore:.*HDF5 file")
def test_a_lambda_layer_is_code(name: str, tmp_path: Path) -> None:
    net = keras.Sequential([keras.layers.Input((4,)), keras.layers.Lambda(lambda x: 2 * x)])
    net.save(tmp_path / name)
    registry = Registry(tmp_path / "home")
    with pytest.raises(ModelError, match=rf"{name} holds code of its maker's, a Lambda layer"):
        import_model(tmp_path / name, registry=registry)
    model = import_model(tmp_path / name, trust=True, registry=registry)
    np.testing.assert_array_equal(Engine(model.path).run([FOUR])[0], 2 * FOUR)


@pytest.mark.filterwarnings("ignore:.*HDF5 file")
def test_an_h5_file_is_code_to_a_keras_that_does_not_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(tmp_path / "home")
    for name in ("net.h5", "net.keras"):
        conv().save(tmp_path / name)
    monkeypatch.setattr(keras, "__version__", "3.11.2")
    monkeypatch.setattr(keras.models, "load_model", lambda *given, **said: pytest.fail("it was opened"))
    with pytest.raises(
        ModelError, match=r"Keras 3\.11\.2 runs whatever code the maker of net\.h5 .*>=3\.11\.3, or give"
    ):
        import_model(tmp_path / "net.h5", registry=registry)
    monkeypatch.undo()
    for name, version, trust in (
        ("net.h5", "3.11.2", True),
        ("net.h5", "3.11.3", False),
        ("net.keras", "3.9.0", False),
    ):
        monkeypatch.setattr(keras, "__version__", version)
        assert import_model(tmp_path / name, trust=trust, registry=registry).name == "net"


def test_scikit_learn_gives_the_scores_of_its_classes(tmp_path: Path) -> None:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import Ridge
    from sklearn.svm import LinearSVC

    registry, forest = Registry(tmp_path), RandomForestClassifier(5, random_state=0).fit(FOUR, CLASSES)
    cases: list[tuple[Any, str, Callable[[Any], Any]]] = [
        (pipeline(), "probabilities", lambda net: net.predict_proba(FOUR)),
        (forest, "probabilities", lambda net: net.predict_proba(FOUR)),
        (LinearSVC().fit(FOUR, CLASSES), "scores", lambda net: net.decision_function(FOUR)),
        (
            LinearSVC().fit(FOUR, CLASSES > 0),
            "scores",
            lambda net: np.c_[-net.decision_function(FOUR), net.decision_function(FOUR)],
        ),
        (Ridge().fit(FOUR, CLASSES), "value", lambda net: net.predict(FOUR)[:, None]),
    ]
    for k, (net, output, wanted) in enumerate(cases):
        model = import_model(net, f"net{k}", registry=registry)
        assert [tensor.name for tensor in model.signature.outputs] == [output]
        np.testing.assert_allclose(Engine(model.path).run([FOUR])[0], wanted(net), atol=1e-5)
    assert registry.get("net0").lineage["classes"] == ["low", "mid", "top"]
    assert registry.get("net0").lineage["estimator"] == "StandardScaler > LogisticRegression"


def test_scikit_learn_reads_texts_and_tables(tmp_path: Path) -> None:
    import pandas
    from sklearn.compose import make_column_transformer
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    registry = Registry(tmp_path)
    texts = ["the cat sat on the mat", "a dog is not here", "cats and dogs", "hello again world"]
    reader = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression()).fit(texts, [0, 1, 0, 1])
    model = import_model(reader, "reader", registry=registry)
    asked = np.array([*texts, "The Cat again", ""], object)
    found = Engine(model.path).run([asked[:, None]])[0]
    np.testing.assert_allclose(found, reader.predict_proba(asked), atol=1e-5)

    sublinear = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression()).fit(texts, [0, 1, 0, 1])
    with pytest.raises(ModelError, match="pipeline differs from its source by"):  # the converter's logarithm is not its
        import_model(sublinear, registry=registry)

    table = pandas.DataFrame({"age": [20.0, 30.0, 40.0, 50.0], "job": ["cook", "pilot", "cook", "none"]})
    columns = make_column_transformer((StandardScaler(), ["age"]), (OneHotEncoder(handle_unknown="ignore"), ["job"]))
    net = make_pipeline(columns, LogisticRegression()).fit(table, [0, 1, 0, 1])
    with pytest.raises(
        ModelError, match=r"takes a table with named columns \(age, job\), .* with `example=` some rows"
    ):
        import_model(net, registry=registry)
    model = import_model(net, "table", example=table, registry=registry)
    assert [(tensor.name, tensor.dtype) for tensor in model.signature.inputs] == [("age", "float32"), ("job", "bytes")]
    found = Engine(model.path).run([table[["age"]].to_numpy(np.float32), table[["job"]].to_numpy(object)])[0]
    np.testing.assert_allclose(found, net.predict_proba(table), atol=1e-5)


@pytest.mark.parametrize(
    "kind",
    [
        "BertModel",
        "BertForSequenceClassification",
        "BertForTokenClassification",
        "BertForMaskedLM",
        "RobertaModel",
        "RobertaForSequenceClassification",
        "RobertaForMaskedLM",
        "DistilBertModel",
        "DistilBertForSequenceClassification",
        "DistilBertForMaskedLM",
    ],
)
def test_an_encoder_answers_as_in_transformers(kind: str, tmp_path: Path) -> None:
    """Against transformers' own nets, with drawn weights, on rows of several lengths, each padded."""
    settings = {"num_labels": 3} if "Classification" in kind else {}
    folder, net = encoder(tmp_path / "their-net", kind, **settings)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    model = import_model(folder, registry=Registry(tmp_path / "home"))
    assert (model.name, model.signature.inputs[0].name) == ("their-net", "input_ids")
    assert onnx.load(model.path).metadata_props[0].key == "tokenizer"
    pad = net.config.pad_token_id
    for length in (5, 9, 30):
        ids = RNG.integers(2, 50, (4, length))
        ids = np.where(np.arange(length) < np.array([[1], [3], [length], [length // 2]]), ids, pad)
        there = torch.tensor(ids != pad)
        with torch.no_grad():
            wanted = net(torch.tensor(ids), attention_mask=there.long())[0].numpy()
        found = Engine(model.path).run([ids])[0]
        assert found.shape == wanted.shape
        if found.ndim == 3:  # what stands at the padding means nothing
            found, wanted = found[there.numpy()], wanted[there.numpy()]
        np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_a_sentence_encoder_pools_and_norms(tmp_path: Path) -> None:
    folder, net = encoder(tmp_path / "sentences")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    types = ["Transformer", "Pooling", "Normalize"]
    (folder / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.models.{t}"} for t in types]))
    model = import_model(folder, registry=Registry(tmp_path / "home"))
    assert model.signature.outputs[0].name == "sentence_embedding"
    ids = np.array([[5, 6, 7, 0], [8, 9, 0, 0]])
    with torch.no_grad():
        states = net(torch.tensor(ids), attention_mask=torch.tensor(ids != 0).long())[0].numpy()
    wanted = np.stack([states[0, :3].mean(0), states[1, :2].mean(0)])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(Engine(model.path).run([ids])[0], wanted, atol=1e-5)


class Ran:
    """What a pickle does when it is opened."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("ran",)


def test_what_cannot_be_imported_is_one_sentence(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = encoder(tmp_path / "tiny")[0]
    config = json.loads((folder / "config.json").read_text())

    def variant(name: str, **changed: Any) -> Path:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **changed}))
        os.link(folder / "model.safetensors", tmp_path / name / "model.safetensors")
        return tmp_path / name

    for name in ("evil.pkl", "evil.joblib", "evil.pt"):
        (tmp_path / name).write_bytes(pickle.dumps(Ran()))
    (tmp_path / "text.keras").write_text("no model")
    (tmp_path / "text.skops").write_text("no model")
    (tmp_path / "model.xyz").write_text("?")
    (tmp_path / "bad.py").write_text("import nothing_such")
    (tmp_path / "empty").mkdir()
    lacking = variant("lacking", vocab_size=60)
    torn = variant("torn")
    (torn / "model.safetensors").unlink()
    (torn / "model.safetensors").write_bytes(b"0123456789")
    (variant("pickled") / "model.safetensors").rename(tmp_path / "pickled" / "pytorch_model.bin")

    def sentences(name: str, modules: Any) -> Path:
        """As sentence-transformers saves what leads a text through these modules; None: without their list."""
        made = variant(name)
        (made / "1_Pooling").mkdir()
        (made / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
        if modules is not None:
            (made / "modules.json").write_text(json.dumps(modules))
        return made

    stages = [{"type": f"sentence_transformers.models.{each}"} for each in ("Transformer", "Pooling", "Dense")]
    own = encoder(tmp_path / "own", "BertForMaskedLM", tie_word_embeddings=False)[0]
    cases: list[tuple[Any, str]] = [
        ("evil.pkl", r"evil\.pkl is a pickle, and opening one runs whatever code .*skops\.io\.dump.* or give --trust"),
        ("evil.joblib", r"evil\.joblib is a pickle"),
        ("evil.pt", r"evil\.pt is a pickle, .* `net\.py:make`"),
        ("none.keras", r"none\.keras is not there"),
        ("text.keras", r"text\.keras cannot be opened as a Keras model"),
        ("none.skops", r"none\.skops is not there"),
        ("text.skops", r"text\.skops cannot be opened as a skops file"),
        ("model.xyz", r"model\.xyz is of no kind that is read: an \.onnx file, a \.keras file"),
        ("empty", r"empty has no config\.json"),
        ("none.py:make", r"none\.py is not there"),
        ("bad.py:make", r"bad\.py does not run: ModuleNotFoundError: No module named 'nothing_such'"),
        (f"{made}:none", r"has no function 'none'; it has Two, two, conv, bare, fails, number, Batched, batched"),
        (str(made), r"does not say which function makes the module"),
        (f"{made}:fails", r"fails of .* fails: ValueError: no weights here"),
        (f"{made}:number", r"number is a int and no torch module"),
        (f"{made}:bare", r"bare comes without an example"),
        (f"{made}:batched", r"batched cannot be exported so that it answers as in torch: .*differs from its source by"),
        (
            variant("gpt", model_type="gpt2", architectures=["GPT2LMHeadModel"]),
            r"GPT2LMHeadModel \(gpt2\); read are bert",
        ),
        (sentences("dense", stages), r"modules\.json leads a text through Transformer, Pooling, Dense; read are"),
        (sentences("unlisted", None), r"modules\.json cannot be read: No such file"),
        (sentences("listless", {}), r"modules\.json must hold a list"),
        (variant("headless", architectures=["BertLMHeadModel"]), r"BertLMHeadModel \(bert\); read are bert"),
        (variant("decoder", is_decoder=True), r"BertModel \(bert, a decoder\); read are bert"),
        (variant("uneven", num_attention_heads=3), r"width=16 cannot be divided among heads=3"),
        (own, r"BertForMaskedLM \(bert, an answer with weights of its own\); read are bert"),
        (lacking, r"word_embeddings\.weight in .* is of shape \[50, 16\], but config\.json means \[60, 16\]"),
        (variant("deeper", num_hidden_layers=3), r"has no weight '.*layer\.2\..*', which its config\.json promises"),
        (torn, r"model\.safetensors cannot be read"),
        (tmp_path / "pickled", r"pytorch_model\.bin is a pickle, .* which writes safetensors"),
        (3, r"a int cannot be imported; an object must be of keras, onnx, sklearn, torch"),
    ]
    registry = Registry(tmp_path / "home")
    for source, wanted in cases:
        with pytest.raises(UserError, match=wanted) as caught:
            import_model(source, registry=registry)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert registry.models() == []
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "weights.pt")
    with pytest.raises(UserError, match="holds weights without the module"):
        import_model(tmp_path / "weights.pt", trust=True, registry=registry)


def test_a_graph_that_says_other_than_its_source_is_refused() -> None:
    from sklearn.linear_model import Ridge

    from airserve.learn.importers import Given
    from airserve.learn.importers.sklearn import read

    right = read(Ridge().fit(FOUR, CLASSES), Given())
    agree(right, Engine(right.graph))
    wrong = Foreign("wrong", right.graph, right.examples, lambda rows: [2 * array for array in right.answer(rows)])  # type: ignore[misc]
    with pytest.raises(ModelError, match=r"wrong differs from its source by 5\.0e-01 of the largest output"):
        agree(wrong, Engine(right.graph))
