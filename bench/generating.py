"""What continuous batching gains: CPU time a token of texts generated side by side, over that of one text alone.

    python bench/generating.py MODEL [--together 8] [--tokens 64] [--json]

MODEL is an .onnx file with its tokenizer, a folder as Optimum exports it, or a .gguf file. Alone and together are
measured in turn, five rounds; the medians and their ratio are printed, and beside them the engine's own step, called
in a bare loop, over a generated token: what the scheduler, sampling and text cost.
"""

import argparse
import asyncio
import json
import statistics
import time

import uvloop

from airserve.serve.configuration import Bounds
from airserve.serve.offering import offers
from airserve.serve.sampling import Sampling
from airserve.serve.served import Served

ROUNDS = 5
PROMPT = "The mast carries a radio, and the radio"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--together", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    served = Served(offers(given.model)[0].endpoint, bounds=Bounds(running=given.together))
    generator, prompt = served.language, served.language.tokenizer.encode(PROMPT)
    generator.tokenizer.ends = frozenset()  # as many tokens as are asked for

    async def generate(count):
        """CPU seconds a token, and the seconds to the first."""

        async def one(seed):
            begun_s = time.monotonic()
            sampling = Sampling(given.tokens, seed=seed)
            generation = generator.start(prompt, sampling, arrived_s=begun_s, deadline_s=begun_s + 600)
            await anext(generation)
            first_s = time.monotonic() - begun_s
            return first_s, (await generation.whole()).tokens

        begun_s = time.process_time()
        found = await asyncio.gather(*(one(seed) for seed in range(count)))
        return (time.process_time() - begun_s) / sum(n for _, n in found), statistics.median(s for s, _ in found)

    def bare():
        """CPU seconds of the engine's own step, for one sequence."""
        decoder = generator._decoder
        decoder.extend(0, prompt)
        begun_s = time.process_time()
        for k in range(given.tokens):
            decoder.step([0], [k])
        taken_s = (time.process_time() - begun_s) / given.tokens
        decoder.free(0)
        return taken_s

    async def measure():
        await generate(given.together)  # warm
        return [(bare(), await generate(1), await generate(given.together)) for _ in range(ROUNDS)]

    rounds = uvloop.run(measure())
    middle = statistics.median
    found = {
        "model": served.name,
        "engine_ms": 1e3 * middle(engine for engine, _, _ in rounds),
        "alone_ms": 1e3 * middle(alone for _, (alone, _), _ in rounds),
        "together_ms": 1e3 * middle(each for _, _, (each, _) in rounds),
        "together_over_alone": middle(each / alone for _, (alone, _), (each, _) in rounds),
        "alone_over_engine": middle(alone / engine for engine, (alone, _), _ in rounds),
        "first_ms_alone": 1e3 * middle(first for _, (_, first), _ in rounds),
        "first_ms_together": 1e3 * middle(first for _, _, (_, first) in rounds),
    }
    if given.json:
        print(json.dumps(found))
        return
    print(f"{served.name}, {given.tokens} tokens a text, CPU ms a token (medians of {ROUNDS} rounds)")
    print(f"  engine's step, bare       {found['engine_ms']:8.2f}")
    print(f"  one text alone            {found['alone_ms']:8.2f}   {found['alone_over_engine']:.2f} of the engine's")
    print(
        f"  {given.together} texts together          {found['together_ms']:8.2f}   "
        f"{found['together_over_alone']:.2f} of alone"
    )
    print(f"  first token after, ms     {found['first_ms_alone']:8.1f}   together {found['first_ms_together']:.1f}")


if __name__ == "__main__":
    main()
