"""Text generation with continuous batching: sequences join and leave between the steps of one engine thread.

Yu et al. 2022, Orca (OSDI); a prompt is taken in piece by piece between steps, so that those who run do not wait for
a long one (Agrawal et al. 2023, arXiv:2308.16369). A sequence starts when there is a place and room in the cache for
all that it may grow to, so that none has to be thrown out; others wait in a bounded queue, first come, first served.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, final

from airserve.serve.batching import NICE, DeadlineExceeded, Overloaded
from airserve.serve.configuration import Bounds
from airserve.serve.decoding import Decoder
from airserve.serve.detokenizing import Detokenizer, Stops
from airserve.serve.metering import CANCELLED, Meter
from airserve.serve.sampling import Sampler, Sampling
from airserve.serve.served import BadInput, EngineFailed
from airserve.serve.tallying import Tally
from airserve.serve.tokenizing import Tokenizer

PIECE = 64  # tokens of prompts that are taken in between two steps


class Piece(NamedTuple):
    """Text that was added, the tokens generated so far, and why it ended ("stop" or "length"; "" while it goes on)."""

    text: str
    tokens: int
    finish: str = ""


class Closed(RuntimeError):
    """The model is served no more; the message is one sentence."""

    retry_s = 1.0  # when to ask again


@final
class Generation:
    """One sequence as its reader sees it: an iterator over `Piece`s, on the loop. Close it, however it ends.

    Raises, from the iterator: `DeadlineExceeded`, `EngineFailed`, `Closed`.
    """

    def __init__(self, generator: Generator, prompt: Sequence[int], sampling: Sampling, times: tuple[float, float]):
        self.prompt = list(prompt)
        self.arrived_s, self.deadline_s = times
        self.queue_s = self.compute_s = 0.0
        self._generator = generator
        self._pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self._ended = False
        # For the engine's thread:
        self.gone = False  # nobody reads it any more
        self.place = -1
        self.taken = 0  # tokens of the prompt that are in the cache
        self.last = 0  # the token to be fed next
        self.tokens = 0
        self.limit = sampling.max_tokens
        self.started_s = 0.0
        self.sampler, self.stops = Sampler(sampling), Stops(sampling.stop)
        self.text = Detokenizer(generator.tokenizer.decode)

    @property
    def need(self) -> int:
        """Tokens that it may grow to."""
        return len(self.prompt) + self.limit

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> Piece:
        if self._ended:
            raise StopAsyncIteration
        piece = await self._pieces.get()
        if isinstance(piece, Exception):
            self._ended = True
            raise piece
        self._ended = bool(piece.finish)
        return piece

    async def whole(self) -> Piece:
        """All of the text."""
        pieces = [piece async for piece in self]
        return Piece("".join(piece.text for piece in pieces), pieces[-1].tokens, pieces[-1].finish)

    def close(self) -> None:
        """Gives up its place, where it has not ended."""
        self._generator.leave(self)

    def hear(self, piece: Piece | Exception | None) -> None:
        """Takes what the engine's thread says; None: the end that was asked for."""
        if piece is not None:
            self._pieces.put_nowait(piece)


