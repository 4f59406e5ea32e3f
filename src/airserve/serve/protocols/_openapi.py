"""The REST routes of a service as an OpenAPI 3.1 document."""

from __future__ import annotations

from typing import Any

from airserve.serve.protocols._openapi_camara import ERROR, camara_paths
from airserve.serve.protocols._openapi_language import LANGUAGE
from airserve.tensors import DATATYPE

JSON = "application/json"
REF = "#/components/schemas/"
TEXT: dict[str, Any] = {"type": "string"}
COUNT: dict[str, Any] = {"type": "integer", "minimum": 0}


def _object(required: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **({"required": required.split()} if required else {})}


def _many(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": REF + name}


DATA = {"type": "array", "description": "Flat in row-major order, or nested as the shape."}
PARAMETERS = {"type": "object"}
BATCHING = _object(
    max_batch={**COUNT, "maximum": 1024, "description": "Rows; 0: as the model's first runs say."},
    max_wait_ms={"type": "number", "minimum": 0, "maximum": 1000},
)
TENSOR = _object("name datatype shape", name=TEXT, datatype=_ref("datatype"), shape=_many({"type": "integer"}))
DURATION = _object("count ns", count=COUNT, ns=COUNT)
SCHEMAS: dict[str, Any] = {
    "datatype": {"enum": sorted(DATATYPE.values())},
    "error": _object("error", error={**TEXT, "description": "One sentence: what, where, what next."}),
    "server": _object("name version extensions", name=TEXT, version=TEXT, extensions=_many(TEXT)),
    "model": _object(
        "name versions platform inputs outputs",
        name=TEXT, versions=_many(TEXT), platform=TEXT, inputs=_many(TENSOR), outputs=_many(TENSOR),
    ),
    "request": _object(
        "inputs",
        id=TEXT,
        parameters=_object(binary_data_output={"type": "boolean"}, timeout={**COUNT, "description": "Microseconds."}),
        inputs={
            "type": "array",
            "minItems": 1,
            "items": _object(
                "name shape datatype",
                name=TEXT, shape=_many(COUNT), datatype=_ref("datatype"), parameters=PARAMETERS, data=DATA,
            ),
        },
        outputs=_many(_object("name", name=TEXT, parameters=_object(binary_data={"type": "boolean"}))),
    ),
    "response": _object(
        "model_name outputs",
        model_name=TEXT, model_version=TEXT, id=TEXT,
        outputs=_many(
            _object(
                "name shape datatype",
                name=TEXT, shape=_many(COUNT), datatype=_ref("datatype"), parameters=PARAMETERS, data=DATA,
            )
        ),
    ),
    "statistics": _object(
        "model_stats",
        model_stats=_many(
            _object(
                "name version inference_count inference_stats",
                name=TEXT, version=TEXT, inference_count=COUNT, execution_count=COUNT,
                inference_stats=_object(
                    "success fail queue compute_infer",
                    success=DURATION, fail=DURATION, queue=DURATION, compute_infer=DURATION,
                ),
            )
        ),
    ),
    "index": _many(
        _object(
            "name version state reason",
            name=TEXT, version=TEXT, state={"enum": ["READY", "UNAVAILABLE"]}, reason=TEXT,
        )
    ),
}  # fmt: skip
ERRORS = {
    400: "What was sent cannot be used.", 401: "No key, or one that is not known.", 403: "Not for this tenant.",
    404: "There is no such model, version or path.", 405: "The path takes another method.",
    413: "The body is too large.", 415: "An encoding that is not known.", 429: "More than the tenant may ask.",
    500: "The engine or the server failed.", 502: "The next site failed.", 503: "The queue is full.",
    504: "The deadline passed.",
}  # fmt: skip
TALK = (400, 401, 403, 404, 413, 415, 429, 500, 503, 504)
INFER = (400, 401, 403, 404, 413, 415, 429, 500, 502, 503, 504)
LOOK = (401, 403, 404, 429)


def _operation(
    summary: str,
    schema: Any,
    errors: tuple[int, ...],
    *names: str,
    body: Any = None,
    media: str = JSON,
    key: bool = True,
    error: str = "error",
    events: bool = False,
) -> dict[str, Any]:
    answers: dict[str, Any] = {"200": {"description": "As asked.", "content": {media: {"schema": schema}}}}
    if events:
        answers["200"]["content"]["text/event-stream"] = {"schema": TEXT}
    for status in errors:
        answers[str(status)] = {"description": ERRORS[status], "content": {JSON: {"schema": _ref(error)}}}
    made: dict[str, Any] = {"summary": summary, "responses": answers}
    if names:
        made["parameters"] = [{"name": n, "in": "path", "required": True, "schema": TEXT} for n in names]
    if body is not None:
        required = "inputs" in str(body) or error != "error"
        made["requestBody"] = {"required": required, "content": {JSON: {"schema": body}}}
    if not key:
        made["security"] = []
    return made


def document() -> dict[str, Any]:
    """The document; binary tensors, which JSON Schema cannot say, are described in words."""
    paths: dict[str, Any] = {
        "/v2": {"get": _operation("What the server is", _ref("server"), (401, 429))},
        "/v2/health/live": {"get": _operation("It runs", _object("live", live={"const": True}), (), key=False)},
        "/v2/health/ready": {"get": _operation("It answers", _object("ready", ready={"const": True}), (), key=False)},
        "/v2/models/stats": {"get": _operation("Statistics of all models", _ref("statistics"), (401, 429))},
        "/v2/repository/index": {
            "post": _operation(
                "What is served or could be", _ref("index"), (400, 401, 429), body=_object(ready={"type": "boolean"})
            )
        },
        "/metrics": {"get": _operation("For Prometheus", TEXT, (401, 429), media="text/plain")},
    }
    for what in ("load", "unload"):
        body = _object(parameters=PARAMETERS)
        paths[f"/v2/repository/models/{{model}}/{what}"] = {
            "post": _operation(
                f"{what.title()} a model, in all workers", {"type": "object"}, (400, *LOOK), "model", body=body
            )
        }
    for path, names in (("", ("model",)), ("/versions/{version}", ("model", "version"))):
        model = "/v2/models/{model}" + path
        ready = _object("name ready", name=TEXT, version=TEXT, ready={"type": "boolean"})
        paths[model] = {"get": _operation("What a model takes and gives", _ref("model"), (*LOOK, 502, 504), *names)}
        paths[f"{model}/ready"] = {"get": _operation("It answers", ready, LOOK, *names)}
        paths[f"{model}/stats"] = {"get": _operation("What was counted", _ref("statistics"), LOOK, *names)}
        paths[f"{model}/config"] = {
            "post": _operation(
                "How requests are computed together: told, and set where a body says so",
                BATCHING,
                (400, *LOOK),
                *names,
                body=BATCHING,
            )
        }
        paths[f"{model}/infer"] = {"post": _operation("Infer", _ref("response"), INFER, *names, body=_ref("request"))}
    said: dict[str, Any] = {"error": "openai_error"}
    paths |= {
        "/v1/models": {"get": _operation("The models that speak", _ref("openai_models"), (401, 429), **said)},
        "/v1/models/{model}": {
            "get": _operation("One of them", _ref("openai_model"), (401, 403, 404, 429), "model", **said)
        },
        "/v1/chat/completions": {
            "post": _operation(
                "The next message of a conversation", _ref("chat_answer"), TALK, body=_ref("chat"), events=True, **said
            )
        },
        "/v1/completions": {
            "post": _operation(
                "The continuation of a text",
                _ref("completion_answer"),
                TALK,
                body=_ref("completion"),
                events=True,
                **said,
            )
        },
        "/v1/embeddings": {
            "post": _operation("Vectors of texts", _ref("embed_answer"), TALK, body=_ref("embed"), **said)
        },
    }
    paths |= camara_paths(ERRORS)
    from importlib.metadata import version as version_of  # brings the parsers of e-mail

    return {
        "openapi": "3.1.0",
        "info": {
            "title": "airserve",
            "version": version_of("airserve"),
            "description": "Open Inference Protocol V2, the OpenAI protocol under /v1, CAMARA's Model as a Service. "
            "Tensors may travel as binary data behind the JSON: "
            "Inference-Header-Content-Length says where they begin, binary_data_size how long each is.",
        },
        "paths": paths,
        "components": {
            "schemas": SCHEMAS | LANGUAGE | {"camara_error": ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}],
    }
