"""Several places: the budget and the deadline hold whatever fails, weights are kept, the dead are found and come back.

The laws are checked in virtual time on places that do as they are told; the faults on real processes.
"""

import asyncio
import random
import selectors
import time
from dataclasses import replace

import numpy as np
import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airserve import wire
from airserve.contract import Endpoint, Route, SiteProcess
from airserve.model import Engine, Function, ModelError, Tensor
from airserve.serve.balancing import Balancer, Manner, pick
from airserve.serve.connecting import Answer, UpstreamFailed, UpstreamLate
from airserve.serve.ejecting import HOLD_MOST_S, Health
from airserve.serve.retrying import Budget
from airserve.serve.routing import Router
from airserve.serve.service import Service
from airserve.timing import AirBytes

X = Tensor("x", "float32", (-1, 4))
AIR = AirBytes(1, (0, 1), (0, 1))


class Virtual(asyncio.SelectorEventLoop):
    """A loop whose time passes at once."""

    class Jump(selectors.SelectSelector):
        def select(self, timeout=None):
            assert timeout is not None, "nothing will ever happen"
            self.loop.now_s += timeout
            return super().select(0)

    def __init__(self):
        jump = self.Jump()
        super().__init__(jump)
        jump.loop, self.now_s = self, 0.0

    def time(self):
        return self.now_s


def virtually(work):
    loop = Virtual()
    try:
        return loop.run_until_complete(work(loop))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


class Place:
    """Answers as `law(now_s, probe)` says: (after_s, status), or (after_s, an error to raise)."""

    def __init__(self, loop, route, law):
        self.loop, self.route, self.law = loop, route, law
        self.futures = set()

    @property
    def waiting(self):
        return len(self.futures)

    async def exchange(self, request, deadline_s):
        after_s, what = self.law(self.loop.time(), b"health" in request)
        future = self.loop.create_future()
        self.futures.add(future)
        handle = self.loop.call_later(after_s, lambda: future.done() or future.set_result(None))
        try:
            async with asyncio.timeout(max(deadline_s - self.loop.time(), 0)):
                await future
        finally:
            handle.cancel()
            self.futures.discard(future)
        if not isinstance(what, int):
            raise what
        return Answer(what, {}, self.route.model.encode(), 1), AIR

    async def ready(self, deadline_s):
        return (await self.exchange(b"health", deadline_s))[0].status == 200

    def abort(self, why):
        for future in self.futures:
            future.done() or future.set_exception(ConnectionAbortedError(why))

    def close(self):
        pass


def balancer(loop, laws, routes=None, manner=None, seed=0):
    routes = routes or [Route("h", k, str(k)) for k in range(len(laws))]
    by_port = {route.port: law for route, law in zip(routes, laws, strict=True)}
    return Balancer(
        routes, manner, rng=random.Random(seed), clock=loop.time,
        opens=lambda route, manner: Place(loop, route, by_port[route.port]),
    )  # fmt: skip


def good(now_s, probe):
    return (0.01, 200)


def hung(now_s, probe):
    return (1e6, 200)


def refused(now_s, probe):
    return (0.0, ConnectionRefusedError("refused"))


LAWS = {
    "good": good, "hung": hung, "refused": refused,
    "slow": lambda now_s, probe: (0.001 if probe else 0.4, 200),
    "full": lambda now_s, probe: (0.001, 200 if probe else 503),
    "false": lambda now_s, probe: (0.001, 200) if probe else (0.02, ConnectionResetError("lost")),
    "moody": lambda now_s, probe: (0.02, ConnectionResetError("lost")) if int(now_s * 3) % 2 else (0.01, 200),
}  # fmt: skip


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(
    laws=st.lists(st.sampled_from(list(LAWS)), min_size=1, max_size=4),
    at_ms=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 1500)), min_size=1, max_size=40),
    ratio=st.sampled_from([0.0, 0.1, 0.5]),
    reserve=st.integers(0, 5),
    hedge_s=st.sampled_from([None, 0.05]),
    probes=st.booleans(),
)
def test_never_more_retries_than_the_budget_and_never_beyond_the_deadline(laws, at_ms, ratio, reserve, hedge_s, probes):
    manner = Manner(ratio=ratio, reserve=reserve, hedge_s=hedge_s, probes=probes)

    async def run(loop):
        sent = 0

        def counted(law):
            def of(now_s, probe):
                nonlocal sent
                sent += not probe
                return law(now_s, probe)

            return of

        one = balancer(loop, [counted(LAWS[name]) for name in laws], manner=manner)

        async def ask(at_s, within_s):
            await asyncio.sleep(at_s)
            deadline_s = loop.time() + within_s
            try:
                got = await one.send(lambda route: b"", deadline_s)
                assert got.answer.status in (200, 503)
            except (UpstreamFailed, UpstreamLate) as error:
                assert str(error).endswith("see that its site runs.")
            assert loop.time() <= deadline_s + 1e-9

        await asyncio.gather(*(ask(a / 1e3, w / 1e3) for a, w in at_ms))
        one.close()
        again = one.counts.retries + one.counts.hedges
        assert sent <= len(at_ms) + again
        assert again <= reserve + ratio * len(at_ms) + 1e-9
        await asyncio.sleep(0)

    virtually(run)


