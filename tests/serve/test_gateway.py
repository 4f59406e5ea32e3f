"""A gateway as a user starts it, before sites that die and come back; and what it passes on, to the byte."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from http.client import HTTPConnection

import numpy as np
import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from airserve import wire
from airserve.cli import services
from airserve.contract import Endpoint, Route
from airserve.model import Engine, Function, Tensor
from airserve.serve import relaying, routes
from airserve.serve.balancing import Manner
from airserve.serve.protocols import _listening
from airserve.serve.protocols.oip import error_response
from airserve.serve.relaying import Gateway
from airserve.serve.routes import Routes, RoutesError, read, to_sites

X = Tensor("x", "float32", (-1, 4))


def airserve(*words, **how):
    command = [sys.executable, "-W", "error", "-m", "airserve.cli", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


@pytest.mark.realtime
def test_no_request_is_lost_when_sites_die_and_come_back(graphs, start, tmp_path, capsys):
    """Asked all the while on four connections, one site killed and started anew, the other stopped: all is right."""
    endpoint = Endpoint("whole", (Function("whole", "model", str(graphs["whole"])),))
    one, other = start(endpoint), start(endpoint, Endpoint("twin", endpoint.functions))
    file = tmp_path / "gateway.yaml"
    file.write_text(
        f"listen: 127.0.0.1:0\nwatch: 127.0.0.1:0\nroutes:\n  '*': ['http://{one.url}', 'http://{other.url}']\n"
        f"  alone: [{{url: 'http://{other.url}', model: twin}}]\n"
    )
    gateway = airserve("gateway", file)
    words = gateway.stdout.readline().split()
    assert words[:2] == ["ready", "gateway"], gateway.stderr.read()
    host, watch = words[2].removeprefix("http://"), words[-1]
    rows = np.random.default_rng(0).normal(size=(4, 1, 4)).astype("float32")
    engine, done, asked, wrong = Engine(graphs["whole"]), threading.Event(), [], []

    def client(row):
        head, _, body = wire.infer_request("whole", [(X, row)], host="h").partition(b"\r\n\r\n")
        lines = dict(line.decode().split(": ", 1) for line in head.split(b"\r\n")[1:])
        connection, expected = HTTPConnection(host, timeout=20), engine.run([row])[0]
        while not done.is_set():
            connection.request("POST", "/v2/models/whole/infer", body, lines)
            got = connection.getresponse()
            said = got.read()
            asked.append(got.status)
            if got.status != 200 or not np.allclose(
                wire.parse_response(said, int(got.headers["inference-header-content-length"])).outputs[0][1], expected
            ):
                wrong.append((got.status, said))
            time.sleep(0.004)
        connection.close()

    def states():
        (any_, _) = relaying.status(watch)["models"]
        return [site["state"] for site in any_["sites"]]

    def until(wanted):
        until_s = time.monotonic() + 20
        while states() != wanted:
            assert time.monotonic() < until_s, states()
            time.sleep(0.02)

    threads = [threading.Thread(target=client, args=(row,)) for row in rows]
    for thread in threads:
        thread.start()
    try:
        one.process.kill()
        one.process.wait()
        until(["out", "in"])
        start(endpoint, port=one.port)
        until(["in", "in"])
        other.process.send_signal(signal.SIGSTOP)
        until(["in", "out"])
        other.process.send_signal(signal.SIGCONT)
        until(["in", "in"])
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert set(asked) == {200}
    renamed = HTTPConnection(host, timeout=20)
    renamed.request("GET", "/v2/models/alone")
    assert json.loads(renamed.getresponse().read())["name"] == "twin"
    renamed.close()
    services.gateway([watch], listen="", status=True, as_json=True)
    (any_, alone) = json.loads(capsys.readouterr().out)["models"]
    assert any_["requests"] == len(asked) == sum(site["answered"] for site in any_["sites"])
    assert any_["ejections"] >= 2
    assert alone["sites"][0] | {"answered": 1, "weight": 1.0, "model": "twin"} == alone["sites"][0]
    services.gateway([watch], listen="", status=True, as_json=False)
    assert f"{len(asked) + 1} requests" in capsys.readouterr().out
    gateway.send_signal(signal.SIGTERM)
    assert gateway.communicate(timeout=20)[1] == ""
    assert gateway.returncode == 0


class Site:
    """Hears requests, keeps their bytes, and answers as `law(request)` says; None: not at all."""

    def __init__(self, law=lambda request: wire.http_response(200, b"{}", extra="X-Site: here\r\nKeep-Alive: 1\r\n")):
        self.law, self.heard = law, []

    async def open(self):
        self.server = await asyncio.start_server(self._hear, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def _hear(self, reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int((head.lower().partition(b"\r\ncontent-length: ")[2].split(b"\r\n")[0]) or 0)
                whole = head + await reader.readexactly(length)
                if b"/v2/health" in head:
                    writer.write(wire.http_response(200, b"{}"))
                    continue
                self.heard.append(whole)
                if (answer := self.law(whole)) is not None:
                    writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


def through(talk, made=None, **laws):
    """Runs `talk(ask, sites, gateway)` with a gateway before stub sites, by name; `made(sites)` gives its routes."""

    async def run():
        sites = {name: await Site(**({"law": law} if law else {})).open() for name, law in laws.items()}
        given = made(sites) if made else {"*": tuple(Route("127.0.0.1", site.port, "") for site in sites.values())}
        gateway = Gateway(given if isinstance(given, Routes) else Routes(given))
        listener = await _listening.listen(gateway.answer, error_response, "127.0.0.1", 0)

        async def ask(request):
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
            body = b"" if request.startswith(b"HEAD") else await reader.readexactly(length)
            writer.close()
            return int(head[9:12]), head, body

        try:
            return await talk(ask, sites, gateway)
        finally:
            await listener.drain(1)
            gateway.close()
            for site in sites.values():
                site.server.close()

    return uvloop.run(run())


def test_what_a_client_sends_goes_on_and_what_is_the_connections_own_does_not():
    request = (
        b"POST /v2/models/a%2Fb/versions/3/infer?q=1 HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer as_1\r\n"
        b"traceparent: 00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01\r\nX-Request-Id: seven\r\n"
        b"Connection: keep-alive, x-hop\r\n"
        b"X-Hop: 1\r\nX-Request-Timeout-Ms: 9876\r\n"
        b"Inference-Header-Content-Length: 2\r\nContent-Length: 5\r\n\r\n{}\0\xff\0"
    )

    async def talk(ask, sites, gateway):
        return await ask(request), sites["a"].heard

    lines = "X-Site: here\r\nKeep-Alive: 1\r\nConnection: X-Too\r\nX-Too: 1\r\n"
    (status, head, body), (heard,) = through(talk, a=lambda request: wire.http_response(200, b"{}", extra=lines))
    lines, _, data = heard.partition(b"\r\n\r\n")
    first, *headers = lines.split(b"\r\n")
    assert first == b"POST /v2/models/a%2Fb/versions/3/infer?q=1 HTTP/1.1"
    assert data == b"{}\0\xff\0"
    sent = dict(line.lower().split(b": ", 1) for line in headers)
    assert len(sent) == len(headers)
    left_ms = int(sent.pop(b"x-request-timeout-ms"))
    assert 0 < left_ms <= 9800
    assert sent.pop(b"host").startswith(b"127.0.0.1:")
    assert sent == {
        b"authorization": b"bearer as_1", b"traceparent": b"00-" + b"1" * 32 + b"-" + b"2" * 16 + b"-01",
        b"x-request-id": b"seven", b"inference-header-content-length": b"2", b"content-length": b"5",
    }  # fmt: skip
    assert (status, body) == (200, b"{}")
    assert b"x-site: here" in head
    assert b"keep-alive" not in head.lower()
    assert b"x-too" not in head.lower()


def test_weights_reserves_mirrors_and_other_names():
    def made(sites):
        at = {name: Route("127.0.0.1", site.port, "") for name, site in sites.items()}
        canary = Route("127.0.0.1", sites["b"].port, "m int8", weight=3)
        reserve = Route("127.0.0.1", sites["c"].port, "", weight=0)
        mirror = Route("127.0.0.1", sites["d"].port, "", mirror=True)
        return {"m": (at["a"], canary, reserve, mirror)}

    async def talk(ask, sites, gateway):
        for _ in range(60):
            assert (await ask(b"GET /v2/models/m HTTP/1.1\r\nHost: h\r\n\r\n"))[0] == 200
        while sum(gateway.status()["models"][0][key] for key in ("mirrored", "unmirrored")) < 60:
            await asyncio.sleep(0.001)
        return {name: site.heard for name, site in sites.items()}, gateway.status()["models"][0]

    heard, told = through(talk, made, a=None, b=None, c=None, d=lambda request: wire.http_response(500, b"x"))
    assert len(heard["a"]) + len(heard["b"]) == told["requests"] == 60
    assert 30 <= len(heard["b"]) < 60  # three quarters; the bounds are five standard deviations
    assert not heard["c"]
    assert len(heard["d"]) == told["mirrored"]
    assert {one.split(b" ")[1] for one in heard["b"]} == {b"/v2/models/m%20int8"}
    assert [site.get("mirror", site.get("weight")) for site in told["sites"]] == [1.0, 3, 0, 1.0]


def test_a_site_that_is_full_or_dead_is_passed_by_and_a_late_one_is_said_to_be():
    async def talk(ask, sites, gateway):
        first = [(await ask(b"GET /v2/models/m HTTP/1.1\r\nHost: h\r\n\r\n"))[0] for _ in range(20)]
        sites["b"].law = lambda request: None
        sites["a"].law = lambda request: None
        late = await ask(b"GET /v2/models/m HTTP/1.1\r\nHost: h\r\nX-Request-Timeout-Ms: 30\r\n\r\n")
        return first, late

    first, late = through(talk, a=lambda request: wire.error_response(503, "full."), b=None)
    assert set(first) == {200}
    assert late[0] == 504
    assert "did not answer before the deadline" in json.loads(late[2])["error"]


def test_what_is_not_relayed_is_said_in_the_protocols_form():
    async def talk(ask, sites, gateway):
        async def status(line, body=b""):
            found = await ask(f"{line} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
            return found[0], found[2]

        for line, code, says in (
            ("POST /v2/repository/models/m/load", 404, "ask the site itself"),
            ("POST /v2/models/m/config", 404, "not relayed"),
            ("GET /v2/models/m/stats", 404, "not relayed"),
            ("GET /v2/models/m/versions/1/2/ready", 404, "not relayed"),
            ("GET /v2/models", 404, "not relayed"),
            ("GET /v2/models/other", 404, "no route to a model 'other'; there are routes to m"),
            ("GET /v2/models/m/infer", 405, "takes POST"),
            ("DELETE /v2/models/m", 405, "takes GET"),
        ):
            found, body = await status(line)
            assert (found, says in json.loads(body)["error"]) == (code, True), (line, body)
        _, head, _ = await ask(b"DELETE /v2/models/m HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"\r\nAllow: GET, HEAD\r\n" in head
        for line in (
            "GET /v2",
            "GET /v2/health/live",
            "HEAD /v2/models/m",
            "GET /v2/models/m/",
            "GET /v2/health/ready",
        ):
            assert (await status(line))[0] == 200, line
        found, body = await status("GET /metrics")
        port = sites["a"].port
        of = f'model="m",protocol="v2",site="127.0.0.1:{port}",site_model="m"'
        assert f"airserve_gateway_site_answered_total{{{of}}} 2\n" in body.decode()
        assert f"airserve_gateway_site_up{{{of}}} 1\n" in body.decode()
        gateway.room.most = 0  # for all protocols together
        for line, sent in (("GET /v2/models/m", b""), ("POST /v1/completions", b'{"model": "m"}')):
            found, body = await status(line, sent)
            assert (found, "ask again later" in body.decode()) == (503, True)

    through(talk, lambda sites: {"m": (Route("127.0.0.1", sites["a"].port, ""),)}, a=None)


def test_no_two_series_of_the_metrics_are_the_same():
    """One site under two names, in two protocols, and once named twice: which is one series."""

    def made(sites):
        at = Route("127.0.0.1", sites["a"].port, "")
        return {"m": (at, replace(at, model="m-int8"), at), "n": (at,)}

    async def talk(ask, sites, gateway):
        for _ in range(12):
            await ask(b"GET /v2/models/m HTTP/1.1\r\nHost: h\r\n\r\n")
        for model in (b"m", b"n"):
            body = b'{"model": "%b"}' % model
            await ask(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        return (await ask(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n"))[2].decode()

    samples = [
        (s.name, tuple(sorted(s.labels.items())), s.value)
        for family in text_string_to_metric_families(through(talk, made, a=None))
        for s in family.samples
    ]
    assert len({(name, labels) for name, labels, _ in samples}) == len(samples)
    answered = [(dict(labels), value) for name, labels, value in samples if name.endswith("site_answered_total")]
    assert sum(value for labels, value in answered if labels["protocol"] == "v2") == 12
    assert sum(value for labels, value in answered if labels["protocol"] == "v1") == 2


def test_it_is_ready_once_a_site_of_each_model_has_shown_that_it_answers():
    async def talk(ask, sites, gateway):
        async def ready():
            status, _, body = await ask(b"GET /v2/health/ready HTTP/1.1\r\nHost: h\r\n\r\n")
            return status, json.loads(body)

        assert (await ready())[0] == 503, "nobody knows yet"
        first, second = gateway._balancers.values()
        async with asyncio.timeout(10):
            while not (first.look() and second.out):
                assert await ready() == (503, {"error": "a model has no site that answers."})
        again = await asyncio.start_server(sites["b"]._hear, "127.0.0.1", sites["b"].port)
        async with asyncio.timeout(10):
            while (await ready())[0] == 503:
                await asyncio.sleep(0.01)
        again.close()
        return [one["requests"] for one in gateway.status()["models"]]

    def made(sites):
        sites["b"].server.close()
        return {name: (Route("127.0.0.1", site.port, ""),) for name, site in sites.items()}

    assert through(talk, made, a=None, b=None) == [0, 0]


def test_whoever_asks_is_not_told_where_the_sites_are():
    def made(sites):
        sites["a"].server.close()
        return Routes({"*": (Route("127.0.0.1", sites["a"].port, ""),)}, manner=Manner(patience_s=0.01))

    async def talk(ask, sites, gateway):
        return await ask(b"GET /v2/models/m HTTP/1.1\r\nHost: h\r\n\r\n")

    status, _, body = through(talk, made, a=None)
    assert status == 502
    said = json.loads(body)["error"].lower()
    assert said == "the model cannot be asked (connection refused); see that its site runs."


def test_counters_are_told_to_the_last_digit():
    async def talk(ask, sites, gateway):
        gateway._balancers["*"].counts.requests = 123_456_789
        return (await ask(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n"))[2].decode()

    assert 'airserve_gateway_requests_total{model="*",protocol="v2"} 123456789\n' in through(talk, a=None)


def test_a_gateway_for_all_tells_no_names_to_whoever_asks():
    """Its sites know who may know of a model; it does not."""

    def made(sites):
        return Routes({"secret": (Route("127.0.0.1", sites["a"].port, ""),)}, sites_check_keys=True)

    async def talk(ask, sites, gateway):
        body = b'{"model": "other"}'
        said = [
            await ask(b"GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n"),
            await ask(b"GET /v2/models/other HTTP/1.1\r\nHost: h\r\n\r\n"),
            await ask(b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 18\r\n\r\n" + body),
        ]
        for status, _, text in said:
            assert status == 404
            assert b"secret" not in text
        assert not sites["a"].heard

    through(talk, made, a=None)


def test_the_docstring_of_routes_is_a_file(tmp_path):
    (tmp_path / "g.yaml").write_text(routes.__doc__.partition("\n\n")[2])
    found = read(tmp_path / "g.yaml")
    assert (found.host, found.port, list(found.routes)) == ("127.0.0.1", 8080, ["*", "digits"])
    first, canary, mirror = found.routes["digits"]
    assert (first.weight, canary.weight, canary.model) == (9, 1, "digits-int8")
    assert (mirror.mirror, mirror.weight) == (True, 0.1)
    assert to_sites(["http://a:1", "https://b"]).secure == {("b", 443)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("routes: {m: [http://h:1]}\nlisten: 0.0.0.0:80", "0.0.0.0 can be reached from outside; say `keys: sites`"),
        ("routes: {m: [http://h:1]}\nwatch: 0.0.0.0:80", "watch: 0.0.0.0 can be reached from outside"),
        ("routes: {m: [http://h:1]}\nlisten: 8080", "'8080' is no address; write HOST:PORT"),
        ("routes: {m: [http://h:1]}\nlistn: h:1", "g.yaml has no 'listn'; perhaps 'listen'?"),
        ("routes: {m: [{url: http://h:1, wieght: 1}]}", "routes of m, site 1 has no 'wieght'; perhaps 'weight'?"),
        ("routes: {m: [h:1]}", "'h:1' is no site's URL; write http://HOST:PORT"),
        ("routes: {m: [http://h:1/v2]}", "is no site's URL"),
        ("routes: {m: [http://h:99999]}", "is no site's URL"),
        ("routes: {m: [{url: http://h:1, weight: -1}]}", "'-1' is not a number from 0 to 1e+06"),
        ("routes: {m: [{url: http://h:1, mirror: 2}]}", "'2' is not a number from 0 to 1"),
        ("routes: {m: [{url: http://h:1, mirror: 1}]}", "one site at least is to answer"),
        ("routes: {m: [{url: http://h:1, mirror: 1, weight: 1}]}", "a mirror has no weight"),
        ("routes: {m: http://h:1}", "routes of m: a list of sites is wanted"),
        ("routes: {}", "routes has no models"),
        ("routes: {m: [http://h:1]}\nretries: {attempts: 0}", "attempts: '0' is not a number from 1"),
        ("routes: {m: [http://h:1]}\nkeys: k.json", "keys is 'k.json'"),
        ("routes: {m: [http://h:1]}\ntls_cert: c.pem", "TLS needs both"),
        ("models: {}", "holds no routes"),
        ("routes: [", "line 1: not YAML"),
        ("routes:\n  '*': [http://h:1]\n  \"*\": [http://h:2]", "line 3: * stands twice; write it once"),
    ],
)
def test_routes_that_cannot_be_are_one_sentence(tmp_path, text, says):
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(RoutesError) as caught:
        read(tmp_path / "g.yaml")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gateway_for_all_refuses_a_site_without_keys():
    def run(law):
        async def talk():
            site = await Site(law).open()
            open_ = Routes({"*": (Route("127.0.0.1", site.port, ""),)}, "0.0.0.0", 0, sites_check_keys=True)
            gateway = Gateway(open_)
            try:
                await relaying._ask_for_keys(gateway, open_)
            finally:
                gateway.close()
                site.server.close()

        uvloop.run(talk())

    run(lambda request: wire.error_response(401, "a key is wanted."))
    with pytest.raises(RoutesError, match="answers without a key"):
        run(lambda request: wire.http_response(200, b"{}"))


@pytest.mark.parametrize(
    ("words", "how", "says"),
    [
        (["http://h:1", "a.yaml"], {}, "give one file of routes, or URLs alone"),
        (["none.yaml"], {}, "none.yaml cannot be read"),
        (["http://127.0.0.1:9"], {"status": True}, "tells no status"),
        (["http://h:1"], {"listen": "0.0.0.0:1"}, "can be reached from outside"),
    ],
)
def test_the_command_says_what_is_wrong_in_a_sentence(words, how, says):
    with pytest.raises(RoutesError, match=says):
        services.gateway(words, **{"listen": "", "status": False, "as_json": False} | how)
