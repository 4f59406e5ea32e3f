"""Sequences that join and leave, held to the same network in numpy: no cache, no batch, no padding."""

import asyncio
import contextlib
import random
import time

import numpy as np
import pytest
import uvloop

from airserve.contract import Endpoint
from airserve.model import Engine, Function, ModelError
from airserve.serve.batching import DeadlineExceeded, Overloaded
from airserve.serve.configuration import Bounds
from airserve.serve.decoding import OnnxDecoder
from airserve.serve.generating import Closed
from airserve.serve.metering import Table
from airserve.serve.sampling import Sampling
from airserve.serve.served import BadInput, EngineFailed, Served

LONG = "The engine is asked over the radio. " * 6


def loaded(reference, **bounds):
    return Served(Endpoint("gpt", (Function("gpt", "model", str(reference.path)),)), bounds=Bounds(**bounds))


def begin(served, prompt, count, *, within_s=30.0, **sampling):
    now_s = time.monotonic()
    sampling = Sampling(count, **{"temperature": 0.0, **sampling})
    return served.language.start(prompt, sampling, arrived_s=now_s, deadline_s=now_s + within_s)


def run(served, talk):
    found = uvloop.run(talk())
    served.close()
    return found


def test_the_decoder_gives_the_logits_of_the_network(reference):
    """Sequences of three lengths side by side, one leaving, one joining in its place."""
    decoder = OnnxDecoder(Engine(reference.path).session, "gpt", 192)
    rng = np.random.default_rng(1)
    texts = {
        place: rng.integers(0, decoder.vocabulary, length).tolist() for place, length in ((0, 5), (1, 90), (2, 33))
    }

    def agrees(place, logits):
        np.testing.assert_allclose(logits, reference.logits(texts[place])[-1], atol=2e-4)

    def take_in(place):
        for at in range(0, len(texts[place]), 32):
            logits = decoder.extend(place, texts[place][at : at + 32])
        agrees(place, logits)

    def step(places):
        tokens = rng.integers(0, decoder.vocabulary, len(places)).tolist()
        for place, token in zip(places, tokens, strict=True):
            texts[place].append(token)
        for place, logits in zip(places, decoder.step(places, tokens), strict=True):
            agrees(place, logits)

    take_in(0)
    step([0])
    take_in(1)
    step([0, 1])
    take_in(2)
    for _ in range(3):
        step([0, 1, 2])
    decoder.free(1)  # the longest: padding goes with it
    step([0, 2])
    decoder.free(0)
    texts[0] = rng.integers(0, decoder.vocabulary, 40).tolist()  # another in the same place, the order as before
    take_in(0)
    step([0, 2])
    step([2, 0])
    decoder.free(0)
    decoder.free(2)
    texts[1] = [7]
    take_in(1)
    step([1])


def test_a_context_that_nobody_says_is_that_of_the_graph_s_positions(reference, capfd):
    assert OnnxDecoder(Engine(reference.path).session, "gpt", None).context == 192
    assert not capfd.readouterr().err


def test_greedy_text_is_that_of_each_alone_whenever_they_join(reference):
    served = loaded(reference, running=3)
    prompts = ["The mast", "A model is asked how", LONG, "é", "radio " * 9, "5G — 每", "the the the", "Il est"]
    counts = [30, 7, 25, 40, 1, 33, 19, 12]
    tokenizer = reference.tokenizer
    expected = []
    for prompt, count in zip(prompts, counts, strict=True):
        tokens = reference.greedy(tokenizer.encode(prompt).ids, count, served.language.tokenizer.ends)
        expected.append((tokenizer.decode(tokens), len(tokens)))

    async def talk():
        async def one(prompt, count, at):
            await asyncio.sleep(at)
            return await begin(served, tokenizer.encode(prompt).ids, count).whole()

        rng = random.Random(3)
        found = []
        for _ in range(3):  # other moments, other company
            jobs = [one(p, c, rng.random() * 0.05) for p, c in zip(prompts, counts, strict=True)]
            found.append([(piece.text, piece.tokens) for piece in await asyncio.gather(*jobs)])
        return found

    for found in run(served, talk):
        assert found == expected
    counted, tallied = served.table.counted(0), served.table.tallies.tallied(0)
    assert counted.answered == 24
    assert tallied.generated == 3 * sum(tokens for _, tokens in expected)
    assert tallied.prompt == 3 * sum(len(tokenizer.encode(prompt).ids) for prompt in prompts)
    assert sum(tallied.buckets) == 24
    assert (tallied.running, tallied.waiting) == (0, 0)


