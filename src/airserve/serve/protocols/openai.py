"""The OpenAI protocol over REST, beside the Open Inference Protocol: chat, completions, embeddings, models.

OpenAI's API reference; streams are server-sent events that end with [DONE].
"""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from importlib.metadata import version as version_of
from typing import Any, NamedTuple, final

import orjson

from airserve import wire
from airserve.model import Array, ModelError
from airserve.serve.batching import DeadlineExceeded, Overloaded
from airserve.serve.connecting import UpstreamFailed, UpstreamLate
from airserve.serve.encoding import TOGETHER, Encoder
from airserve.serve.generating import Closed, Generation, Generator, Piece
from airserve.serve.guarding import Forbidden, TooMany, Unauthorized
from airserve.serve.protocols._entry import Answered, NotAllowed, NotFound, Respond, Route, allowed, lines_of, timeout_s
from airserve.serve.protocols._head import Head
from airserve.serve.protocols._openai_requests import Asked, Invalid, Tokens, read_chat, read_completion, read_embed
from airserve.serve.protocols._streaming import Stream, event
from airserve.serve.served import BadInput, EngineFailed, Served
from airserve.serve.service import Service, UnknownEndpoint
from airserve.tensors import WireError
from airserve.timing import Timing, format_timing

# Status, and what errors of it are called.
ERRORS: dict[type[Exception], tuple[int, str | None]] = {
    wire.TooLarge: (413, None), wire.UnknownEncoding: (415, None), WireError: (400, None), Invalid: (400, None),
    BadInput: (400, None), ModelError: (400, None), UnknownEndpoint: (404, "model_not_found"), NotFound: (404, None),
    NotAllowed: (405, None), Unauthorized: (401, "invalid_api_key"), Forbidden: (403, "forbidden"),
    TooMany: (429, "rate_limit_exceeded"), EngineFailed: (500, None), Overloaded: (503, "overloaded"),
    Closed: (503, None), DeadlineExceeded: (504, "timeout"), UpstreamFailed: (502, None),
    UpstreamLate: (504, "timeout"),
}  # fmt: skip
LONG = 20_000  # characters; a longer text is read on another thread, for the loop has others to answer
WIDEST = 100  # characters of a token, at most, for a prompt that is worth reading
DONE = event(b"[DONE]")
log = logging.getLogger(__name__)


def find(path: str) -> dict[str, Route]:
    """The routes of a path by method. Raises `NotFound`."""
    path = path.rstrip("/")
    if path in ROUTES:
        return ROUTES[path]
    if path.startswith("/v1/models/"):
        return {"GET": _one_model}
    raise NotFound(f"{path[:80]} is not a path of the OpenAI protocol as it is served here; see /docs.")


def error_response(error: Exception, head: Head | None = None) -> bytes:
    """An exception as the protocol says it."""
    status, said = described(error)
    return wire.http_response(status, orjson.dumps(said), extra=lines_of(error))


