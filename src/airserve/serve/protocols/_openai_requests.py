"""What a request of the OpenAI protocol asks: read and checked field by field, nothing passed over in silence.

OpenAI's API reference: chat/create, completions/create, embeddings/create. What is not offered is refused unless it has
the value that changes nothing; what could not change the answer (`user`, `metadata`, ...) is taken and left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import orjson

from airserve.serve.sampling import Sampling

LEFT = frozenset(
    ("user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
)
# What is not offered, and the values with which it changes nothing.
REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "n": ("one answer is made to a request; send it again for another", (1,)),
    "best_of": ("one answer is made to a prompt", (1,)),
    "logprobs": ("probabilities of tokens are not given", (False,)),
    "top_logprobs": ("probabilities of tokens are not given", ()),
    "logit_bias": ("logits are taken as the model gives them", ({},)),
    "tools": ("the model calls no tools", ([],)),
    "tool_choice": ("the model calls no tools", ("none",)),
    "parallel_tool_calls": ("the model calls no tools", (False, True)),
    "functions": ("the model calls no functions", ([],)),
    "function_call": ("the model calls no functions", ("none",)),
    "response_format": ("the text is not held to a format", ({"type": "text"},)),
    "modalities": ("answers are text", (["text"],)),
    "audio": ("answers are text", ()),
    "echo": ("the prompt is not repeated", (False,)),
    "suffix": ("text is continued at its end", ("",)),
}
MESSAGE = frozenset(("role", "content", "name", "refusal", "tool_calls", "function_call", "audio"))
STOPS = 4  # stop sequences of a request, at most
PROMPTS = 64
INPUTS = 2048

Tokens = Sequence[int]


class Invalid(ValueError):
    """A request that cannot be answered; the message is one sentence, `param` the field it is about."""

    def __init__(self, sentence: str, param: str | None = None) -> None:
        super().__init__(sentence)
        self.param = param


class Asked(NamedTuple):
    """A text to be generated: of `prompts`, or of `messages`; `max_tokens` None: as many as there is room for."""

    model: str
    prompts: list[str | Tokens]
    messages: list[dict[str, str]]
    stream: bool
    usage: bool  # at a stream's end
    max_tokens: int | None
    options: dict[str, Any]

    def sampling(self, room: int) -> Sampling:
        """How to continue a prompt that leaves room for so many tokens."""
        return Sampling(max_tokens=max(1, room) if self.max_tokens is None else self.max_tokens, **self.options)


class Embed(NamedTuple):
    """Texts, or their tokens, to be embedded; `base64`: as little-endian float32."""

    model: str
    inputs: list[str | Tokens]
    base64: bool
    dimensions: int | None


def read_chat(body: bytes) -> Asked:
    """A request for the next message of a conversation. Raises `Invalid`."""
    fields = _Fields(body)
    messages = fields.take("messages", _messages)
    if messages is None:
        raise Invalid("the request has no messages.", "messages")
    limits = [fields.take(name, _whole(1)) for name in ("max_completion_tokens", "max_tokens")]
    limit = next((limit for limit in limits if limit is not None), None)
    return _asked(fields, [], messages, limit)


def read_completion(body: bytes) -> Asked:
    """A request for the continuation of texts. Raises `Invalid`."""
    fields = _Fields(body)
    prompts = fields.take("prompt", lambda value: _texts(value, PROMPTS))
    if prompts is None:
        raise Invalid("the request has no prompt.", "prompt")
    limit = fields.take("max_tokens", _whole(1))
    return _asked(fields, prompts, [], 16 if limit is None else limit)


def read_embed(body: bytes) -> Embed:
    """A request for vectors of texts. Raises `Invalid`."""
    fields = _Fields(body)
    inputs = fields.take("input", lambda value: _texts(value, INPUTS))
    if inputs is None:
        raise Invalid("the request has no input.", "input")
    form = fields.take("encoding_format", _one_of("float", "base64"))
    dimensions = fields.take("dimensions", _whole(1))
    model = _model(fields)
    fields.end()
    return Embed(model, inputs, form == "base64", dimensions)


def _asked(fields: _Fields, prompts: list[str | Tokens], messages: list[dict[str, str]], limit: int | None) -> Asked:
    options = {
        "temperature": fields.take("temperature", _number(0, 2)),
        "top_p": fields.take("top_p", _number(0, 1)),
        "seed": fields.take("seed", _whole()),
        "stop": fields.take("stop", _stops),
        "frequency_penalty": fields.take("frequency_penalty", _number(-2, 2)),
        "presence_penalty": fields.take("presence_penalty", _number(-2, 2)),
    }
    stream = bool(fields.take("stream", _flag))
    streaming = fields.take("stream_options", _object) or {}
    if unknown := set(streaming) - {"include_usage", "include_obfuscation"}:
        raise Invalid(f"stream_options has no {min(unknown)!r}.", "stream_options")
    if streaming and not stream:
        raise Invalid("stream_options are for a stream; set stream.", "stream_options")
    model = _model(fields)
    fields.end()
    given = {name: value for name, value in options.items() if value is not None}
    return Asked(model, prompts, messages, stream, streaming.get("include_usage") is True, limit, given)


class _Fields:
    """The fields of a JSON object, until all are taken."""

    def __init__(self, body: bytes) -> None:
        try:
            self._fields = orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise Invalid(f"the JSON is malformed: {str(error)[:100]}.") from None
        if not isinstance(self._fields, dict):
            raise Invalid("the JSON is not an object.")

    def take(self, name: str, read: Callable[[Any], Any]) -> Any:
        """A field's value as `read` reads it; None where it is absent or null."""
        value = self._fields.pop(name, None)
        if value is None:
            return None
        try:
            return read(value)
        except _Wrong as wrong:
            raise Invalid(f"{name} {wrong}.", name) from None

    def end(self) -> None:
        """Raises `Invalid` for what is left and matters."""
        for name, value in self._fields.items():
            if name in LEFT or value is None:
                continue
            if name not in REFUSED:
                raise Invalid(f"there is no parameter {name[:60]!r}; leave it out.", name[:60])
            why, harmless = REFUSED[name]
            if not any(value == one and type(value) is type(one) for one in harmless):
                raise Invalid(f"{name} is not offered: {why}.", name)


