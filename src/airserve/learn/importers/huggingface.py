"""A folder in Hugging Face's layout, config.json and model.safetensors, for encoders of BERT's family.

bert, roberta, xlm-roberta, camembert and distilbert: the encoder itself, or with a head for classes of texts, classes
of words, or masked words; a folder of sentence-transformers gives one vector for a text. The graph takes `input_ids`
alone: what pads is left out. tokenizer.json travels in the graph's metadata.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from airserve.errors import UserError
from airserve.learn.importers import DRAWN, Foreign, Given, absent, sentence
from airserve.model import Array, ModelError

PACKAGE = "transformers"
FAMILIES = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "distilbert": "distilbert",
}
HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForMaskedLM", "Model")
FILLERS = {  # the head for masked words: its layer, its norm, its bias
    "bert": ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
    "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    "distilbert": ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
}
STAGES = {"Transformer", "Pooling", "Normalize"}  # of a folder of sentence-transformers
LENGTH = 16  # words of a drawn row


def takes(path: str) -> bool:
    return (Path(path) / "config.json").is_file()


def read(source: Any, given: Given) -> Foreign:
    """The net that config.json names with the weights of model.safetensors, as a graph. Raises `ModelError`."""
    if not isinstance(source, str | Path):
        raise ModelError("save the model with `save_pretrained(FOLDER)` and import the folder.")
    folder = Path(source)
    config = described(folder / "config.json")
    family, head = known(config, folder)
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError:
        raise absent("safetensors", "a folder in Hugging Face's layout") from None
    from airserve.learn import bert
    from airserve.learn.importers.torch import traced

    try:
        shape = bert.shape(config)
        if shape.activation not in bert.ACTIVATIONS:
            raise ModelError(
                f"{folder / 'config.json'} wants the activation {shape.activation}, which is not known here."
            )
    except KeyError as error:
        raise ModelError(f"{folder / 'config.json'} does not state {error}.") from None
    file = weights_file(folder)
    try:
        there = load_file(file)
    except Exception as error:  # safetensors raises classes of its own
        raise ModelError(f"{file} cannot be read: {sentence(error)}.") from None

    encoder = bert.Encoder(shape)
    prefix = next(
        (name for name in (f"{family}.", "") if any(key.startswith(f"{name}embeddings.") for key in there)), ""
    )
    fill(encoder, {ours: prefix + theirs for ours, theirs in bert.encoder_weights(shape, family).items()}, there, file)
    net, output = headed(head, family, encoder, config, there, file, folder)
    classes = list((config.get("id2label") or {}).values()) if "Classification" in head else []
    examples = drawn(shape, config) if given.example is None else (np.ascontiguousarray(given.example, np.int64),)
    facts = {"architecture": (config.get("architectures") or ["?"])[0], "classes": classes}
    made = traced(net, examples, folder.resolve().name, ["input_ids"], free=(1,), **facts)
    graph = told(made.graph, folder, output)
    return Foreign(made.name, graph, made.examples, made.answer, given.example is None, made.lineage)


def described(path: Path, kind: type = dict) -> Any:
    """What a file of JSON holds, which must be a dict or a list."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = sentence(error) if isinstance(error, ValueError) else error.strerror
        raise ModelError(f"{path} cannot be read: {why}.") from None
    if not isinstance(found, kind):
        raise ModelError(f"{path} must hold a {'list' if kind is list else 'JSON object'}.")
    return found


def known(config: Mapping[str, Any], folder: Path) -> tuple[str, str]:
    """Family and head that are read here. Raises `ModelError` with those that are."""
    kind, names = config.get("model_type"), config.get("architectures") or ["?"]
    head = next((head for head in HEADS if names[0].endswith(head) and "LMHead" not in names[0]), None)
    tied = config.get("tie_word_embeddings", True) or head != "ForMaskedLM"
    other = [] if tied else ["an answer with weights of its own"]
    if config.get("position_embedding_type", "absolute") != "absolute":
        other.append("relative places")
    if config.get("is_decoder"):
        other.append("a decoder")
    if kind not in FAMILIES or head is None or other:
        what = f"{names[0]} ({', '.join([str(kind), *other])})"
        raise ModelError(
            f"{folder} holds {what}; read are {', '.join(FAMILIES)} as {', '.join(HEADS)}. Export it with Optimum to "
            "ONNX and import that."
        )
    return FAMILIES[kind], head


def weights_file(folder: Path) -> Path:
    """The file of weights, safetensors alone."""
    file = folder / "model.safetensors"
    if file.is_file():
        return file
    if (folder / "model.safetensors.index.json").is_file():
        raise ModelError(f"the weights of {folder} are in several files; save it as one with max_shard_size='20GB'.")
    if (pickle := folder / "pytorch_model.bin").is_file():
        raise ModelError(
            f"{pickle} is a pickle, and opening one runs whatever code its maker put in; save the model again with "
            "save_pretrained(FOLDER), which writes safetensors."
        )
    raise ModelError(f"{folder} has no model.safetensors.")