def described(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of an error."""
    for kind in type(error).__mro__:
        if kind in ERRORS:
            status, code = ERRORS[kind]
            break
    else:
        log.error("a request failed in a way that no error names", exc_info=error)
        status, code = 500, None
        error = RuntimeError(f"the server failed ({type(error).__name__}); its log says where.")
    form = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    param = "model" if isinstance(error, UnknownEndpoint) else getattr(error, "param", None)
    return status, {"error": {"message": str(error), "type": form, "param": param, "code": code}}


class Form(NamedTuple):
    """How generated text is written: as messages of a chat, or as plain text."""

    kind: str  # of the whole answer
    chunk: str  # of a stream's
    prefix: str  # of ids

    def choice(self, index: int, piece: Piece) -> dict[str, Any]:
        how: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": piece.finish or None}
        if self.prefix == "cmpl":
            return how | {"text": piece.text}
        return how | {"message": {"role": "assistant", "content": piece.text, "refusal": None}}

    def delta(self, index: int, piece: Piece, first: bool) -> dict[str, Any]:
        if self.prefix == "cmpl":
            return self.choice(index, piece)
        said: dict[str, Any] = {"role": "assistant"} if first else {}
        if piece.text or first:
            said["content"] = piece.text
        return {"index": index, "delta": said, "logprobs": None, "finish_reason": piece.finish or None}


CHAT = Form("chat.completion", "chat.completion.chunk", "chatcmpl")
PLAIN = Form("text_completion", "text_completion", "cmpl")


@final
class _Generate:
    """Answers requests with one header for text."""

    def __init__(self, read: Callable[[bytes], Asked], form: Form, service: Service, head: Head) -> None:
        self._read, self._form, self._service, self._head = read, form, service, head
        head.costly = True

    def __call__(self, body: bytes, arrived_s: float) -> Awaitable[Answered]:
        return self._answer(_plain(self._head, body), arrived_s)

    async def _answer(self, body: bytes, arrived_s: float) -> Answered:
        asked = self._read(body)
        served = model(self._service, self._head, asked.model)
        generator = served.language
        if not isinstance(generator, Generator):
            raise Invalid(f"{served.name} generates no text; {_others(self._service, self._head, Generator)}.", "model")
        about = {
            "id": f"{self._form.prefix}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": asked.model,
            "system_fingerprint": f"airserve-{version_of('airserve')}-{served.name}-{served.version}",
        }
        started: list[Generation] = []
        try:
            deadline_s = arrived_s + within_s(self._service, self._head)
            for prompt in await self._prompts(generator, asked):
                sampling = asked.sampling(generator.context - len(prompt))
                started.append(generator.start(prompt, sampling, arrived_s=arrived_s, deadline_s=deadline_s))
            if asked.stream:
                pieces = _merged(started)
                first = await anext(pieces)  # what fails before there is text has a status of its own
                stream = Stream(self._events(asked, about, started, first, pieces))
                stream.ended += [generation.close for generation in started]
                return stream
            return await self._whole(about, started)
        except BaseException as error:
            if isinstance(error, BadInput):
                served.meter.failed("refused")
            for generation in started:
                generation.close()
            raise

    async def _prompts(self, generator: Generator, asked: Asked) -> list[Tokens]:
        tokenizer = generator.tokenizer
        size = sum(len(message["content"]) for message in asked.messages)
        for count in (size, *map(len, asked.prompts)):
            if count > WIDEST * generator.context:  # not worth the time to count its tokens
                raise BadInput(
                    f"the prompt cannot fit into the {generator.context} tokens that {generator.name} holds."
                )
        if asked.messages:
            return [await _aside(size, lambda: tokenizer.chat(asked.messages))]
        return [
            await _aside(len(prompt), partial(tokenizer.encode, prompt)) if isinstance(prompt, str) else prompt
            for prompt in asked.prompts
        ]

    async def _whole(self, about: dict[str, Any], started: Sequence[Generation]) -> bytes:
        pieces = await asyncio.gather(*(generation.whole() for generation in started))
        choices = [self._form.choice(k, piece) for k, piece in enumerate(pieces)]
        said = about | {"object": self._form.kind, "choices": choices, "usage": _usage(started)}
        slowest = max(started, key=lambda generation: generation.queue_s + generation.compute_s)
        spans = (("queue", slowest.queue_s), ("compute", slowest.compute_s))
        timing = format_timing([Timing(kind, 1e3 * s, self._service.site) for kind, s in spans])
        return wire.http_response(200, orjson.dumps(said), server_timing=timing)

    async def _events(
        self,
        asked: Asked,
        about: dict[str, Any],
        started: Sequence[Generation],
        first: tuple[int, Piece],
        rest: AsyncGenerator[tuple[int, Piece]],
    ) -> AsyncGenerator[bytes]:
        usage: dict[str, Any] = {"usage": None} if asked.usage else {}
        about = about | {"object": self._form.chunk}
        begun: set[int] = set()

        def said(index: int, piece: Piece) -> bytes:
            choice = self._form.delta(index, piece, index not in begun)
            begun.add(index)
            return event(orjson.dumps({**about, "choices": [choice], **usage}))

        try:
            yield said(*first)
            async for index, piece in rest:
                yield said(index, piece)
            if asked.usage:
                yield event(orjson.dumps({**about, "choices": [], "usage": _usage(started)}))
            yield DONE
        except Exception as error:  # the status has been sent: the error is an event
            yield event(orjson.dumps(described(error)[1]))
        finally:
            await rest.aclose()


async def _merged(generations: Sequence[Generation]) -> AsyncGenerator[tuple[int, Piece]]:
    """The pieces of all generations as they come, each with its generation's number."""
    if len(generations) == 1:
        async for piece in generations[0]:
            yield 0, piece
        return
    pieces: asyncio.Queue[tuple[int, Piece | Exception | None]] = asyncio.Queue()

    async def pour(k: int, generation: AsyncIterator[Piece]) -> None:
        try:
            async for piece in generation:
                pieces.put_nowait((k, piece))
            pieces.put_nowait((k, None))
        except Exception as error:
            pieces.put_nowait((k, error))

    tasks = [asyncio.create_task(pour(k, generation)) for k, generation in enumerate(generations)]
    try:
        left = len(tasks)
        while left:
            k, found = await pieces.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                left -= 1
            else:
                yield k, found
    finally:
        for task in tasks:
            task.cancel()


@final
class _Embed:
    """Answers requests with one header for vectors of texts."""

    def __init__(self, service: Service, head: Head) -> None:
        self._service, self._head = service, head
        head.costly = True

    def __call__(self, body: bytes, arrived_s: float) -> Awaitable[Answered]:
        return self._answer(_plain(self._head, body), arrived_s)

    async def _answer(self, body: bytes, arrived_s: float) -> Answered:
        asked = read_embed(body)
        served = model(self._service, self._head, asked.model)
        encoder = served.language
        if not isinstance(encoder, Encoder):
            raise Invalid(f"{served.name} makes no vectors; {_others(self._service, self._head, Encoder)}.", "model")
        if asked.dimensions not in (None, encoder.size):
            raise Invalid(f"the vectors of {served.name} have {encoder.size} dimensions, no others.", "dimensions")
        deadline_s = arrived_s + within_s(self._service, self._head)
        vectors, tokens = await embed(self._service, served, encoder, asked.inputs, arrived_s, deadline_s)
        write = _base64 if asked.base64 else list
        said = {
            "object": "list",
            "model": asked.model,
            "data": [{"object": "embedding", "index": k, "embedding": write(row)} for k, row in enumerate(vectors)],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        return wire.http_response(200, orjson.dumps(said, option=orjson.OPT_SERIALIZE_NUMPY))


async def embed(
    service: Service,
    served: Served,
    encoder: Encoder,
    inputs: Sequence[str | Tokens],
    arrived_s: float,
    deadline_s: float,
) -> tuple[list[Array], int]:
    """Vectors of texts and the count of their tokens: some at a time, so that others' requests come between.

    Raises `BadInput`, `EngineFailed`, `Overloaded`, `DeadlineExceeded`.
    """
    vectors: list[Array] = []
    tokens, queue_s, compute_s = 0, 0.0, 0.0

    def work(some: Sequence[str | Tokens]) -> tuple[Array, int]:
        given = [encoder.tokens(text) if isinstance(text, str) else encoder.check(text) for text in some]
        found = encoder.embed_tokens(given)
        return found.vectors, found.tokens

    try:
        for at in range(0, len(inputs), TOGETHER):
            some = inputs[at : at + TOGETHER]
            done = await service.workers.run(partial(work, some), arrived_s, deadline_s)
            vectors += list(done.result[0])
            tokens += done.result[1]
            queue_s, compute_s = queue_s or done.queue_s, compute_s + done.compute_s
    except Exception as error:
        explained = served.explained(error) if type(error) not in ERRORS else error
        kinds = {BadInput: "refused", Overloaded: "rejected", DeadlineExceeded: "late"}
        served.meter.failed(kinds.get(type(explained), "failed"))
        raise explained from None
    served.meter.answered(queue_s, compute_s, len(inputs))
    return vectors, tokens


def _base64(vector: Array) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _models(service: Service, head: Head) -> Respond:
    def models(body: bytes, arrived_s: float) -> bytes:
        data = [_described(service, name) for name in _speaking(service, head, (Generator, Encoder))]
        return wire.http_response(200, orjson.dumps({"object": "list", "data": data}))

    return models


def _one_model(service: Service, head: Head) -> Respond:
    served = model(service, head, head.path.removeprefix("/v1/models/").rstrip("/"))
    return lambda body, arrived_s: wire.http_response(200, orjson.dumps(_described(service, served.name)))


def _described(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": int(service.table.begun_s), "owned_by": "airserve"}


def model(service: Service, head: Head, name: str) -> Served:
    """The model NAME or NAME@VERSION. Raises `UnknownEndpoint`, `Forbidden`."""
    name, _, version = name.partition("@")
    if not allowed(head, name):
        raise Forbidden(f"{head.admitted.tenant.name} may not use {name[:80]!r}.")
    return service.endpoint(name, version)


def _speaking(service: Service, head: Head, kinds: tuple[type, ...]) -> list[str]:
    names = dict.fromkeys(served.name for served in service.served if isinstance(served.language, kinds))
    return [name for name in names if allowed(head, name)]


def _others(service: Service, head: Head, kind: type) -> str:
    names = _speaking(service, head, (kind,))
    return f"ask {' or '.join(names)}" if names else "nor does any other model here"


def _usage(generations: Sequence[Generation]) -> dict[str, int]:
    prompt, made = sum(len(g.prompt) for g in generations), sum(g.tokens for g in generations)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def within_s(service: Service, head: Head) -> float:
    """How long a client waits for an answer."""
    given = timeout_s(head)
    return service.deadline_s if given is None else given


def _plain(head: Head, body: bytes) -> bytes:
    encoding = head.headers.get(b"content-encoding", b"").decode("latin-1")
    return wire.decompress(body, encoding) if encoding else body


async def _aside(size: int, work: Callable[[], list[int]]) -> list[int]:
    return await asyncio.to_thread(work) if size > LONG else work()


ROUTES: dict[str, dict[str, Route]] = {
    "/v1/models": {"GET": _models},
    "/v1/chat/completions": {"POST": lambda service, head: _Generate(read_chat, CHAT, service, head)},
    "/v1/completions": {"POST": lambda service, head: _Generate(read_completion, PLAIN, service, head)},
    "/v1/embeddings": {"POST": _Embed},
}