@settings(deadline=None)
@given(
    st.lists(st.booleans(), max_size=300), st.floats(0, 1), st.integers(0, 20)
)  # fmt: skip
def test_a_budget_is_what_was_paid_in_and_the_reserve(events, ratio, reserve):
    budget, requests, retries = Budget(ratio, reserve), 0, 0
    for retry in events:
        if retry:
            retries += budget.take()
        else:
            budget.earn()
            requests += 1
        assert retries <= reserve + ratio * requests + 1e-9


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 5), min_size=2, max_size=4).filter(any), st.integers(0, 1 << 30))
def test_weights_are_kept_within_binomial_bounds(weights, seed):
    rng, n = random.Random(seed), 2000
    counts = np.bincount([pick(weights, [0] * len(weights), rng) for _ in range(n)], minlength=len(weights))
    share = np.array(weights) / sum(weights)
    assert (np.abs(counts - n * share) <= 5.5 * np.sqrt(n * share * (1 - share)) + 1e-9).all()
    assert (counts[share == 0] == 0).all()


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), min_size=2, max_size=6), st.integers(0, 1 << 30))
def test_of_equal_places_the_busiest_is_never_taken_unless_all_are(waiting, seed):
    chosen = pick([1.0] * len(waiting), waiting, random.Random(seed))
    assert waiting.count(max(waiting)) > 1 or waiting[chosen] < max(waiting)


@pytest.mark.parametrize("fault", ["hung", "refused"])
@settings(deadline=None, max_examples=20, suppress_health_check=list(HealthCheck))
@given(dies_ms=st.integers(300, 2000), every_ms=st.sampled_from([5, 40, 300]))
def test_a_dead_place_is_out_in_under_a_second_nothing_is_lost_and_it_comes_back(fault, dies_ms, every_ms):
    dies_s, back_s = dies_ms / 1e3, dies_ms / 1e3 + 2.0

    def law(now_s, probe):
        return LAWS[fault](now_s, probe) if dies_s <= now_s < back_s else (0.01, 200)

    async def run(loop):
        one = balancer(loop, [good, law], manner=Manner(ratio=0.5))
        seen = []

        async def look():
            while True:
                seen.append((loop.time(), bool(one.out)))
                await asyncio.sleep(0.01)

        looking = asyncio.ensure_future(look())
        asked = []
        while loop.time() < back_s + 1.5:
            asked.append(asyncio.ensure_future(one.send(lambda route: b"", loop.time() + 10)))
            await asyncio.sleep(every_ms / 1e3)
        assert [sent.answer.status for sent in await asyncio.gather(*asked)] == [200] * len(asked)
        out = [at_s for at_s, is_out in seen if is_out]
        assert dies_s <= out[0] < dies_s + 1.0
        assert back_s - 0.02 <= out[-1] < back_s + 0.6
        assert one.counts.ejections == 1
        looking.cancel()
        one.close()
        await asyncio.sleep(0)

    virtually(run)


def test_where_all_are_dead_a_request_waits_for_the_first_to_come_back():
    async def run(loop):
        one = balancer(loop, [lambda now_s, probe: (0.0, ConnectionRefusedError()) if now_s < 1.0 else (0.01, 200)])
        got = await one.send(lambda route: b"", 5.0)
        assert got.answer.status == 200
        assert 1.0 <= loop.time() < 1.3
        assert one.counts.retries == 1  # it waited, and did not try again and again
        one.close()
        await asyncio.sleep(0)

    virtually(run)