class _Wrong(ValueError):
    """What is wrong with a value, as the end of a sentence."""


def _refuse(wanted: str, value: Any) -> NoReturn:
    raise _Wrong(f"is {str(value)[:60]!r}; wanted is {wanted}")


def _model(fields: _Fields) -> str:
    model: str | None = fields.take("model", _text)
    if not model:
        raise Invalid("the request names no model.", "model")
    return model


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _refuse("a text", value)


def _flag(value: Any) -> bool:
    return value if isinstance(value, bool) else _refuse("true or false", value)


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else _refuse("an object", value)


def _one_of(*values: str) -> Callable[[Any], str]:
    return lambda value: value if isinstance(value, str) and value in values else _refuse(" or ".join(values), value)


def _number(low: float, high: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            _refuse(f"a number from {low} to {high}", value)
        return float(value)

    return read


def _whole(low: int | None = None) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or (low is not None and value < low):
            _refuse("a whole number" + ("" if low is None else f" of at least {low}"), value)
        return abs(value) if low is None else value  # a seed: numpy takes none below 0

    return read


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > STOPS or not all(isinstance(s, str) and s for s in stops):
        _refuse(f"a text or up to {STOPS} of them, none empty", value)
    return tuple(stops)


def _tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _texts(value: Any, most: int) -> list[str | Tokens]:
    """One text or several, each as text or as tokens."""
    texts = [value] if isinstance(value, str) or _tokens(value) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) or _tokens(t) for t in texts):
        _refuse("a text, its tokens, or a list of either", value)
    if len(texts) > most:
        raise _Wrong(f"holds {len(texts)} texts; {most} can be asked at once")
    return texts


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        _refuse("a list of messages", value)
    return [_message(message) for message in value]


def _message(message: Any) -> dict[str, str]:
    if not isinstance(message, dict) or not isinstance(role := message.get("role"), str):
        _refuse("a list of messages, each with a role and its content", message)
    if unknown := set(message) - MESSAGE:
        raise _Wrong(f"holds a message with a field {min(unknown)[:40]!r}, which is not known")
    if any(message.get(name) for name in ("tool_calls", "function_call", "audio")) or role in ("tool", "function"):
        raise _Wrong("speak of tools or audio; the model calls none and hears none")
    made = {"role": "system" if role == "developer" else role, "content": _content(message.get("content"), role)}
    name = message.get("name")
    return made | {"name": _text(name)} if name is not None else made


def _content(content: Any, role: str) -> str:
    if content is None and role == "assistant":
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        _refuse("a message's content as text or a list of parts", content)
    for part in content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise _Wrong(f"hold a part of type {str(part.get('type'))[:40]!r}; the model reads text alone")
    return "".join(part["text"] for part in content)
