"""Language models in GGUF files, run by llama.cpp (extra `gguf`): the same steps over many sequences as in ONNX.

llama.cpp keeps the sequences in one cache, without padding; `llama.h` names what is called here.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, final

import numpy as np

from airserve.model import Array, ModelError
from airserve.serve.configuration import Bounds
from airserve.serve.served import BadInput
from airserve.serve.tokenizing import Template

SUFFIX = ".gguf"
MAGIC = b"GGUF"
TOGETHER = 512  # tokens of a call, at most
_silence: Any = None


@cache
def _library() -> Any:
    """llama.cpp, quiet. Raises `ModelError` where the extra is missing."""
    try:
        import llama_cpp
    except ImportError:
        raise ModelError("a .gguf file needs the extra `gguf`: pip install 'airserve[gguf]'.") from None

    global _silence  # the library keeps a pointer to it
    _silence = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(_silence, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@final
class LlamaDecoder:
    """A file with its cache, which may hold `bounds`; both are closed once neither it nor a tokenizer of it is held.

    Raises `ModelError` where llama.cpp cannot open it.
    """

    def __init__(self, name: str, path: Path, bounds: Bounds) -> None:
        lib = self._lib = _library()
        try:
            with open(path, "rb") as file:
                magic = file.read(4)
        except OSError as error:
            raise ModelError(f"{path.name} cannot be read ({error.strerror}); see that it is there.") from None
        if magic != MAGIC:
            raise ModelError(f"{path.name} is no GGUF file.")
        # Not by whoever closes the model: a request that came before may still be at its tokens, in another thread.
        opened = contextlib.ExitStack()
        weakref.finalize(self, opened.close).atexit = False
        options = lib.llama_model_default_params()
        options.n_gpu_layers = 0
        options.use_extra_bufts = False  # weights laid out for AMX: where a virtual machine lacks it, the process dies
        self._model = lib.llama_model_load_from_file(str(path).encode(), options)
        if not self._model:
            raise ModelError(f"{path.name} cannot be opened by llama.cpp; see that the file is whole.")
        opened.callback(lib.llama_model_free, self._model)
        self._vocabulary = lib.llama_model_get_vocab(self._model)
        self.vocabulary = int(lib.llama_vocab_n_tokens(self._vocabulary))
        model = self._model
        size = lib.llama_model_n_embd(model) // lib.llama_model_n_head(model)
        self.token_bytes: int = (
            2 * 2 * lib.llama_model_n_layer(model) * lib.llama_model_n_head_kv(model) * size
        )  # float16
        longest = int(lib.llama_model_n_ctx_train(model))
        cells = min(bounds.running * longest, bounds.cache_bytes // self.token_bytes)
        self.context = min(longest, cells)
        if self.context < 3:
            raise ModelError(f"{name} takes {self.token_bytes} bytes a token, more than the cache may hold.")
        asked = lib.llama_context_default_params()
        asked.n_ctx, asked.n_batch, asked.n_ubatch = cells, TOGETHER, TOGETHER
        asked.n_seq_max, asked.kv_unified = bounds.running, True
        asked.n_threads = asked.n_threads_batch = 1
        asked.no_perf = True
        self._context = lib.llama_init_from_model(model, asked)
        if not self._context:
            raise ModelError(f"llama.cpp has no room for {cells} tokens of {name}; start with a smaller --cache-mb.")
        opened.callback(lib.llama_free, self._context)
        self._memory = lib.llama_get_memory(self._context)
        self._batch = lib.llama_batch_init(TOGETHER, 0, 1)
        opened.callback(lib.llama_batch_free, self._batch)
        self._lengths: dict[int, int] = {}

    def cache_bytes(self, needs: Sequence[int]) -> int:
        return sum(needs) * self.token_bytes

    def extend(self, place: int, tokens: Sequence[int]) -> Array:
        logits: Array = self._decode([place] * len(tokens), tokens, [len(tokens) - 1])[0]
        return logits

    def step(self, places: Sequence[int], tokens: Sequence[int]) -> Array:
        return self._decode(places, tokens, range(len(places)))

    def free(self, place: int) -> None:
        self._lib.llama_memory_seq_rm(self._memory, place, -1, -1)
        self._lengths.pop(place, None)

    def _decode(self, places: Sequence[int], tokens: Sequence[int], wanted: Sequence[int]) -> Array:
        batch, lengths = self._batch, self._lengths
        for k, (place, token) in enumerate(zip(places, tokens, strict=True)):
            at = lengths.get(place, 0)
            batch.token[k], batch.pos[k], batch.n_seq_id[k], batch.seq_id[k][0] = token, at, 1, place
            batch.logits[k] = k in wanted
            lengths[place] = at + 1
        batch.n_tokens = len(tokens)
        if status := self._lib.llama_decode(self._context, batch):
            raise RuntimeError(f"llama.cpp could not compute {len(tokens)} tokens (status {status})")
        rows = [self._lib.llama_get_logits_ith(self._context, k) for k in wanted]
        logits: Array = np.stack([np.ctypeslib.as_array(row, (self.vocabulary,)) for row in rows])
        return logits

    # As a tokenizer

    def tokenizer(self, name: str) -> LlamaTokenizer:
        return LlamaTokenizer(name, self, self._lib, self._model, self._vocabulary)


@final
class LlamaTokenizer:
    """The tokens and the chat template of a GGUF file. Raises `ModelError` for a template that cannot be read."""

    def __init__(self, name: str, decoder: LlamaDecoder, lib: Any, model: Any, vocabulary: Any) -> None:
        self._decoder = decoder  # has the file, which stays open with it
        self._lib, self._vocabulary, self._name = lib, vocabulary, name
        tokens = range(decoder.vocabulary)
        self.ends = frozenset(k for k in tokens if lib.llama_vocab_is_eog(vocabulary, k))
        self._pieces = [self._piece(k, special=False) for k in tokens]
        special = {
            key: self._piece(token, special=True).decode(errors="replace") if token >= 0 else ""
            for key, token in (
                ("bos_token", lib.llama_vocab_bos(vocabulary)),
                ("eos_token", lib.llama_vocab_eos(vocabulary)),
            )
        }
        template = lib.llama_model_chat_template(model, None)
        self._template = Template(name, template.decode(errors="replace"), special) if template else None

    def encode(self, text: str) -> list[int]:
        return self._encode(text, special=True)

    def decode(self, tokens: Sequence[int]) -> str:
        return b"".join(self._pieces[token] for token in tokens).decode(errors="replace")

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        if self._template is None:
            raise BadInput(f"{self._name} has no chat template; ask it to complete a text (/v1/completions).")
        return self._encode(self._template.render(messages), special=False)

    def _encode(self, text: str, special: bool) -> list[int]:
        data = text.encode()
        room = len(data) + 8  # a token is a byte at least
        made = (self._lib.llama_token * room)()
        count = self._lib.llama_tokenize(self._vocabulary, data, len(data), made, room, special, True)
        return list(made[:count])

    def _piece(self, token: int, special: bool) -> bytes:
        text = ctypes.create_string_buffer(256)
        size = self._lib.llama_token_to_piece(self._vocabulary, token, text, 256, 0, special)
        return text.raw[: max(0, size)]