def test_where_all_stay_dead_a_request_has_waited_once_however_often_it_may_be_tried():
    async def run(loop):
        one = balancer(loop, [lambda now_s, probe: (0.0, ConnectionRefusedError())] * 2)
        for _ in range(2):  # the second finds them out
            begun_s = loop.time()
            with pytest.raises(UpstreamFailed, match="see that its site runs"):
                await one.send(lambda route: b"", 60.0)
            assert Manner().patience_s <= loop.time() - begun_s < Manner().patience_s + 0.5
        one.close()
        await asyncio.sleep(0)

    virtually(run)


def test_what_was_under_way_for_long_still_waits_for_its_place_to_come_back():
    """Three seconds of work that is lost, and a second until the place is there again."""
    begun = []

    def law(now_s, probe):
        if probe:
            return (0.0, ConnectionRefusedError()) if now_s < 4.0 else (0.01, 200)
        begun.append(now_s)
        return (3.0, ConnectionResetError()) if len(begun) == 1 else (0.01, 200)

    async def run(loop):
        one = balancer(loop, [law])
        assert (await one.send(lambda route: b"", 60.0)).answer.status == 200
        assert 4.0 <= loop.time() < 4.6
        one.close()
        await asyncio.sleep(0)

    virtually(run)


def test_a_place_in_reserve_is_asked_only_while_no_other_can_be():
    async def run(loop):
        routes = [Route("h", 0, "near"), replace(Route("h", 1, "far"), weight=0.0)]
        one = balancer(
            loop, [lambda now_s, probe: refused(now_s, probe) if 1 <= now_s < 2 else (0.01, 200), good], routes
        )
        got = {}
        while loop.time() < 3.0:
            at_s = loop.time()
            got[at_s] = (await one.send(lambda route: b"", at_s + 1)).route.model
        assert {model for at_s, model in got.items() if at_s < 0.99} == {"near"}
        assert {model for at_s, model in got.items() if 1 <= at_s < 2} == {"far"}
        assert {model for at_s, model in got.items() if at_s > 2.3} == {"near"}
        one.close()
        await asyncio.sleep(0)

    virtually(run)


@pytest.mark.parametrize("law", ["good", "hung", "refused", "slow"])
def test_a_mirror_gets_its_share_and_slows_nobody(law):
    async def run(loop):
        routes = [Route("h", 0, "own"), replace(Route("h", 1, "canary"), weight=0.25, mirror=True)]
        one = balancer(loop, [good, LAWS[law]], routes)
        for _ in range(400):
            before_s = loop.time()
            got = await one.send(lambda route: b"", before_s + 0.5)
            assert (got.route.model, round(loop.time() - before_s, 6)) == ("own", 0.01)
        await asyncio.sleep(1)
        counts = one.counts
        assert abs(counts.mirrored + counts.unmirrored - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5
        assert bool(counts.mirrored) == (law in ("good", "slow"))
        assert (counts.retries, counts.ejections) == (0, 0)
        one.close()
        await asyncio.sleep(0)

    virtually(run)


def test_a_hedge_is_off_unless_asked_for_and_then_cuts_the_slow_place_short():
    async def run(loop):
        took_s = {}
        for hedge_s in (None, 0.05):
            one = balancer(loop, [LAWS["slow"], LAWS["slow"], good], manner=Manner(hedge_s=hedge_s), seed=1)
            begun_s = loop.time()
            for _ in range(50):
                await one.send(lambda route: b"", loop.time() + 5)
            took_s[hedge_s] = loop.time() - begun_s
            assert bool(one.counts.hedges) == (hedge_s is not None)
            one.close()
            await asyncio.sleep(0)
        assert took_s[0.05] < took_s[None]

    virtually(run)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["failed", "missed", "probed", "answered"]), st.floats(0, 3)), max_size=60))
def test_health_is_left_by_failure_alone_and_won_back_by_a_probe_alone(events):
    health, now_s, since_s = Health(), 0.0, 0.0
    for event, after_s in events:
        now_s += after_s
        before = health.out
        health.answered() if event == "answered" else getattr(health, event)(now_s)
        if before != health.out:
            assert event in (("failed", "missed") if health.out else ("probed",))
            since_s = now_s
        if health.out and now_s - since_s >= HOLD_MOST_S:  # nobody is kept out for longer than this
            assert comes_back(health, now_s)


def comes_back(health, now_s):
    """Whether a probe now would bring it back."""
    copy = Health()
    copy.__dict__.update(health.__dict__)
    return copy.probed(now_s)


