"""CAMARA Model as a Service, release r2.1 (0.2.0-rc.1): knowledge bases, assistants, answers by this service's models.

github.com/camaraproject/ModelAsAService: knowledge-base.yaml, qa-assistant-manage.yaml, qa-assistant-service.yaml.
Tools are not offered: a service that calls whatever address it is told would be a way into its network.
"""

from __future__ import annotations

import asyncio
import csv
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np

from airserve import wire
from airserve.model import Array, ModelError
from airserve.serve.batching import DeadlineExceeded, Overloaded
from airserve.serve.encoding import TOGETHER, Encoder
from airserve.serve.generating import Closed, Generator
from airserve.serve.guarding import Forbidden, TooMany, Unauthorized
from airserve.serve.knowledge import Gone, Knowledge, Taken
from airserve.serve.protocols._camara_asked import Asked, respond
from airserve.serve.protocols._camara_requests import (
    Document,
    Refused,
    read_body,
    read_id,
    read_page,
    read_parameters,
    read_upload,
)
from airserve.serve.protocols._entry import NotAllowed, NotFound, Route, lines_of
from airserve.serve.protocols._head import Head
from airserve.serve.protocols.openai import embed, within_s
from airserve.serve.retrieving import nearest, passages, rows
from airserve.serve.sampling import Sampling
from airserve.serve.served import BadInput, EngineFailed, Served
from airserve.serve.service import Service, UnknownEndpoint

VERSION = "v0.2rc1"
CODES: dict[type[Exception], tuple[int, str]] = {
    wire.TooLarge: (413, "INVALID_ARGUMENT"), BadInput: (400, "INVALID_ARGUMENT"),
    ModelError: (400, "INVALID_ARGUMENT"), UnknownEndpoint: (400, "INVALID_ARGUMENT"), NotFound: (404, "NOT_FOUND"),
    Gone: (404, "NOT_FOUND"), NotAllowed: (405, "METHOD_NOT_ALLOWED"), Taken: (409, "ALREADY_EXISTS"),
    Unauthorized: (401, "UNAUTHENTICATED"),
    Forbidden: (403, "PERMISSION_DENIED"), TooMany: (429, "TOO_MANY_REQUESTS"), EngineFailed: (500, "INTERNAL"),
    Overloaded: (503, "UNAVAILABLE"), Closed: (503, "UNAVAILABLE"), DeadlineExceeded: (504, "TIMEOUT"),
}  # fmt: skip
BASES, DOCUMENTS, ASSISTANTS = 100, 1000, 1000  # of a tenant, of a base, of a tenant
PASSAGE = 128  # tokens, for the encoder
WAITING = 64  # documents that a worker holds until their turn
FOUND = 3  # passages that are put before a question
ASSISTANT: dict[str, type] = {
    "name": str, "description": str, "knowledgeBaseId": str, "toolIds": list, "configurationPrompt": str,
    "largeModelParameters": dict, "openingRemarks": str,
}  # fmt: skip
log = logging.getLogger(__name__)


def find(path: str) -> dict[str, Route]:
    """The routes of a path by method. Raises `NotFound`."""
    for pattern, methods in PATHS:
        if (found := pattern.fullmatch(path)) is not None:
            return {method: _route(work, found.groups()) for method, work in methods.items()}
    raise NotFound(f"{path[:80]} is not a path of Model as a Service {VERSION} as it is served here.")


def error_response(error: Exception, head: Head | None = None) -> bytes:
    """An exception as CAMARA says it: status, code and message."""
    message = str(error)
    if isinstance(error, Refused):
        status, code = error.status, error.code
    else:
        status, code = next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), (500, ""))
    if not code:
        log.error("a request failed in a way that no error names", exc_info=error)
        code, message = "INTERNAL", f"the server failed ({type(error).__name__}); its log says where."
    return respond(head, status, {"status": status, "code": code, "message": message[:512]}, lines_of(error))


Work = Callable[[Asked], bytes | Awaitable[bytes]]


def _route(work: Work, ids: Sequence[str]) -> Route:
    def route(service: Service, head: Head) -> Callable[[bytes, float], Awaitable[bytes]]:
        async def answer(body: bytes, arrived_s: float) -> bytes:
            found = work(Asked(service, head, body, arrived_s, ids))
            return found if isinstance(found, bytes) else await found

        head.costly = head.path.endswith("/answer")
        return answer

    return route


