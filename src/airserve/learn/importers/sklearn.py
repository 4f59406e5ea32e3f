"""A scikit-learn estimator or pipeline, in memory or in a .skops file, by skl2onnx.

A classifier's graph answers `probabilities` (or `scores`, where it has none), one for each of its classes in order; a
regressor's `value`. Texts are taken as strings, tables with named columns as one input for each column.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from airserve.learn.importers import DRAWN, Foreign, Given, absent, refuse_code, sentence, stem
from airserve.model import Array, ModelError

SUFFIXES = (".skops", ".pkl", ".pickle", ".joblib")
PACKAGE = "sklearn"
OPSET = 17
READERS = ("TfidfVectorizer", "CountVectorizer", "HashingVectorizer")  # of texts
WORDS = 12  # in a drawn text


def takes(path: str) -> bool:
    return path.endswith(SUFFIXES)


def read(source: Any, given: Given) -> Foreign:
    """An estimator as a graph. Raises `ModelError` in one sentence for what is none, or has no form in ONNX."""
    try:
        import sklearn
        from skl2onnx import __version__ as converter
        from skl2onnx import to_onnx
    except ModuleNotFoundError as error:
        raise absent(str(error.name), "a scikit-learn model") from None

    estimator, name = (
        (opened(Path(source), given), stem(source)) if isinstance(source, str | Path) else (source, stem(source))
    )
    if not isinstance(estimator, sklearn.base.BaseEstimator) or not hasattr(estimator, "predict"):
        raise ModelError(
            f"{name} holds a {type(estimator).__name__}, which predicts nothing; fit a scikit-learn estimator."
        )
    examples, columns = rows(estimator, given.example, name)
    last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    classes = (
        [str(label) for label in getattr(estimator, "classes_", ())] if sklearn.base.is_classifier(estimator) else []
    )
    said = hasattr(estimator, "predict_proba")
    options = ({"zipmap": False} if said else {"raw_scores": True}) if classes else None
    try:
        made = to_onnx(
            estimator,
            initial_types=[(key, kind(array)) for key, array in zip(columns or ["input"], examples, strict=True)],
            options=None if options is None else {id(last): options},
            target_opset=OPSET,
        )
    except Exception as error:  # the converter raises whatever it meets
        raise ModelError(f"{name} has no form in ONNX: {type(error).__name__}: {sentence(error)}.") from None
    graph = trimmed(made, ("probabilities" if said else "scores") if classes else "value", bool(classes))

    def answer(inputs: Sequence[Array]) -> list[Array]:
        taken = table(inputs, columns)
        if not classes:
            return [np.asarray(estimator.predict(taken)).reshape(len(inputs[0]), -1)]
        found = np.asarray(estimator.predict_proba(taken) if said else estimator.decision_function(taken))
        return [np.stack([-found, found], axis=1) if found.ndim == 1 else found]

    facts = {"estimator": described(estimator), "classes": classes, "scikit-learn": sklearn.__version__}
    lineage = {**facts, "skl2onnx": converter}
    return Foreign(name, graph, examples, answer, given.example is None, lineage)


def opened(path: Path, given: Given) -> Any:
    """The estimator in a file: .skops holds data and names of classes; a pickle only with trust."""
    if not path.is_file():
        raise ModelError(f"{path} is not there.")
    if path.suffix != ".skops":
        if not given.trust:
            raise refuse_code(path, "save the estimator with skops.io.dump as .skops")
        import joblib

        try:
            return joblib.load(path)
        except Exception as error:
            raise ModelError(f"{path.name} cannot be opened: {type(error).__name__}: {sentence(error)}.") from None
    try:
        from skops import io
    except ModuleNotFoundError:
        raise absent("skops", "a .skops file") from None
    try:
        strange = io.get_untrusted_types(file=path)
        if strange and not given.trust:
            raise ModelError(
                f"{path.name} holds {', '.join(strange[:3])}, which skops does not count as safe; give --trust when "
                "you know who made it."
            )
        return io.load(path, trusted=strange)
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"{path.name} cannot be opened as a skops file: {sentence(error)}.") from None


def rows(estimator: Any, example: Any, name: str) -> tuple[tuple[Array, ...], list[str]]:
    """Rows that an estimator takes, one array for each input, and the names of the columns where it wants a table."""
    if hasattr(example, "columns"):  # a data frame
        cells = [example[column].to_numpy() for column in example.columns]
        found = [cell.astype(np.float32 if cell.dtype.kind in "fiub" else object)[:, None] for cell in cells]
        return tuple(found), [str(column) for column in example.columns]
    names = [str(column) for column in getattr(estimator, "feature_names_in_", ())]
    if names and example is None and divides(estimator):
        raise ModelError(
            f"{name} takes a table with named columns ({', '.join(names[:4])}), whose kinds it does not say; import it "
            "from Python with `example=` some rows of the table."
        )
    if (reader := next((part for part in parts(estimator) if type(part).__name__ in READERS), None)) is not None:
        texts = np.asarray(drawn_texts(reader) if example is None else example, object).reshape(-1, 1)
        return (texts,), []
    if example is not None:
        return (np.ascontiguousarray(example, np.float32),), []
    if not hasattr(estimator, "n_features_in_"):
        raise ModelError(f"{name} is not fitted, or does not say how many numbers it takes; give --samples FILE.npz.")
    drawn = np.random.default_rng(0).normal(size=(DRAWN, estimator.n_features_in_)).astype(np.float32)
    scaler = next((part for part in parts(estimator) if hasattr(part, "scale_") and hasattr(part, "mean_")), None)
    if scaler is not None and np.shape(scaler.mean_) == drawn.shape[1:]:
        drawn = (drawn * scaler.scale_ + scaler.mean_).astype(np.float32)  # as the rows that it was fitted on
    return (drawn,), []


def drawn_texts(reader: Any) -> list[str]:
    """Texts of words that a vectorizer knows, drawn."""
    rng, words = np.random.default_rng(0), sorted(getattr(reader, "vocabulary_", {"word": 0}))
    return [" ".join(rng.choice(words, WORDS)) for _ in range(DRAWN)]


def parts(estimator: Any) -> list[Any]:
    """The estimator, or the steps of a pipeline."""
    return [step for _, step in estimator.steps] if hasattr(estimator, "steps") else [estimator]


def divides(estimator: Any) -> bool:
    """Whether columns go different ways, so that they must be told apart."""
    return any(type(part).__name__ == "ColumnTransformer" for part in parts(estimator))


def table(inputs: Sequence[Array], columns: Sequence[str]) -> Any:
    """Rows as the estimator takes them: an array, the texts of a column, or a data frame."""
    if columns:
        import pandas

        return pandas.DataFrame({key: array[:, 0] for key, array in zip(columns, inputs, strict=True)})
    return inputs[0][:, 0] if inputs[0].dtype == object else inputs[0]


def kind(array: Array) -> Any:
    """The converter's word for what an array holds, its first axis free."""
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    return (StringTensorType if array.dtype == object else FloatTensorType)([None, *array.shape[1:]])


def trimmed(made: Any, output: str, classifies: bool) -> bytes:
    """The graph with one output, the scores of the classes or the value, and a locale that every machine has."""
    kept = made.graph.output[1 if classifies else 0]
    for node in made.graph.node:
        for at, key in enumerate(node.output):
            if key == kept.name:
                node.output[at] = output
        for at, key in enumerate(node.input):
            if key == kept.name:
                node.input[at] = output
        if node.op_type == "StringNormalizer":  # by default en_US.UTF-8, which few servers have
            kept_attributes = [attribute for attribute in node.attribute if attribute.name != "locale"]
            del node.attribute[:]
            node.attribute.extend([*kept_attributes, onnx.helper.make_attribute("locale", "C.UTF-8")])
    kept.name = output
    del made.graph.output[:]
    made.graph.output.append(kept)
    return bytes(onnx.shape_inference.infer_shapes(made).SerializeToString())


def described(estimator: Any) -> str:
    """The classes of the steps, in order."""
    return " > ".join(type(part).__name__ for part in parts(estimator))