def test_a_place_that_passes_probes_and_fails_requests_stays_out_ever_longer():
    async def run(loop):
        one = balancer(loop, [good, LAWS["false"]])
        asked = 0
        while loop.time() < 60:
            before = one.counts.retries
            await one.send(lambda route: b"", loop.time() + 1)
            asked += one.counts.retries > before
        assert asked <= 20  # of some 4,000 requests; with each probe's leave it would be 240
        one.close()
        await asyncio.sleep(0)

    virtually(run)


# Real processes and sockets.


HALF = wire.http_response(200, b"x" * 1000)[:-500]


@pytest.mark.parametrize("first", [b"", HALF, b"SSH-2.0-OpenSSH\r\n\r\n"])
def test_an_answer_that_is_half_written_or_nonsense_is_got_elsewhere(first):
    """The first place says `first` and closes; the answer is the second's, whole."""

    async def run():
        async def broken(reader, writer):
            try:
                healthy = b"health" in await reader.readuntil(b"\r\n\r\n")
                writer.write(wire.http_response(200, b"{}") if healthy else first)
                await writer.drain()
            except asyncio.IncompleteReadError:
                pass  # a connection held open for later
            writer.close()

        async def whole(reader, writer):
            while True:
                try:
                    await reader.readuntil(b"\r\n\r\n")
                except asyncio.IncompleteReadError:
                    break
                writer.write(wire.http_response(200, b"{}"))
            writer.close()

        servers = [await asyncio.start_server(of, "127.0.0.1", 0) for of in (broken, whole)]
        routes = [Route("127.0.0.1", server.sockets[0].getsockname()[1], "m") for server in servers]
        one = Balancer([routes[0], replace(routes[1], weight=0.0)])
        request = wire.metadata_request("m", host="h")
        for _ in range(3):
            got = await one.send(lambda route: request, time.monotonic() + 5)
            assert (got.answer.body, got.route) == (b"{}", replace(routes[1], weight=0.0))
        assert one.counts.retries >= 1
        one.close()
        for server in servers:
            server.close()
        await asyncio.sleep(0.05)  # in which they close what they still hold

    uvloop.run(run())


def test_a_head_with_two_tails_outlives_one_and_tells_them_the_deadline(graphs, start):
    tail = Endpoint("tail", (Function("tail", "tail", str(graphs["tail"])),))
    tails = [start(tail, site=name) for name in ("mast", "region")]
    routes = [Route("127.0.0.1", one.port, "tail") for one in tails]
    head = Endpoint("cut", (Function("head", "head", str(graphs["head"])),), routes[0], also=(routes[1],))
    whole = Engine(graphs["whole"])

    async def run():
        service = Service(SiteProcess("camera", "127.0.0.1", 0, 1, (head,), 0))
        x = np.ones((1, 4), "float32")
        for k in range(12):
            if k == 4:
                tails[0].process.kill()
                tails[0].process.wait()
            reply = await service.infer("cut", {"x": x}, deadline_s=time.monotonic() + 10)
            np.testing.assert_allclose(reply.outputs[0][1], whole.run([x])[0], rtol=1e-5)
        service.close()

    uvloop.run(run())


def test_the_deadline_travels_where_the_client_named_one():
    async def run():
        seen = []

        async def tail(reader, writer):
            for _ in range(2):
                seen.append(await reader.readuntil(b"\r\n\r\n"))
                length = int(seen[-1].lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(wire.infer_response("m", "1", [(X, np.zeros((1, 4), "float32"))]))
            writer.close()

        server = await asyncio.start_server(tail, "127.0.0.1", 0)
        router = Router([Route("127.0.0.1", server.sockets[0].getsockname()[1], "m")])
        request = router.encode([(X, np.zeros((1, 4), "float32"))])
        await router.ask(request, time.monotonic() + 5)
        await router.ask(request, time.monotonic() + 5, tell=True)
        router.close()
        server.close()
        assert b"X-Request-Timeout-Ms" not in seen[0]
        left = int(seen[1].partition(b"X-Request-Timeout-Ms: ")[2].partition(b"\r\n")[0])
        assert left % 100 == 0
        assert 0 < left <= 5000

    uvloop.run(run())


@pytest.mark.parametrize("route", [Route("h", 1, "m", weight=-1.0), Route("h", 1, "m", mirror=True)])
def test_routes_that_cannot_be_asked_are_refused(route):
    with pytest.raises(ModelError, match="weight is 0 or more, and one route at least is not a mirror"):
        Router([route])
