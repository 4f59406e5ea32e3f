"""Text to tokens and back, and a conversation to a prompt: what is written beside a language model's weights.

A Hugging Face `tokenizer.json`, and where there are, `chat_template` (Jinja), `eos_token`, `bos_token`: as metadata of
the .onnx file, or in the files of a folder as Optimum exports it. Both libraries (extra `llm`) are loaded for a
language model alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, final

from airserve.model import ModelError
from airserve.serve.served import BadInput

EXTRA = "needs the extra `llm`: pip install 'airserve[llm]'."
FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json")
CONTEXT = ("context_length", "max_position_embeddings", "n_positions", "n_ctx")  # as configurations call it


class Tokenizer(Protocol):
    """What turns text into tokens and back."""

    ends: frozenset[int]  # tokens after which a text is complete

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with those that the model wants around it."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without those that are no text."""

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The prompt that asks for the next message. Raises `BadInput`."""


def described(metadata: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """What a file's metadata, or else the files beside it, say of its tokens.

    Raises `ModelError` for a file beside it that cannot be read or is no JSON object.
    """
    found: dict[str, Any] = dict(metadata)
    if "tokenizer" not in found and (folder / FILES[0]).is_file():
        found["tokenizer"] = _read(folder / FILES[0])
        for name in FILES[1:]:
            path = folder / name
            text = _read(path) if path.is_file() else "{}"
            try:
                said = json.loads(text)
            except ValueError:
                said = None
            if not isinstance(said, dict):
                raise ModelError(f"{path} is no JSON object; see that it is whole.")
            found = {**{key: value for key, value in said.items() if value is not None}, **found}
        template = folder / "chat_template.jinja"
        if "chat_template" not in found and template.is_file():
            found["chat_template"] = _read(template)
    return found


def context_of(described: Mapping[str, Any]) -> int | None:
    """How many tokens a sequence may have, where it is said.

    >>> context_of({"context_length": "256"}), context_of({"n_positions": 1024}), context_of({})
    (256, 1024, None)
    """
    for key in CONTEXT:
        value = described.get(key)
        if isinstance(value, (int, str)) and str(value).isdecimal() and int(value) > 2:
            return int(value)
    return None


@final
class HuggingFace:
    """A tokenizer as `tokenizers` reads it. Raises `ModelError` where it cannot be read or the extra is missing."""

    def __init__(self, name: str, described: Mapping[str, Any]) -> None:
        try:
            import tokenizers
        except ImportError:
            raise ModelError(f"{name} is a language model, which {EXTRA}") from None
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(described["tokenizer"])
        except Exception as error:  # the library raises the bare class
            raise ModelError(f"the tokenizer of {name} cannot be read: {str(error)[:120]}.") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._name = name
        self.tokens = self._tokenizer.get_vocab_size()
        special = {key: _text(described.get(key)) for key in ("bos_token", "eos_token")}
        ids = described.get("eos_token_id", [])
        try:
            ends = {int(i) for i in (ids if isinstance(ids, list) else [ids])}
        except (TypeError, ValueError, OverflowError):
            raise ModelError(f"{name} says eos_token_id {str(ids)[:40]!r}, which is no token's number.") from None
        if special["eos_token"] and (end := self._tokenizer.token_to_id(special["eos_token"])) is not None:
            ends.add(end)
        self.ends = frozenset(ends)
        template = described.get("chat_template")
        if isinstance(template, list):  # several, by name
            named = [one for one in template if isinstance(one, dict) and one.get("name") == "default"]
            template = named[0].get("template") if named else None
        if template and not isinstance(template, str):
            raise ModelError(f"the chat template of {name} is no text.")
        self._template = None if not template else Template(name, template, special)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text).ids)

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens)))

    def chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        if self._template is None:
            raise BadInput(f"{self._name} has no chat template; ask it to complete a text (/v1/completions).")
        return list(self._tokenizer.encode(self._template.render(messages), add_special_tokens=False).ids)


@final
class Template:
    """A chat template: a stranger's code, run where it reaches nothing. Raises `ModelError` where it cannot be read."""

    def __init__(self, name: str, text: str, special: Mapping[str, str]) -> None:
        try:
            import jinja2
            from jinja2.sandbox import ImmutableSandboxedEnvironment
        except ImportError:
            raise ModelError(f"the chat template of {name} {EXTRA}") from None
        self._failed = jinja2.TemplateError
        self._special = special
        # As the library for which templates are written sets it up.
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = self._refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(text)
        except jinja2.TemplateError as error:
            raise ModelError(f"the chat template of {name} cannot be read: {str(error)[:120]}.") from None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt as text. Raises `BadInput`."""
        try:
            prompt: str = self._template.render(messages=list(messages), add_generation_prompt=True, **self._special)
            return prompt
        except (self._failed, TypeError, ValueError, KeyError, ArithmeticError, LookupError) as error:
            raise BadInput(f"the model's chat template refuses these messages: {str(error)[:160]}.") from None

    def _refuse(self, why: str) -> None:
        raise self._failed(why)


def _read(path: Path) -> str:
    """A file's text. Raises `ModelError`."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); see that it is there.") from None
    except UnicodeDecodeError:
        raise ModelError(f"{path} is no text in UTF-8; see that it is whole.") from None


def _text(token: Any) -> str:
    """A special token's text, which some files wrap.

    >>> _text({"content": "<s>"}), _text("</s>"), _text(None)
    ('<s>', '</s>', '')
    """
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""
