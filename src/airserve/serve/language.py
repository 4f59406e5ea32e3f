"""What a served model is to those who speak of text: a generator, a sentence encoder, or neither."""

from __future__ import annotations

from pathlib import Path

from airserve.model import Engine, ModelError, Run
from airserve.serve.configuration import Bounds
from airserve.serve.decoding import OnnxDecoder, is_decoder
from airserve.serve.encoding import Encoder, is_encoder
from airserve.serve.generating import Generator
from airserve.serve.metering import Meter
from airserve.serve.tallying import Tally
from airserve.serve.tokenizing import HuggingFace, context_of, described


def open_language(
    name: str, path: Path, run: Run, meter: Meter, tally: Tally, bounds: Bounds
) -> Generator | Encoder | None:
    """The generator or encoder that an open graph and its tokenizer make; it shares the engine's session.

    None for a graph that is neither, or has no tokenizer. Raises `ModelError` where they do not fit.
    """
    if path.suffix == ".gguf":
        from airserve.serve.llama import LlamaDecoder

        llama = LlamaDecoder(name, path, bounds)
        return Generator(name, llama, llama.tokenizer(name), meter, tally, bounds)
    engine = getattr(run, "__self__", None)
    if not isinstance(engine, Engine):
        return None
    session = engine.session
    decodes = is_decoder(session)
    if not (decodes or is_encoder(session)):
        return None
    said = described(session.get_modelmeta().custom_metadata_map, path.parent)
    if "tokenizer" not in said:
        return None
    tokenizer = HuggingFace(name, said)
    if not decodes:
        return Encoder(name, session, tokenizer, context_of(said))
    decoder = OnnxDecoder(session, name, context_of(said))
    if tokenizer.tokens > decoder.vocabulary:
        raise ModelError(f"{name} knows {decoder.vocabulary} tokens and its tokenizer {tokenizer.tokens}: not its own.")
    return Generator(name, decoder, tokenizer, meter, tally, bounds)