def fill(module: Any, named: Mapping[str, str], there: Mapping[str, Any], file: Path) -> None:
    """Put a file's weights, by their names there, into a module. Raises `ModelError` for one that lacks or differs."""
    wanted = module.state_dict()
    for ours, theirs in named.items():
        if theirs not in there:
            raise ModelError(f"{file} has no weight {theirs!r}, which its config.json promises.")
        if there[theirs].shape != wanted[ours].shape:
            raise ModelError(
                f"{theirs} in {file} is of shape {list(there[theirs].shape)}, but config.json means "
                f"{list(wanted[ours].shape)}."
            )
    module.load_state_dict({ours: there[theirs].float() for ours, theirs in named.items()}, strict=False)


def headed(
    head: str, family: str, encoder: Any, config: Mapping[str, Any], there: Mapping[str, Any], file: Path, folder: Path
) -> tuple[Any, str]:
    """The net with its head, filled, and what its output is called."""
    from airserve.learn import bert

    if head == "Model":
        pooling = folder / "1_Pooling" / "config.json"
        if not (stages := staged(folder)):
            return bert.States(encoder), "last_hidden_state"
        how = described(pooling)
        ways = [key for key, on in how.items() if key.startswith("pooling_mode_") and on is True]
        way = how.get("pooling_mode") or (ways[0].removeprefix("pooling_mode_") if len(ways) == 1 else None)
        if way not in ("mean_tokens", "cls_token", "mean", "cls"):
            raise ModelError(f"{pooling} pools by {way or ways}; read are the mean of the words and the first one.")
        return bert.Sentence(encoder, way.startswith("cls"), "Normalize" in stages), "sentence_embedding"
    if head == "ForMaskedLM":
        dense, norm, bias = FILLERS[family]
        net: Any = bert.Filler(encoder)
        fill(net, {**both("before", dense), **both("norm", norm), "bias": bias}, there, file)
        return net, "logits"
    each = head == "ForTokenClassification"
    before = {"bert": "bert.pooler.dense", "roberta": "classifier.dense", "distilbert": "pre_classifier"}[family]
    answer = "classifier.out_proj" if family == "roberta" and not each else "classifier"
    outputs = len(config.get("id2label") or {}) or config.get("num_labels", 2)
    net = bert.Classifier(encoder, outputs, not each, "relu" if family == "distilbert" else "tanh", each)
    fill(net, both("answer", answer) if each else {**both("answer", answer), **both("before", before)}, there, file)
    return net, "logits"


def staged(folder: Path) -> list[str]:
    """The stages through which a folder of sentence-transformers leads a text; none where it is no such folder."""
    file = folder / "modules.json"
    if not file.is_file() and not (folder / "1_Pooling").is_dir():
        return []
    stages = [str(part.get("type") if isinstance(part, dict) else part) for part in described(file, list)]
    names = [stage.rpartition(".")[2] for stage in stages]
    if not {"Transformer", "Pooling"} <= set(names) <= STAGES:
        raise ModelError(
            f"{file} leads a text through {', '.join(names) or 'nothing'}; read are Transformer, Pooling and, where it "
            "is wanted, Normalize. Export it with Optimum to ONNX and import that."
        )
    return names


def both(ours: str, theirs: str) -> dict[str, str]:
    """A layer's weight and bias by their names here and there."""
    return {f"{ours}.{part}": f"{theirs}.{part}" for part in ("weight", "bias")}


def drawn(shape: Any, config: Mapping[str, Any]) -> tuple[Array, ...]:
    """Texts of drawn ids of several lengths, padded."""
    rng = np.random.default_rng(0)
    length = min(LENGTH, shape.places - (shape.pad + 1 if shape.from_pad else 0) - 4)
    ids = rng.integers(shape.pad + 1, shape.words, (DRAWN, length))
    long = rng.integers(max(length // 4, 1), length + 1, DRAWN)
    return (np.where(np.arange(length) < long[:, None], ids, shape.pad).astype(np.int64),)


def told(graph: bytes, folder: Path, output: str) -> bytes:
    """The graph with its output's usual name, and with the tokenizer in its metadata where the folder has one."""
    made = onnx.load_from_string(graph)
    before = made.graph.output[0].name
    for node in made.graph.node:
        node.output[:] = [output if key == before else key for key in node.output]
        node.input[:] = [output if key == before else key for key in node.input]
    made.graph.output[0].name = output
    tokenizer = folder / "tokenizer.json"
    if tokenizer.is_file():
        try:
            onnx.helper.set_model_props(made, {"tokenizer": tokenizer.read_text(encoding="utf-8")})
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{tokenizer} cannot be read: {sentence(error)}.") from None
    return bytes(made.SerializeToString())