@final
class Generator:
    """A decoder with its tokenizer, and the thread that runs it; counts into `meter` and `tally`.

    `name` is the model's, for what is said to users.
    """

    def __init__(
        self,
        name: str,
        decoder: Decoder,
        tokenizer: Tokenizer,
        meter: Meter,
        tally: Tally,
        bounds: Bounds | None = None,
    ) -> None:
        self.name, self.tokenizer, self.context = name, tokenizer, decoder.context
        self.bounds = bounds or Bounds()
        self._decoder, self._meter, self._tally = decoder, meter, tally
        self._changed = threading.Condition()
        self._waiting: deque[Generation] = deque()
        self._joining: deque[Generation] = deque()  # have a place; their prompts are being taken in
        self._running: deque[Generation] = deque()
        self._places = list(range(self.bounds.running))
        self._closing = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._said: list[tuple[Generation, Piece | Exception | None]] = []  # in this turn

    def start(self, prompt: Sequence[int], sampling: Sampling, *, arrived_s: float, deadline_s: float) -> Generation:
        """Continue a prompt; times are of `time.monotonic`.

        Called on the loop. Raises `BadInput` for a prompt that is empty, holds tokens that are none or has no room for
        an answer, `Overloaded` where too many wait, and `Closed`.
        """
        vocabulary, room = self._decoder.vocabulary, self.context - len(prompt)
        if not prompt:
            raise BadInput("the prompt is empty; say something.")
        if wrong := next((token for token in prompt if not 0 <= token < vocabulary), None):
            raise BadInput(f"the prompt has a token {wrong}; {self.name} has tokens from 0 to {vocabulary - 1}.")
        if sampling.max_tokens > room:
            raise BadInput(
                f"{len(prompt)} tokens of prompt and {sampling.max_tokens} to generate are more than the "
                f"{self.context} that {self.name} can hold; shorten the prompt or ask for fewer."
            )
        generation = Generation(self, prompt, sampling, (arrived_s, deadline_s))
        if not self._fits([generation]):
            raise BadInput(
                f"{generation.need} tokens do not fit into the {self.bounds.cache_bytes >> 20} MB of the cache; ask "
                "for fewer, or have the service started with a larger one."
            )
        with self._changed:
            if self._closing:
                raise Closed(f"{self.name} is served no more.")
            if len(self._waiting) >= self.bounds.waiting:
                self._meter.failed("rejected")
                raise Overloaded(f"{self.bounds.waiting} requests wait for {self.name} already; ask less often.")
            self._waiting.append(generation)
            if self._thread is None:
                self._loop = asyncio.get_running_loop()
                self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
                self._thread.start()
            self._changed.notify()
        return generation

    def leave(self, generation: Generation) -> None:
        """Its place is free before the next step."""
        generation.gone = True
        with self._changed:
            self._changed.notify()

    def close(self) -> None:
        """Takes no more; ends when those that have begun have ended."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def _tell(self, said: list[tuple[Generation, Piece | Exception | None]]) -> None:
        """On the loop: passes on what was said, and counts what has ended."""
        for generation, piece in said:
            if isinstance(piece, Piece):
                if piece.finish:
                    self._meter.answered(generation.queue_s, generation.compute_s)
            else:
                late = isinstance(piece, DeadlineExceeded)
                self._meter.failed(CANCELLED if piece is None else "late" if late else "failed")
            generation.hear(piece)

    # the engine's thread

    def _work(self) -> None:
        if sys.platform == "linux":  # the loop answers in microseconds; it is not to wait for a core behind an engine
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while True:
            with self._changed:
                while not (self._waiting or self._joining or self._running):
                    if self._closing:
                        return
                    self._changed.wait()
                self._sweep()
                self._admit()
                self._tally.now(len(self._running) + len(self._joining), len(self._waiting))
            room = PIECE
            while self._joining and room > 0:
                room -= self._take_in(self._joining[0], room)
            if self._running:
                self._step()
            if not (self._running or self._joining):
                self._tally.now(0, len(self._waiting))
            if self._said and self._loop is not None:
                with contextlib.suppress(RuntimeError):  # the loop has ended, and with it all readers
                    self._loop.call_soon_threadsafe(self._tell, self._said)
                self._said = []

    def _sweep(self) -> None:
        """Ends those whom nobody reads any more, and those that are late."""
        now_s = time.monotonic()
        for generation in [*self._waiting, *self._joining, *self._running]:
            late = now_s > generation.deadline_s
            if not (generation.gone or late):
                continue
            said = None
            if not generation.gone:
                said = DeadlineExceeded(
                    f"the deadline passed after {1e3 * (now_s - generation.arrived_s):.0f} ms and {generation.tokens} "
                    "tokens; allow more time or ask for fewer."
                )
            if generation.place < 0:
                self._waiting.remove(generation)
                self._said.append((generation, said))
            else:
                self._end(generation, said)

    def _admit(self) -> None:
        while self._waiting and self._places and self._fits([*self._joining, *self._running, self._waiting[0]]):
            generation = self._waiting.popleft()
            generation.place = self._places.pop(0)
            generation.started_s = time.monotonic()
            self._joining.append(generation)

    def _fits(self, generations: Sequence[Generation]) -> bool:
        """Whether the cache has room for all that these may grow to, side by side."""
        return self._decoder.cache_bytes([generation.need for generation in generations]) <= self.bounds.cache_bytes

    def _take_in(self, generation: Generation, room: int) -> int:
        """The next piece of a prompt, of `room` tokens at most, and after the last the first token; tokens taken."""
        piece = generation.prompt[generation.taken : generation.taken + room]
        try:
            logits = self._decoder.extend(generation.place, piece)
            generation.taken += len(piece)
            if generation.taken == len(generation.prompt):
                self._joining.popleft()
                self._running.append(generation)
                self._tally.prompt(len(generation.prompt), time.monotonic() - generation.arrived_s)
                self._add(generation, generation.sampler.choose(logits))
        except Exception as error:
            self._end(generation, self._explained(error))
        return len(piece)

    def _step(self) -> None:
        """One more token for each that runs."""
        running = list(self._running)
        try:
            logits = self._decoder.step([g.place for g in running], [g.last for g in running])
        except Exception as error:  # nobody knows whose fault it was
            for generation in running:
                self._end(generation, self._explained(error))
            return
        for generation, row in zip(running, logits, strict=True):
            try:
                self._add(generation, generation.sampler.choose(row))
            except Exception as error:
                self._end(generation, self._explained(error))

    def _add(self, generation: Generation, token: int) -> None:
        generation.last = token
        generation.tokens += 1
        self._tally.generated()
        finish, stops = "", generation.stops
        if token in self.tokenizer.ends:
            text, finish = "", "stop"
        else:
            text = stops.push(generation.text.push(token))
            if generation.tokens == generation.limit:
                finish = "length"
        if finish:
            text += stops.push(generation.text.end())
        if stops.found:
            finish = "stop"
        elif finish:
            text += stops.end()
        piece = Piece(text, generation.tokens, finish)
        if finish:
            self._end(generation, piece)
        elif text:
            self._said.append((generation, piece))

    def _end(self, generation: Generation, last: Piece | Exception | None) -> None:
        """Takes a sequence out that has begun, and says the last word to its reader."""
        where = self._running if generation in self._running else self._joining
        where.remove(generation)
        self._decoder.free(generation.place)
        self._places.append(generation.place)
        generation.queue_s = generation.started_s - generation.arrived_s
        generation.compute_s = time.monotonic() - generation.started_s
        self._said.append((generation, last))

    def _explained(self, error: Exception) -> Exception:
        if isinstance(error, EngineFailed):
            return error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return EngineFailed(f"{self.name}: the engine failed: {reason[:200]}")