def test_a_seed_makes_the_same_text_whatever_shares_the_batch(reference):
    served = loaded(reference)
    prompt = reference.tokenizer.encode("The radio").ids

    async def talk():
        def ask(seed, count=40):
            return begin(served, prompt, count, temperature=1.0, top_p=0.95, seed=seed).whole()

        alone = await ask(11)
        shared = await asyncio.gather(ask(11), *(ask(seed, 10 + seed) for seed in range(7)))
        return alone, shared, await ask(None), await ask(None)

    alone, shared, first, second = run(served, talk)
    assert shared[0] == alone
    assert len({piece.text for piece in shared}) == 8
    assert first.text != second.text


def test_pieces_are_the_text_and_none_splits_a_character(reference):
    served = loaded(reference)

    async def talk():
        generation = begin(served, reference.tokenizer.encode("★ 😀").ids, 120, temperature=3.0, seed=2)
        return [piece async for piece in generation]

    pieces = run(served, talk)
    text = "".join(piece.text for piece in pieces)
    assert pieces[-1].finish == "length"
    assert pieces[-1].tokens == 120
    assert [piece.finish for piece in pieces[:-1]] == [""] * (len(pieces) - 1)
    assert any(ord(character) > 127 for character in text)
    text.encode()  # holds no half of a character


@pytest.mark.parametrize("stop", ["e", " the", "xyz", "ee"])
def test_a_stop_sequence_ends_the_text_before_it(reference, stop):
    served = loaded(reference)
    prompt = reference.tokenizer.encode("A model").ids
    whole = reference.tokenizer.decode(reference.greedy(prompt, 60, served.language.tokenizer.ends))

    async def talk():
        return await begin(served, prompt, 60, stop=(stop,)).whole()

    found = run(served, talk)
    assert found.text == whole.partition(stop)[0]
    assert found.finish == ("stop" if stop in whole or found.tokens < 60 else "length")


def test_the_cache_is_bounded_and_others_wait(reference):
    """Room for two sequences of 60 tokens, before and after a step: a third starts when one has ended."""
    token_bytes = loaded(reference).language._decoder.token_bytes
    served = loaded(reference, cache_bytes=2 * 2 * 60 * token_bytes)
    most = []

    async def talk():
        tally = served.table.tallies

        async def watch():
            while True:
                most.append(tally.tallied(0).running)
                await asyncio.sleep(0.001)

        watching = asyncio.create_task(watch())
        await asyncio.gather(*(begin(served, [5] * 20, 40, temperature=1.0, seed=k).whole() for k in range(6)))
        watching.cancel()
        with pytest.raises(BadInput, match="121 tokens do not fit into the 0 MB of the cache"):
            begin(served, [5], 120)

    run(served, talk)
    assert max(most) == 2


def test_a_reader_that_goes_frees_its_place(reference):
    served = loaded(reference, running=1)

    async def talk():
        first = begin(served, [5], 190, temperature=1.0, seed=1)
        await anext(first)
        waiting = [begin(served, [6], 3) for _ in range(2)]
        waiting[0].close()
        first.close()
        begun_s = time.monotonic()
        await waiting[1].whole()
        return first.tokens, time.monotonic() - begun_s

    tokens, _ = run(served, talk)
    assert tokens < 190
    counted = served.table.counted(0)
    assert (counted.failures["cancelled"], counted.failed) == (2, 0)
    assert served.table.counted(0).answered == 1