def _listed(asked: Asked, items: list[dict[str, Any]], say: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    page, per_page = read_page(asked.head.query)
    some = [say(item) for item in items[(page - 1) * per_page : page * per_page]]
    pages = {"page": page, "perPage": per_page, "totalCount": len(items), "totalPages": -(-len(items) // per_page)}
    return respond(asked.head, 200, {"items": some, "pagination": pages})


# knowledge-base


def _said_base(asked: Asked, base: dict[str, Any]) -> dict[str, Any]:
    documents = [_said_document(document) for document in asked.known.documents(base["id"])]
    said = {"knowledgeBaseId": base["id"], "name": base["name"], "documents": documents}
    return said if base["description"] is None else said | {"description": base["description"]}


def _said_document(document: dict[str, Any]) -> dict[str, Any]:
    names = {"id": "documentId", "base": "knowledgeBaseId", "uploaded": "uploadDate"}
    return {names.get(key, key): value for key, value in document.items() if key != "indexer"}


def _create_base(asked: Asked) -> bytes:
    said = read_body(asked.body, {"name": str, "description": str}, ("name",))
    _room(len(asked.known.bases(asked.tenant)), BASES, "knowledge bases")
    identity = asked.known.add_base(asked.tenant, said["name"], said.get("description"))
    return respond(asked.head, 201, _said_base(asked, asked.base(identity)))


def _list_bases(asked: Asked) -> bytes:
    return _listed(asked, asked.known.bases(asked.tenant), lambda base: _said_base(asked, base))


def _get_base(asked: Asked) -> bytes:
    return respond(asked.head, 200, _said_base(asked, asked.base(asked.ids[0])))


def _update_base(asked: Asked) -> bytes:
    asked.base(asked.ids[0])
    said = read_body(asked.body, {"name": str, "description": str})
    if said.get("name") == "":
        raise Refused("name is empty.")
    asked.known.change_base(asked.ids[0], said)
    return _get_base(asked)


def _delete_base(asked: Asked) -> bytes:
    asked.base(asked.ids[0])
    asked.known.drop_base(asked.ids[0])
    return respond(asked.head, 204)


async def _upload(asked: Asked) -> bytes:
    base = asked.base(asked.ids[0])["id"]
    document = await asyncio.to_thread(read_upload, asked.head.headers.get(b"content-type", b""), asked.body)
    _room(len(asked.known.documents(base)), DOCUMENTS, "documents in a knowledge base")
    if len(_indexing) >= WAITING:
        raise Overloaded(f"{WAITING} documents wait to be indexed already; send it again later.")
    served = asked.encoder(asked.known.encoders(base))
    identity = asked.known.add_document(base, document.filename, document.format)
    task = asyncio.get_running_loop().create_task(_index(asked.service, asked.known, served, identity, document))
    _indexing.add(task)
    task.add_done_callback(_indexing.discard)
    where = f"Location: /knowledge-base/{VERSION}/knowledge-bases/{base}/documents/{identity}\r\n"
    found = asked.known.documents(base, identity)
    if not found:
        raise NotFound(f"there is no knowledge base {base} any more.")
    return respond(asked.head, 201, _said_document(found[0]), where)


async def _index(service: Service, known: Knowledge, served: Served, identity: str, document: Document) -> None:
    """Finds a document's passages and their vectors, between the requests of others and after earlier documents."""
    encoder = served.language
    assert isinstance(encoder, Encoder)
    size = min(PASSAGE, encoder.context)

    def cut() -> list[str]:
        def count(part: str) -> int:
            return len(encoder.tokenizer.encode(part))

        texts = rows(document.text) if document.format == "CSV" else [document.text]
        return [piece for row in texts for piece in passages(row, size, count)]

    try:
        async with known.indexing:
            found = await asyncio.to_thread(cut)
            if not found:
                raise BadInput("the document holds no text.")
            vectors: list[Array] = []
            while some := found[len(vectors) : len(vectors) + TOGETHER]:
                try:
                    made, _ = await embed(service, served, encoder, some, time.monotonic(), math.inf)
                except Overloaded as error:  # those who wait for an answer go first
                    await asyncio.sleep(error.retry_s)
                else:
                    vectors += made
            await asyncio.to_thread(known.index, identity, served.name, found, np.stack(vectors))
    except (BadInput, csv.Error) as error:
        log.warning("the document %s cannot be indexed: %s", identity, error)
        known.fail(identity)
    except Exception as error:
        log.error("the document %s could not be indexed", identity, exc_info=error)
        known.fail(identity)


_indexing: set[asyncio.Task[None]] = set()


def _get_document(asked: Asked) -> bytes:
    return respond(asked.head, 200, _said_document(asked.document()))


def _delete_document(asked: Asked) -> bytes:
    asked.known.drop_document(asked.document()["id"])
    return respond(asked.head, 204)


# qa-assistant-manage


def _said_assistant(assistant: dict[str, Any]) -> dict[str, Any]:
    times = {"createdAt": assistant["created"], "updatedAt": assistant["updated"]}
    return {"assistantId": assistant["id"], **assistant["said"], **times}


def _checked(asked: Asked, said: dict[str, Any]) -> dict[str, Any]:
    """What is said of an assistant, held against what there is. Raises `Refused`, `NotFound`, and as `model`."""
    if said.get("name") == "":
        raise Refused("name is empty.")
    if "toolIds" in said:
        raise Refused("none of these tools is known: tools are not offered here.", 422, "KNOWLEDGE_BASE.TOOL_NOT_FOUND")
    if "knowledgeBaseId" in said:
        said["knowledgeBaseId"] = read_id(said["knowledgeBaseId"], "knowledgeBaseId")
        asked.base(said["knowledgeBaseId"])
    if "largeModelParameters" in said:
        parameters = read_parameters(said["largeModelParameters"])
        generator = asked.model(parameters["model"], Generator).language
        if isinstance(generator, Generator) and parameters["maxTokens"] >= generator.context:
            raise Refused(
                f"largeModelParameters.maxTokens is {parameters['maxTokens']}; {parameters['model']} holds "
                f"{generator.context} tokens, with the question.", code="OUT_OF_RANGE",
            )  # fmt: skip
    return said


def _create_assistant(asked: Asked) -> bytes:
    said = read_body(asked.body, ASSISTANT, ("name", "configurationPrompt", "largeModelParameters"))
    _room(len(asked.known.assistants(asked.tenant)), ASSISTANTS, "assistants")
    identity = asked.known.add_assistant(asked.tenant, _checked(asked, said))
    return respond(asked.head, 201, _said_assistant(asked.assistant(identity)))


def _list_assistants(asked: Asked) -> bytes:
    return _listed(asked, asked.known.assistants(asked.tenant), _said_assistant)


def _get_assistant(asked: Asked) -> bytes:
    return respond(asked.head, 200, _said_assistant(asked.assistant(asked.ids[0])))


def _update_assistant(asked: Asked) -> bytes:
    before = asked.assistant(asked.ids[0])["said"]
    asked.known.change_assistant(asked.ids[0], before | _checked(asked, read_body(asked.body, ASSISTANT)))
    return _get_assistant(asked)


def _delete_assistant(asked: Asked) -> bytes:
    asked.assistant(asked.ids[0])
    asked.known.drop_assistant(asked.ids[0])
    return respond(asked.head, 204)


# qa-assistant-service


async def _answer(asked: Asked) -> bytes:
    """The answer to a question; what fails once the assistant is known is an outcome, not a status."""
    said = read_body(asked.body, {"assistantId": str, "prompt": str}, ("assistantId", "prompt"))
    assistant = asked.assistant(read_id(said["assistantId"], "assistantId"))["said"]
    try:
        finished, text, reference = await _generated(asked, assistant, said["prompt"])
    except (UnknownEndpoint, Forbidden, Refused, NotFound, Gone, BadInput, EngineFailed, DeadlineExceeded) as error:
        finished, text, reference = "ERROR", str(error), ""
    answer = {"success": finished != "ERROR", "finished": finished, "answerText": text[:65_535]}
    return respond(asked.head, 200, answer | ({"reference": reference[:255]} if reference else {}))


async def _generated(asked: Asked, assistant: Mapping[str, Any], question: str) -> tuple[str, str, str]:
    """Why the answer ended, the answer, and the file that the nearest passage is from."""
    parameters = assistant["largeModelParameters"]
    served = asked.model(parameters["model"], Generator)
    generator = served.language
    assert isinstance(generator, Generator)
    deadline_s = asked.arrived_s + within_s(asked.service, asked.head)
    found = (
        await _found(asked, assistant["knowledgeBaseId"], question, deadline_s)
        if "knowledgeBaseId" in assistant
        else []
    )
    while True:  # as many passages as there is room for, the nearest kept longest
        prompt = _prompt(generator, assistant["configurationPrompt"], [text for text, _ in found], question)
        if not found or len(prompt) + parameters["maxTokens"] <= generator.context:
            break
        found = found[:-1]
    sampling = Sampling(parameters["maxTokens"], parameters["temperature"], parameters.get("topP", 1.0))
    generation = generator.start(prompt, sampling, arrived_s=asked.arrived_s, deadline_s=deadline_s)
    try:
        piece = await generation.whole()
    finally:
        generation.close()
    return ("LENGTH" if piece.finish == "length" else "STOP"), piece.text.strip(), found[0][1] if found else ""


async def _found(asked: Asked, base: str, question: str, deadline_s: float) -> list[tuple[str, str]]:
    """The passages nearest to a question, each with its file: by each encoder that has vectors there and is served.

    Raises as `model` where none of them is.
    """
    asked.base(base)
    near: list[tuple[float, str, str]] = []
    unserved: Exception | None = None
    for name in asked.known.encoders(base):
        try:
            served = asked.model(name, Encoder)
        except (UnknownEndpoint, Forbidden, Refused) as error:
            unserved = error
            continue
        encoder = served.language
        assert isinstance(encoder, Encoder)
        vectors, _ = await embed(asked.service, served, encoder, [question], asked.arrived_s, deadline_s)
        near += await asyncio.to_thread(_near, asked.known, base, name, vectors[0])
    if unserved is not None and not near:
        raise unserved
    near.sort(key=lambda one: -one[0])
    return [(text, file) for _, text, file in near[:FOUND]]


def _near(known: Knowledge, base: str, encoder: str, vector: Array) -> list[tuple[float, str, str]]:
    """How near the passages are that are nearest by an encoder, each with its text and its file. Raises `Gone`."""
    texts, files, vectors = known.passages(base, encoder)
    return [(float(vectors[k] @ vector), texts[k], files[k]) for k in nearest(vector, vectors, FOUND)]


def _prompt(generator: Generator, configured: str, found: Sequence[str], question: str) -> list[int]:
    """The tokens of a prompt: as a chat where the model has a template, else as a text to be gone on with."""
    context = "".join(f"\n\n{text}" for text in found)
    told = f"{configured}\n\nAnswer from this:{context}" if found else configured
    try:
        return generator.tokenizer.chat([{"role": "system", "content": told}, {"role": "user", "content": question}])
    except BadInput:
        return generator.tokenizer.encode(f"{told}\n\nQuestion: {question}\nAnswer:")


def _room(count: int, most: int, what: str) -> None:
    if count >= most:
        raise Refused(f"there are {count} {what} already; delete one.", 429, "QUOTA_EXCEEDED")


def _paths(api: str, *paths: tuple[str, dict[str, Work]]) -> list[tuple[re.Pattern[str], dict[str, Work]]]:
    return [(re.compile(f"/{api}/{VERSION}{path}".replace("ID", "([^/]+)")), methods) for path, methods in paths]


PATHS = [
    *_paths(
        "knowledge-base",
        ("/knowledge-bases", {"POST": _create_base, "GET": _list_bases}),
        ("/knowledge-bases/ID", {"GET": _get_base, "PUT": _update_base, "DELETE": _delete_base}),
        ("/knowledge-bases/ID/documents", {"POST": _upload}),
        ("/knowledge-bases/ID/documents/ID", {"GET": _get_document, "DELETE": _delete_document}),
    ),
    *_paths(
        "qa-assistant-manage",
        ("/assistants", {"POST": _create_assistant, "GET": _list_assistants}),
        ("/assistants/ID", {"GET": _get_assistant, "PUT": _update_assistant, "DELETE": _delete_assistant}),
    ),
    *_paths("qa-assistant-service", ("/answer", {"POST": _answer})),
]
