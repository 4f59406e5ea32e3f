"""A small language model and a small sentence encoder, with the tokenizer of each, as graphs written by hand.

The same network stands here a second time, in numpy, without a cache, a batch or padding: what the engine is held to.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import tokenizers
from onnx import TensorProto, helper, numpy_helper
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

TEXT = [
    "The mast carries a radio, and the radio carries the answer of a model to the hall.",
    "A model is asked how warm the engine is; the engine says that it is warm.",
    "Où est le modèle ? Il est à l'antenne, près de la forêt. Das Modell läuft über 5G — 每一个字 😀 ★",
]
TEMPLATE = (
    "{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant') %}"
    "{{ raise_exception('no role ' + m.role) }}{% endif %}"
    "<|begin|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
LAYERS, WIDTH, HEADS, GROUPS, CONTEXT = 2, 32, 4, 2, 192  # grouped-query attention: 4 heads share 2 of keys and values
SIZE = WIDTH // HEADS


def byte_tokenizer(size=300):
    """A byte-level BPE tokenizer trained on a few lines: characters beyond ASCII are several tokens."""
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|begin|>", "<|end|>"]
    made.train_from_iterator(
        TEXT,
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return made


@dataclass
class Reference:
    """The network in numpy."""

    weights: dict
    path: Path
    tokenizer: tokenizers.Tokenizer

    def logits(self, tokens):
        """Of every token, shape (tokens, vocabulary)."""
        w, n = self.weights, len(tokens)
        x = w["embed"][list(tokens)] + w["place"][:n]
        for k in range(LAYERS):
            h = norm(x)
            q = (h @ w[f"q{k}"]).reshape(n, HEADS, SIZE)
            key = np.repeat((h @ w[f"k{k}"]).reshape(n, GROUPS, SIZE), HEADS // GROUPS, axis=1)
            value = np.repeat((h @ w[f"v{k}"]).reshape(n, GROUPS, SIZE), HEADS // GROUPS, axis=1)
            scores = np.einsum("qhd,khd->hqk", q, key) / np.sqrt(SIZE)
            scores = np.where(np.tri(n, dtype=bool)[None], scores, -np.inf)
            likely = np.exp(scores - scores.max(-1, keepdims=True))
            likely /= likely.sum(-1, keepdims=True)
            x = x + np.einsum("hqk,khd->qhd", likely, value).reshape(n, WIDTH) @ w[f"o{k}"]
            x = x + np.maximum(norm(x) @ w[f"up{k}"], 0) @ w[f"down{k}"]
        return norm(x) @ w["head"]

    def greedy(self, tokens, count, ends=()):
        """Tokens one by one, everything worked out again for each."""
        made = []
        while len(made) < count and not (made and made[-1] in ends):
            made.append(int(self.logits([*tokens, *made])[-1].argmax()))
        return made


def norm(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def weights_of(vocabulary, rng):
    make = lambda *shape: rng.normal(0, 1 / np.sqrt(shape[0]), shape).astype("float32")  # noqa: E731
    made = {"embed": rng.normal(0, 0.5, (vocabulary, WIDTH)).astype("float32")}
    made["place"] = rng.normal(0, 0.5, (CONTEXT, WIDTH)).astype("float32")
    made["head"] = make(WIDTH, vocabulary) * 3
    for k in range(LAYERS):
        made |= {f"q{k}": make(WIDTH, WIDTH) * 2, f"k{k}": make(WIDTH, GROUPS * SIZE) * 2}
        made |= {f"v{k}": make(WIDTH, GROUPS * SIZE), f"o{k}": make(WIDTH, WIDTH)}
        made |= {f"up{k}": make(WIDTH, 64), f"down{k}": make(64, WIDTH)}
    return made


class Builder:
    """Nodes of a graph, named as they come."""

    def __init__(self):
        self.nodes, self.constants = [], {}

    def __call__(self, kind, *inputs, out=None, **attributes):
        names = [self.constant(i) if isinstance(i, (np.ndarray, np.generic)) else i for i in inputs]
        out = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [out], **attributes))
        return out

    def constant(self, array):
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(array)
        return name


def ints(*values):
    return np.array(values, "int64")


def decoder_graph(weights, vocabulary):
    """The network as Optimum would export it: a cache in, a cache out."""
    b = Builder()
    one, zero = ints(1), ints(0)
    sequence = b("Slice", b("Shape", "input_ids"), one, ints(2))
    total = b("Slice", b("Shape", "attention_mask"), one, ints(2))
    past = b("Sub", total, sequence)
    # A query at past + i sees keys up to there that the mask lets through.
    keys = b("Range", np.int64(0), b("Squeeze", total), np.int64(1))
    queries = b("Add", b("Range", np.int64(0), b("Squeeze", sequence), np.int64(1)), past)
    causal = b("LessOrEqual", b("Unsqueeze", keys, zero), b("Unsqueeze", queries, one))
    seen = b("Unsqueeze", b("Cast", "attention_mask", to=TensorProto.BOOL), ints(1, 2))
    allowed = b("And", b("Unsqueeze", causal, ints(0, 1)), seen)
    bias = b("Where", allowed, np.float32(0), np.float32(-1e9))
    x = b("Add", b("Gather", "embed", "input_ids"), b("Gather", "place", "position_ids"))
    ones, zeros = np.ones(WIDTH, "float32"), np.zeros(WIDTH, "float32")
    for k in range(LAYERS):
        h = b("LayerNormalization", x, ones, zeros, axis=-1, epsilon=1e-5)

        def heads(name, count, h=h):
            return b("Transpose", b("Reshape", b("MatMul", h, name), ints(0, 0, count, SIZE)), perm=[0, 2, 1, 3])

        q = heads(f"q{k}", HEADS)
        key = b("Concat", f"past_key_values.{k}.key", heads(f"k{k}", GROUPS), axis=2, out=f"present.{k}.key")
        value = b("Concat", f"past_key_values.{k}.value", heads(f"v{k}", GROUPS), axis=2, out=f"present.{k}.value")
        # Each of keys and values for HEADS // GROUPS heads.
        group = ints(*np.repeat(np.arange(GROUPS), HEADS // GROUPS))
        key, value = b("Gather", key, group, axis=1), b("Gather", value, group, axis=1)
        scores = b("MatMul", q, b("Transpose", key, perm=[0, 1, 3, 2]))
        scores = b("Add", b("Mul", scores, np.float32(1 / np.sqrt(SIZE))), bias)
        mixed = b("MatMul", b("Softmax", scores, axis=-1), value)
        mixed = b("Reshape", b("Transpose", mixed, perm=[0, 2, 1, 3]), ints(0, 0, WIDTH))
        x = b("Add", x, b("MatMul", mixed, f"o{k}"))
        h = b("LayerNormalization", x, ones, zeros, axis=-1, epsilon=1e-5)
        x = b("Add", x, b("MatMul", b("Relu", b("MatMul", h, f"up{k}")), f"down{k}"))
    h = b("LayerNormalization", x, ones, zeros, axis=-1, epsilon=1e-5)
    b("MatMul", h, "head", out="logits")
    cache = ["batch", GROUPS, "past", SIZE]
    past_names = [f"past_key_values.{k}.{what}" for k in range(LAYERS) for what in ("key", "value")]
    inputs = [
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "total"]),
        helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch", "sequence"]),
        *(helper.make_tensor_value_info(name, TensorProto.FLOAT, cache) for name in past_names),
    ]
    outputs = [
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", vocabulary]),
        *(
            helper.make_tensor_value_info(
                name.replace("past_key_values", "present"), TensorProto.FLOAT, ["batch", GROUPS, "total", SIZE]
            )
            for name in past_names
        ),
    ]
    return graph_of("gpt", b, inputs, outputs, weights)


def graph_of(name, builder, inputs, outputs, weights):
    constants = [numpy_helper.from_array(array, key) for key, array in {**weights, **builder.constants}.items()]
    graph = helper.make_graph(builder.nodes, name, inputs, outputs, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(made)
    return made


def noted(model, **metadata):
    helper.set_model_props(model, metadata)
    return model


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Reference:
    """A language model in one file, with a chat template; random weights, a trained tokenizer."""
    tokenizer = byte_tokenizer()
    vocabulary = tokenizer.get_vocab_size()
    weights = weights_of(vocabulary, np.random.default_rng(4))
    path = tmp_path_factory.mktemp("language") / "gpt.onnx"
    model = noted(
        decoder_graph(weights, vocabulary), tokenizer=tokenizer.to_str(), chat_template=TEMPLATE,
        eos_token="<|end|>", context_length=str(CONTEXT),
    )  # fmt: skip
    onnx.save(model, path)
    return Reference({k: v.astype("float64") for k, v in weights.items()}, path, tokenizer)


@pytest.fixture(scope="session")
def encoder(tmp_path_factory) -> Path:
    """A sentence encoder in Optimum's layout: a mean of words' vectors, so that shared words make texts alike."""
    splits = [pre_tokenizers.Whitespace().pre_tokenize_str(text.lower()) for text in TEXT]
    words = sorted({word for split in splits for word, _ in split})
    vocabulary = {word: k for k, word in enumerate(["[UNK]", "[CLS]", "[SEP]", *words])}
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    table = np.random.default_rng(5).normal(size=(len(vocabulary), 24)).astype("float32")
    table[:3] *= 0.1  # what every text holds says little
    b = Builder()
    b("Gather", "table", "input_ids", out="last_hidden_state")
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in names]
    outputs = [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "sequence", 24])]
    folder = tmp_path_factory.mktemp("encoders") / "minilm"
    folder.mkdir()
    onnx.save(graph_of("encoder", b, inputs, outputs, {"table": table}), folder / "model.onnx")
    made.enable_padding(length=64)  # as files of sentence encoders often have it
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 48}))
    return folder