def test_deadlines_and_a_full_queue(reference, monkeypatch):
    served = loaded(reference, running=1, waiting=1)
    step = served.language._decoder.step
    monkeypatch.setattr(served.language._decoder, "step", lambda *given: (time.sleep(0.004), step(*given))[1])

    async def talk():
        first = begin(served, [5], 190, temperature=2.0, seed=1, within_s=0.01)
        with pytest.raises(DeadlineExceeded, match=r"after \d+ ms and \d+ tokens"):
            await first.whole()
        running = begin(served, [5], 150, temperature=2.0, seed=1)
        await anext(running)
        late = begin(served, [5], 3, within_s=0.05)
        with pytest.raises(Overloaded, match="1 requests wait for gpt already"):
            begin(served, [5], 3)
        with pytest.raises(DeadlineExceeded, match="and 0 tokens"):
            await late.whole()
        return await running.whole()

    assert run(served, talk).finish
    assert served.table.counted(0).failures == {"refused": 0, "failed": 0, "rejected": 1, "late": 2, "cancelled": 0}


def test_what_cannot_be_continued_is_said(reference):
    served = loaded(reference)

    async def talk():
        for prompt, count, said in (
            ([], 5, "the prompt is empty"),
            ([5] * 180, 13, "180 tokens of prompt and 13 to generate are more than the 192"),
            ([5, -1], 5, "a token -1"),
            ([5, 10**6], 5, "a token 1000000"),
        ):
            with pytest.raises(BadInput, match=said):
                begin(served, prompt, count)
        last = begin(served, [5], 20)
        served.close()
        with pytest.raises(Closed):
            begin(served, [5], 5)
        return await last.whole()  # what has begun ends

    assert run(served, talk).tokens <= 20


def test_an_engine_that_fails_ends_those_it_ran_and_no_others(reference, monkeypatch):
    served = loaded(reference, running=2)
    decoder = served.language._decoder
    step, broken = decoder.step, [True]

    def failing(places, tokens):
        if broken and len(places) == 2:
            broken.clear()
            raise RuntimeError("no memory\nmore")
        return step(places, tokens)

    monkeypatch.setattr(decoder, "step", failing)

    async def talk():
        ask = [begin(served, [k], 30, temperature=1.0, seed=k) for k in (5, 6, 7)]
        return await asyncio.gather(*(one.whole() for one in ask), return_exceptions=True)

    found = run(served, talk)
    assert [str(one) for one in found[:2]] == ["gpt: the engine failed: no memory"] * 2
    assert all(isinstance(one, EngineFailed) for one in found[:2])
    assert found[2].tokens


def test_the_text_of_a_graph_that_is_no_language_model_is_refused(reference, tmp_path):
    import onnx

    model = onnx.load(reference.path)

    def saved(name, change):
        made = onnx.ModelProto()
        made.CopyFrom(model)
        change(made)
        onnx.save(made, tmp_path / f"{name}.onnx")
        return Endpoint(name, (Function(name, "model", str(tmp_path / f"{name}.onnx")),))

    def drop(made):
        del made.metadata_props[:]

    def damage(made):
        next(one for one in made.metadata_props if one.key == "tokenizer").value = "{}"

    def template(made):
        next(one for one in made.metadata_props if one.key == "chat_template").value = "{% for"

    assert Served(saved("plain", drop)).language is None
    with pytest.raises(ModelError, match="the tokenizer of damaged cannot be read"):
        Served(saved("damaged", damage))
    with pytest.raises(ModelError, match="the chat template of template cannot be read"):
        Served(saved("template", template))


def test_many_come_and_go_at_random(reference):
    """Readers that leave at any moment, and those who stay get their own text."""
    served = loaded(reference, running=4)
    tokenizer, rng = reference.tokenizer, random.Random(9)
    expected = {p: reference.greedy([p, p + 1], 20, served.language.tokenizer.ends) for p in range(40, 52)}

    async def talk():
        async def one(first, leaves):
            await asyncio.sleep(rng.random() * 0.1)
            generation = begin(served, [first, first + 1], 20)
            if leaves:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(generation.whole(), rng.random() * 0.02)
                generation.close()
            else:
                assert (await generation.whole()).text == tokenizer.decode(expected[first])

        await asyncio.gather(*(one(40 + k % 12, k % 3 == 0) for k in range(72)))

    run(served, talk)
    table: Table = served.table
    counted = table.counted(0)
    assert (counted.answered + counted.failures["cancelled"], counted.failed) == (72, 0)
    assert table.tallies.tallied(0).running == 0
