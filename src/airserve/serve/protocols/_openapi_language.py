"""What requests and answers of the OpenAI protocol hold, as JSON Schema, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

TEXT: dict[str, Any] = {"type": "string"}
NULLABLE = {"type": ["string", "null"]}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}
NULL = {"type": "null"}


def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required.split()}


def _many(items: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


TOKENS = _many({"type": "integer"}, minItems=1)
TEXTS = {"anyOf": [TEXT, TOKENS, _many(TEXT, minItems=1), _many(TOKENS, minItems=1)]}
MESSAGE = _object(
    "role content",
    role={"enum": ["system", "developer", "user", "assistant"]},
    content={"anyOf": [TEXT, _many(_object("type text", type={"const": "text"}, text=TEXT), minItems=1)]},
)
SAMPLING: dict[str, Any] = {
    "model": {**TEXT, "description": "NAME or NAME@VERSION."},
    "temperature": {"type": "number", "minimum": 0, "maximum": 2, "default": 1},
    "top_p": {"type": "number", "minimum": 0, "maximum": 1, "default": 1},
    "max_tokens": {"type": "integer", "minimum": 1},
    "seed": {"type": "integer"},
    "stop": {"anyOf": [{**TEXT, "minLength": 1}, _many({**TEXT, "minLength": 1}, maxItems=4)]},
    "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2, "default": 0},
    "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2, "default": 0},
    "stream": {"type": "boolean", "default": False, "description": "Server-sent events that end with [DONE]."},
    "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
}
FINISH = {"enum": ["stop", "length"]}
USAGE = _object(
    "prompt_tokens completion_tokens total_tokens", prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT
)
MODEL = _object(
    "id object created owned_by", id=TEXT, object={"const": "model"}, created=COUNT, owned_by={"const": "airserve"}
)


def _answer(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return _object(
        "id object created model choices usage",
        id=TEXT, object={"const": kind}, created=COUNT, model=TEXT, choices=_many(choice), usage=USAGE,
        system_fingerprint=TEXT,
    )  # fmt: skip


LANGUAGE: dict[str, Any] = {
    "openai_error": _object(
        "error",
        error=_object("message type param code", message=TEXT, type=TEXT, param=NULLABLE, code=NULLABLE),
    ),
    "openai_model": MODEL,
    "openai_models": _object("object data", object={"const": "list"}, data=_many(MODEL)),
    "chat": _object(
        "model messages", messages=_many(MESSAGE, minItems=1), max_completion_tokens=SAMPLING["max_tokens"], **SAMPLING
    ),
    "chat_answer": _answer(
        "chat.completion",
        _object(
            "index message finish_reason",
            index=COUNT, logprobs=NULL, finish_reason=FINISH,
            message=_object("role content", role={"const": "assistant"}, content=TEXT, refusal=NULL),
        ),
    ),
    "completion": _object(
        "model prompt", prompt=TEXTS, **{**SAMPLING, "max_tokens": {**SAMPLING["max_tokens"], "default": 16}}
    ),
    "completion_answer": _answer(
        "text_completion",
        _object("index text finish_reason", index=COUNT, text=TEXT, logprobs=NULL, finish_reason=FINISH),
    ),
    "embed": _object(
        "model input",
        model=SAMPLING["model"], input=TEXTS, encoding_format={"enum": ["float", "base64"], "default": "float"},
        dimensions={"type": "integer", "minimum": 1}, user=TEXT,
    ),
    "embed_answer": _object(
        "object model data usage",
        object={"const": "list"}, model=TEXT,
        data=_many(
            _object(
                "object index embedding",
                object={"const": "embedding"}, index=COUNT, embedding={"anyOf": [_many({"type": "number"}), TEXT]},
            )
        ),
        usage=_object("prompt_tokens total_tokens", prompt_tokens=COUNT, total_tokens=COUNT),
    ),
}  # fmt: skip
