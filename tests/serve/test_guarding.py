"""Keys, tokens, rates and TLS, as clients meet them at a service of two workers."""

import asyncio
import datetime
import errno
import hashlib
import http.client
import ipaddress
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import grpc
import jwt
import numpy as np
import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import RSAAlgorithm
from prometheus_client.parser import text_string_to_metric_families

from airserve.serve import guarding, relaying, rereading
from airserve.serve.configuration import Configuration, ConfigurationError
from airserve.serve.connecting import UpstreamFailed
from airserve.serve.guarding import Admitted, Guard, TooMany, Unauthorized
from airserve.serve.protocols import camara
from airserve.serve.protocols._camara_asked import Asked
from airserve.serve.protocols._entry import Entry
from airserve.serve.protocols._head import Head
from airserve.serve.protocols._messages import SERVICE, classes
from airserve.serve.relaying import Gateway
from airserve.serve.routes import read
from airserve.serve.tenants import Tenant, new_key, read_tenants

RSA = rsa.generate_private_key(65537, 2048)
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})


def token(key=RSA, algorithm="RS256", **claims):
    claims = {"iss": "me", "aud": "us", "sub": "someone", "exp": time.time() + 60, **claims}
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, key, algorithm, headers={"kid": "one"})


@pytest.fixture(scope="module")
def made(tmp_path_factory, graphs):
    """A service behind TLS, and its keys by tenant."""
    folder = tmp_path_factory.mktemp("guarded")
    file = folder / "keys.json"
    keys = {
        "plant": new_key(file, "plant"),
        "admin": new_key(file, "admin", admin=True),
        "tail": new_key(file, "tail", models=["tail"], slice="video"),
        "slow": new_key(file, "slow", rate_hz=1.0, burst=3),
        "lost": new_key(file, "lost", models=["lost"]),  # which is not served
    }
    public = json.loads(RSAAlgorithm.to_jwk(RSA.public_key()))
    (folder / "jwks.json").write_text(json.dumps({"keys": [{**public, "kid": "one", "alg": "RS256", "use": "sig"}]}))
    certificate(folder)
    command = [sys.executable, "-m", "airserve.cli", "serve", graphs["whole"], graphs["tail"], "--port", 0]
    command += ["--workers", 2, "--keys", file, "--jwks", folder / "jwks.json", "--issuer", "me", "--audience", "us"]
    command += ["--grpc-port", 0, "--access-log", "--tls-cert", folder / "cert.pem", "--tls-key", folder / "key.pem"]
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            [*map(str, command)], stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    line = process.stdout.readline()
    assert line.startswith("ready serve https://127.0.0.1:"), line
    context = ssl.create_default_context(cafile=folder / "cert.pem")

    def ask(path, key="", method="GET", body=None, **headers):
        one = http.client.HTTPSConnection("127.0.0.1", int(re.search(r":(\d+) ", line)[1]), timeout=10, context=context)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        one.request(method, path, body, headers)
        answer = one.getresponse()
        text = answer.read()
        one.close()
        return answer.status, text.decode(), dict(answer.getheaders())

    ask.log, ask.port = folder / "log.txt", int(re.search(r":(\d+) ", line)[1])
    ask.grpc = re.search(r"grpc://(\S+)", line)[1]
    yield ask, keys
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(15) == 0
    process.stdout.close()


def certificate(folder):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(*form))


INFER = "/v2/models/whole/infer"
ROUTES = [
    ("GET", "/v2"), ("GET", "/metrics"), ("GET", "/v2/models/whole"), ("GET", "/v2/models/whole/ready"),
    ("GET", "/v2/models/whole/stats"), ("GET", "/v2/models/stats"), ("POST", INFER), ("POST", "/v2/repository/index"),
    ("POST", "/v2/repository/models/whole/load"), ("POST", "/v2/repository/models/whole/unload"), ("GET", "/nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_every_route_but_health_wants_a_key(made, method, path):
    ask, _ = made
    for key in ("", "as_wrong", "a.b.c", "~" * 500):
        status, text, headers = ask(path, key, method)
        assert status == 401
        assert headers["WWW-Authenticate"].startswith("Bearer")
        assert json.loads(text)["error"].endswith(".")


def test_keys_are_given_and_taken_away_while_the_service_runs(made):
    ask, _ = made
    file = ask.log.with_name("keys.json")
    before = file.read_text()

    def until(status, key):
        """Of twenty requests, which the kernel deals out to both workers."""
        until_s = time.monotonic() + 20
        while {ask("/v2", key)[0] for _ in range(20)} != {status}:
            assert time.monotonic() < until_s

    key = new_key(file, "later", models=["whole"])
    until(200, key)
    context = ssl.create_default_context(cafile=file.with_name("cert.pem"))
    one = http.client.HTTPSConnection("127.0.0.1", ask.port, timeout=10, context=context)

    def again():
        one.request("POST", INFER, BODY, {"X-API-Key": key})
        answer = one.getresponse()
        answer.read()
        return answer.status

    assert [again() for _ in range(3)] == [200] * 3
    file.write_text(before)
    until(401, key)
    until_s = time.monotonic() + 20
    while again() != 401:  # though its header was known, and whose it was
        assert time.monotonic() < until_s
    one.close()


def test_health_wants_none(made):
    ask, _ = made
    assert ask("/v2/health/live")[0] == ask("/v2/health/ready")[0] == 200


def test_a_key_opens_and_so_does_a_token(made):
    ask, keys = made
    for _ in range(4):
        assert ask(INFER, keys["plant"], "POST", BODY)[0] == 200
    assert ask(INFER, "", "POST", BODY, **{"X-API-Key": keys["plant"]})[0] == 200
    assert ask(INFER, token(), "POST", BODY)[0] == 200
    assert ask(INFER, token(tenant="tail"), "POST", BODY)[0] == 403  # a token may name a tenant of the file


def test_those_whom_only_a_token_names_have_each_their_own(made, tmp_path):
    """They are counted together, for names are without end; what one of them knows, no other sees."""
    configuration = Configuration((), jwks=str(made[0].log.with_name("jwks.json")), issuer="me", audience="us")
    guard, service = Guard(configuration), SimpleNamespace(knowledge=str(tmp_path))
    heads = []
    for name in ("ada", "bob", "ada"):
        heads.append(Head("GET", b"/", {b"authorization": f"Bearer {token(sub=name)}".encode()}))
        heads[-1].admitted = guard.admit(heads[-1].headers)
    asked = [Asked(service, head, b'{"name": "mine"}', 0.0, ()) for head in heads]
    assert camara._create_base(asked[0]).startswith(b"HTTP/1.1 201 ")
    lists = [json.loads(camara._list_bases(one).partition(b"\r\n\r\n")[2])["items"] for one in asked]
    assert [[base["name"] for base in found] for found in lists] == [["mine"], [], ["mine"]]
    assert {head.admitted.place for head in heads} == {0}
    assert [tenant.name for tenant, _, _ in guard.counted()] == ["*"]
    asked[0].known.close()


def test_the_keys_file_limits_those_whom_only_a_token_names(made, tmp_path, monkeypatch):
    """All of them together, by its tenant `*`; also once that is there, and one who was taken out of it."""
    monkeypatch.setattr(rereading, "REREAD_S", 0.0)
    keys = tmp_path / "keys.json"
    new_key(keys, "ada", rate_hz=5.0)
    jwks = str(made[0].log.with_name("jwks.json"))
    guard = Guard(Configuration((), keys=str(keys), jwks=jwks, issuer="me", audience="us"))

    def limits(name):
        tenant = guard.admit({b"x-api-key": token(sub=name).encode()}).tenant
        return tenant.name, tenant.rate_hz, tenant.models

    assert limits("bob") == ("bob", 0.0, ())
    new_key(keys, "*", rate_hz=1.0, models=["tail"])
    assert limits("bob") == ("bob", 1.0, ("tail",))
    assert limits("ada") == ("ada", 5.0, ())
    tenants = json.loads(keys.read_text())["tenants"]
    keys.write_text(json.dumps({"tenants": [one for one in tenants if one["name"] != "ada"]}))
    assert limits("ada") == ("ada", 1.0, ("tail",))
    places = {guard.admit({b"x-api-key": token(sub=name).encode()}).place for name in ("ada", "bob")}
    assert len(places) == 1
    assert [tenant.name for tenant, _, _ in guard.counted()] == ["*"]


def test_an_issuer_that_changes_its_keys_is_followed(tmp_path, monkeypatch, caplog):
    """Once a second at most: a token of a key that is not known makes no work."""
    file, other = tmp_path / "jwks.json", rsa.generate_private_key(65537, 2048)

    def write(**keys):
        public = {kid: json.loads(RSAAlgorithm.to_jwk(key.public_key())) for kid, key in keys.items()}
        (tmp_path / "new").write_text(
            json.dumps({"keys": [{**key, "kid": kid, "alg": "RS256"} for kid, key in public.items()]})
        )
        (tmp_path / "new").replace(file)

    def admitted(key, kid):
        given = jwt.encode({"sub": "ada", "exp": time.time() + 60}, key, "RS256", headers={"kid": kid} if kid else None)
        try:
            return guard.admit({b"x-api-key": given.encode()}).tenant.name == "ada"
        except Unauthorized as error:
            assert str(error).endswith(".")
            return False

    now_s = [1000.0]
    monkeypatch.setattr(rereading, "monotonic", lambda: now_s[0])
    write(one=RSA)
    guard = Guard(Configuration((), jwks=str(file)))
    assert admitted(RSA, "one")
    assert admitted(RSA, None)
    assert not admitted(RSA, "two"), "a token that names a key is checked by no other"
    write(one=RSA, two=other)
    assert not admitted(other, "two")
    now_s[0] += 1.0
    assert admitted(other, "two")
    file.write_text("{")
    now_s[0] += 1.0
    assert admitted(RSA, "one"), "a file that cannot be read takes nobody's key"
    assert "stays in force" in caplog.text
    write(two=other)
    now_s[0] += 1.0
    assert not admitted(RSA, "one"), "a key that was taken back opens nothing"
    assert admitted(other, "two")


SECRET = '{"keys": [{"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"}]}'


@pytest.mark.parametrize("text", ["[]", '"x"', '{"keys": [1]}', '{"keys": 3}', "{", '{"keys": []}', SECRET])
def test_a_file_of_public_keys_that_is_none_is_one_sentence(tmp_path, text):
    (tmp_path / "jwks.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"^[^\n]* holds no public keys [^\n]*$"):
        Guard(Configuration((), jwks=str(tmp_path / "jwks.json")))


def test_tokens_that_are_refused(made):
    ask, _ = made
    other = rsa.generate_private_key(65537, 2048)
    header = {"kid": "one", "alg": "none", "typ": "JWT"}
    unsigned = jwt.encode({"sub": "x", "exp": time.time() + 60}, None, "none", headers=header)
    public = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    confused = token(hashlib.sha256(public).digest(), "HS256")
    for bad in (
        token(other), token(exp=time.time() - 60), token(exp=None), token(iss="you"), token(aud="them"), unsigned,
        confused, token()[:-6] + "AAAAAA", "e30.e30.e30",
    ):  # fmt: skip
        status, text, _ = ask(INFER, bad, "POST", BODY)
        assert status == 401, bad
        assert "Traceback" not in text


def test_a_tenant_has_its_models_and_no_others(made):
    ask, keys = made
    assert ask("/v2/models/tail", keys["tail"])[0] == 200
    for path in (
        "/v2/models/whole",
        "/v2/models/wh%6Fle",
        "/v2/models/whole/versions/1/ready",
        "/v2/models/whole/stats",
    ):
        assert ask(path, keys["tail"], "POST" if path == INFER else "GET")[0] == 403, path
    rows = json.loads(ask("/v2/repository/index", keys["tail"], "POST")[1])
    assert [row["name"] for row in rows] == ["tail"]
    found = json.loads(ask("/v2/models/stats", keys["tail"])[1])
    assert [one["name"] for one in found["model_stats"]] == ["tail"]


def test_what_is_not_there_is_told_without_the_names_of_what_is(made):
    ask, keys = made
    certificate = grpc.ssl_channel_credentials(ask.log.with_name("cert.pem").read_bytes())
    found = [ask("/v2/models/lost/infer", keys["lost"], "POST", BODY), ask("/v2/models/lost", keys["lost"])]
    found += [ask("/v1/completions", keys["lost"], "POST", json.dumps({"model": "lost", "prompt": "a"}))]
    found += [ask("/v2/repository/models/lost/unload", keys["admin"], "POST")]
    assert {status for status, *_ in found} == {404}
    texts = [text for _, text, _ in found]
    with grpc.secure_channel(ask.grpc, certificate) as channel:
        for method in ("ModelInfer", "ModelMetadata", "ModelStatistics"):
            message = classes()["ModelInferRequest"](model_name="lost") if method == "ModelInfer" else None
            message = message or classes()[f"{method}Request"](name="lost")
            call = channel.unary_unary(f"/{SERVICE}/{method}", request_serializer=type(message).SerializeToString)
            with pytest.raises(grpc.RpcError) as caught:
                call(message, metadata=[("authorization", f"Bearer {keys['lost']}")], timeout=10)
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            texts.append(caught.value.details())
    for text in texts:
        assert "lost" in text
        assert not {"whole", "tail"} & set(re.findall(r"\w+", text)), text


def test_models_are_changed_by_an_admin_alone(made):
    ask, keys = made
    assert ask("/v2/repository/models/tail/load", keys["plant"], "POST")[0] == 403
    assert ask("/v2/repository/models/tail/load", keys["admin"], "POST")[0] == 200


def test_a_rate_is_one_whichever_worker_is_asked(made):
    ask, keys = made
    answers = [ask(INFER, keys["slow"], "POST", BODY) for _ in range(10)]
    statuses = [status for status, *_ in answers]
    assert statuses[:3] == [200] * 3
    assert statuses.count(429) >= 4  # ten requests take less than three seconds
    refused = next(headers for status, _, headers in answers if status == 429)
    assert refused["Retry-After"] == "1"


def test_a_request_keeps_its_name(made):
    ask, keys = made
    for body in (BODY, "{"):
        _, _, headers = ask(INFER, keys["plant"], "POST", body, **{"X-Request-Id": "abc-7"})
        assert headers["X-Request-Id"] == "abc-7"
    assert "X-Request-Id" not in ask(INFER, keys["plant"], "POST", BODY, **{"X-Request-Id": "a b"})[2]


def test_metrics_are_prometheus_and_add_up(made):
    ask, keys = made

    def samples():
        status, text, headers = ask("/metrics", keys["plant"])
        assert status == 200
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
        families = {family.name: family for family in text_string_to_metric_families(text)}
        return {
            (s.name, s.labels.get("model"), s.labels.get("outcome") or s.labels.get("le")): s.value
            for family in families.values()
            for s in family.samples
        }

    before = samples()
    for _ in range(7):
        assert ask(INFER, keys["plant"], "POST", BODY)[0] == 200
    assert ask(INFER, keys["plant"], "POST", BODY.replace('"x"', '"z"'))[0] == 400
    after = samples()

    def grown(*key):
        return after[key] - before.get(key, 0.0)

    assert grown("airserve_requests_total", "whole", "answered") == 7
    assert grown("airserve_requests_total", "whole", "refused") == 1
    assert grown("airserve_rows_total", "whole", None) == 7
    assert grown("airserve_request_duration_seconds_count", "whole", None) == 7
    assert grown("airserve_request_duration_seconds_bucket", "whole", "+Inf") == 7
    assert grown("airserve_compute_seconds_total", "whole", None) > 0


def test_metrics_tell_a_tenant_of_its_models_and_of_itself(made):
    ask, keys = made

    def told(name):
        found = list(text_string_to_metric_families(ask("/metrics", keys[name])[1]))
        samples = [sample.labels for family in found for sample in family.samples]
        return tuple({labels[of] for labels in samples if of in labels} for of in ("model", "tenant"))

    assert told("tail") == ({"tail"}, {"tail"})
    assert told("plant") == ({"whole", "tail"}, {"plant"})
    assert told("admin") == ({"whole", "tail"}, {*keys, "*"})


def test_what_each_tenant_asks_and_is_refused_is_counted_with_its_slice(made):
    ask, keys = made

    def samples():
        families = text_string_to_metric_families(ask("/metrics", keys["admin"])[1])
        return {
            (s.name.removeprefix("airserve_tenant_"), s.labels["tenant"], s.labels["slice"]): s.value
            for family in families
            for s in family.samples
            if "tenant" in s.labels
        }

    before = samples()
    for _ in range(5):
        assert ask("/v2/models/tail", keys["tail"])[0] == 200
    statuses = [ask("/v2", keys["slow"])[0] for _ in range(8)]
    after = samples()
    grown = {key: after[key] - before[key] for key in after}
    assert grown["requests_total", "tail", "video"] == 5
    assert grown["refused_total", "tail", "video"] == 0
    assert grown["requests_total", "slow", ""] == 8
    assert grown["refused_total", "slow", ""] == statuses.count(429) > 0
    assert grown["requests_total", "admin", ""] == 1
    assert grown["requests_total", "plant", ""] == 0


def test_the_log_is_json_and_names_the_request(made):
    ask, keys = made
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    for body, status in ((BODY, 200), ("{", 400)):
        ask(INFER, keys["plant"], "POST", body, **{"X-Request-Id": f"log-{status}", "traceparent": trace})
        (line,) = [
            one for one in map(json.loads, ask.log.read_text().splitlines()) if one.get("request_id") == f"log-{status}"
        ]
        assert (line["message"], line["method"], line["path"], line["status"]) == ("request", "POST", INFER, status)
        assert (line["tenant"], line["traceparent"]) == ("plant", trace)
        assert line["ms"] > 0
    assert keys["plant"] not in ask.log.read_text()


def test_a_keys_file_holds_hashes_and_is_its_owners(tmp_path):
    file = tmp_path / "keys.json"
    first, second = new_key(file, "a", rate_hz=5.0), new_key(file, "a")
    text = file.read_text()
    assert first not in text
    assert second not in text
    assert file.stat().st_mode & 0o077 == 0
    (tenant,) = read_tenants(file)
    assert (tenant.rate_hz, len(tenant.keys)) == (5.0, 2)
    guard = Guard(Configuration((), keys=str(file)))
    for key in (first, second):
        assert guard.admit({b"x-api-key": key.encode()}).tenant == tenant
    with pytest.raises(Unauthorized, match="not known"):
        guard.admit({b"x-api-key": first[:-1].encode()})


def test_a_keys_file_that_cannot_be_written_is_one_sentence_and_loses_nothing(tmp_path, monkeypatch):
    with pytest.raises(ConfigurationError, match=r"none/keys\.json cannot be written \(no such file"):
        new_key(tmp_path / "none" / "keys.json", "a")
    file = tmp_path / "keys.json"
    new_key(file, "a")
    file.chmod(0o640)
    before = file.read_text()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(ConfigurationError, match="no space left on device"):
            new_key(file, "b")
    assert (file.read_text(), list(tmp_path.iterdir())) == (before, [file])
    new_key(file, "b")
    assert file.stat().st_mode & 0o777 == 0o640  # who reads it may be another than who writes it


@pytest.mark.parametrize("text", [
    "{", "[]", '{"tenants": [{"name": "a", "keys": ["plain"]}]}', '{"tenants": [{}]}',
    '{"tenants": [{"name": "a"}, {"name": "a"}]}', '{"tenants": [{"nme": "a"}]}', '{"tenants": [{"name": 5}]}',
    '{"tenants": [{"name": ["a"]}]}', '{"tenants": [{"name": "a", "keys": [5]}]}', '{"tenants": [{"name": "\\ud800"}]}',
    '{"tenants": [{"name": "a", "rate_hz": "5"}]}', '{"tenants": [{"name": "a", "rate_hz": NaN}]}', "[" * 100_000,
    '{"tenants": [{"name": "a", "burst": -1}]}', '{"tenants": [{"name": "a", "models": ["m", null]}]}',
    '{"tenants": [{"name": "a", "admin": 1}]}',
])  # fmt: skip
def test_a_keys_file_that_is_none_is_one_sentence(tmp_path, text):
    (tmp_path / "keys.json").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        Guard(Configuration((), keys=str(tmp_path / "keys.json")))
    assert "\n" not in str(caught.value)


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=60), st.integers(1, 6), st.sampled_from([2.0, 5.0, 20.0]))
def test_a_rate_lets_through_what_a_bucket_by_hand_does(tmp_path_factory, gaps_s, burst, rate_hz):
    """GCRA is a leaky bucket of `burst` tokens that fills at the rate (I.371 annex A: the two are the same)."""
    file = tmp_path_factory.getbasetemp() / "rate.json"
    file.write_text(json.dumps({"tenants": [{"name": "a", "rate_hz": rate_hz, "burst": burst}]}))
    guard = Guard(Configuration((), keys=str(file)))
    admitted = Admitted(guard.counted()[0][0], 0, np.inf)
    allowance = guard.allowance(admitted, 0)
    tokens, at_s, now_s = float(burst), 0.0, 1000.0
    for gap_s in gaps_s:
        now_s += gap_s
        tokens = min(float(burst), tokens + (now_s - (at_s or now_s)) * rate_hz)
        at_s = now_s
        try:
            allowance.take(now_s)
            assert tokens > 1 - 1e-6
            tokens -= 1
        except TooMany as error:
            assert tokens < 1 + 1e-6
            assert error.retry_s == pytest.approx((1 - tokens) / rate_hz, abs=1e-5)


def test_a_request_that_waited_for_its_turn_was_not_early(tmp_path):
    """Another worker's is counted between its arrival and its turn: it is judged by the time at which it is counted."""
    file = tmp_path / "keys.json"
    key = new_key(file, "a", rate_hz=1000.0, burst=1)
    guard = Guard(Configuration((), keys=str(file), workers=2))
    head = Head("POST", b"/v2/models/m/infer", {b"x-api-key": key.encode()})
    service = SimpleNamespace(generation=0, worker=0)
    entry = Entry(service, guard, head, lambda head: lambda service, head: lambda body, arrived_s: b"done", None)
    arrived_s = time.monotonic()
    time.sleep(0.005)
    guard.allowance(head.admitted, 1).take(time.monotonic())
    time.sleep(0.002)
    assert entry.answer(b"", arrived_s) == b"done"
    with pytest.raises(TooMany):
        _ = [entry.answer(b"", arrived_s) for _ in range(3)]


def test_concurrency_is_counted_over_workers_and_forgotten_with_one(tmp_path):
    file = tmp_path / "keys.json"
    new_key(file, "a", concurrency=2)
    guard = Guard(Configuration((), keys=str(file), workers=2))
    admitted = Admitted(guard.counted()[0][0], 0, np.inf)
    one, two = (guard.allowance(admitted, worker) for worker in (0, 1))
    one.enter()
    two.enter()
    with pytest.raises(TooMany, match="may have 2 requests under way"):
        one.enter()
    with pytest.raises(TooMany, match="may have 2 requests under way"):
        one.take(0.0)
    two.leave()
    two.enter()
    guard.bury(1, 12345)
    one.enter()
    assert replace(guard.counted()[0][0], keys=()) == Tenant("a", concurrency=2)


def rewritten(file, *names, **limits):
    """A keys file with these tenants alone; their keys."""
    file.unlink(missing_ok=True)
    return {name: new_key(file, name, **limits).encode() for name in names}


def test_a_tenant_has_one_place_in_all_processes_and_for_good(tmp_path, monkeypatch):
    """A worker that never read of a tenant gives its place to no other; limits and counts are those of the file now."""
    monkeypatch.setattr(rereading, "REREAD_S", 0.0)
    file = tmp_path / "keys.json"
    keys = rewritten(file, "a")
    guard = Guard(Configuration((), keys=str(file), workers=2))

    def admitted(name):
        return guard.admit({b"x-api-key": keys[name]})

    def in_a_worker(work):
        if (pid := os.fork()) == 0:
            try:
                os._exit(0 if work() else 1)
            finally:
                os._exit(2)
        return os.waitpid(pid, 0)[1] == 0

    def places(*wanted):
        guard.allowance(admitted("b"), 1).take()
        return (admitted("b").place, admitted("a").place) == wanted

    def unknown():
        with pytest.raises(Unauthorized):
            admitted("b")
        return admitted("a").place == 0

    assert admitted("a").place == 0
    keys |= rewritten(file, "b", "a", rate_hz=5.0)
    assert in_a_worker(unknown), "it gives no places itself"
    guard.follow()  # as the supervisor does
    assert in_a_worker(lambda: places(1, 0))
    keys |= rewritten(file, "c", "a", rate_hz=5.0)
    assert (admitted("c").place, admitted("a").place) == (2, 0)
    assert admitted("a").tenant.rate_hz == 5.0
    assert unknown()
    keys |= rewritten(file, "b")
    assert [(tenant.name, asked) for tenant, asked, _ in guard.counted()] == [("b", 1)]


def test_where_there_is_no_room_for_new_tenants_others_still_go(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(rereading, "REREAD_S", 0.0)
    file, public = tmp_path / "keys.json", json.loads(RSAAlgorithm.to_jwk(RSA.public_key()))
    (tmp_path / "jwks.json").write_text(json.dumps({"keys": [{**public, "alg": "RS256"}]}))
    keys = rewritten(file, "a", "b")
    guard = Guard(Configuration((), keys=str(file), jwks=str(tmp_path / "jwks.json")))
    file.write_text(json.dumps({"tenants": [{"name": f"{k}"} for k in range(300)]}))
    with pytest.raises(Unauthorized):
        guard.admit({b"x-api-key": keys["a"]})
    assert "299 is left out: 258 tenants were named; start the service anew" in caplog.text
    assert guard.admit({b"x-api-key": token(tenant="7").encode()}).tenant.name == "7"
    with pytest.raises(Unauthorized, match="ask again later"):  # nor without its limits
        guard.admit({b"x-api-key": token(tenant="299").encode()})
    keys = rewritten(file, "a")
    assert guard.admit({b"x-api-key": keys["a"]}).place == 0
    with pytest.raises(Unauthorized):
        guard.admit({b"x-api-key": keys.get("b", b"gone")})


def test_what_could_not_be_read_is_read_as_soon_as_it_can_be(tmp_path, monkeypatch, caplog):
    """The file is the same, so that its stamp says nothing: no descriptor was free."""
    monkeypatch.setattr(rereading, "REREAD_S", 0.0)
    file = tmp_path / "keys.json"
    before = rewritten(file, "a")
    guard = Guard(Configuration((), keys=str(file)))
    after = rewritten(file, "a")
    with monkeypatch.context() as without:
        without.setattr(guarding, "read_tenants", lambda path: os.open("/nowhere", os.O_RDONLY))
        for _ in range(3):
            assert guard.admit({b"x-api-key": before["a"]}).tenant.name == "a"
    assert caplog.text.count("stays in force") == 1
    assert guard.admit({b"x-api-key": after["a"]}).tenant.name == "a"
    with pytest.raises(Unauthorized):
        guard.admit({b"x-api-key": before["a"]})


def test_a_rate_that_is_raised_helps_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(rereading, "REREAD_S", 0.0)
    file = tmp_path / "keys.json"
    keys = rewritten(file, "a", rate_hz=0.01, burst=1)
    guard = Guard(Configuration((), keys=str(file)))
    guard.allowance(guard.admit({b"x-api-key": keys["a"]}), 0).take(1000.0)
    keys = rewritten(file, "a", rate_hz=100.0, burst=1)
    allowance = guard.allowance(guard.admit({b"x-api-key": keys["a"]}), 0)
    with pytest.raises(TooMany) as caught:
        allowance.take(1000.0)
    assert caught.value.retry_s == pytest.approx(0.01, abs=1e-6)
    allowance.take(1000.0101)


def test_a_lock_of_a_worker_that_died_is_freed(tmp_path):
    file = tmp_path / "keys.json"
    new_key(file, "a", rate_hz=1e6)
    guard = Guard(Configuration((), keys=str(file)))
    pid = os.fork()
    if pid == 0:
        guard.lock.hold(os.getpid())
        os._exit(0)
    os.waitpid(pid, 0)
    assert not guard.lock.hold(os.getpid())
    guard.bury(0, pid)
    assert guard.lock.hold(os.getpid())


def test_a_gateway_for_all_passes_keys_on_to_a_site_by_https(made, tmp_path):
    """It starts beyond loopback, for the site asks for keys; whose certificate is not known, is not asked."""
    ask, keys = made
    file = tmp_path / "gateway.yaml"
    sites = f"routes: {{'*': ['https://127.0.0.1:{ask.port}']}}"
    file.write_text(f"listen: 0.0.0.0:0\nkeys: sites\nca: {ask.log.with_name('cert.pem')}\n{sites}\n")
    routes = read(file)

    async def asked(routes, key):
        gateway = Gateway(routes)
        await relaying._ask_for_keys(gateway, routes)
        headers = {b"authorization": f"Bearer {key}".encode()} if key else {}
        try:
            return await gateway.answer(Head("GET", b"/v2/models/whole", headers), b"", time.monotonic())
        finally:
            gateway.close()
            await asyncio.sleep(0)

    right, wrong, none = (uvloop.run(asked(routes, key)) for key in (keys["plant"], "as_wrong", ""))
    assert right.startswith(b"HTTP/1.1 200 ")
    assert b'"name":"whole"' in right
    assert wrong.startswith(b"HTTP/1.1 401 ")
    assert b"www-authenticate: Bearer" in none
    impatient = replace(routes, ca="", manner=replace(routes.manner, patience_s=0.0))
    with pytest.raises(UpstreamFailed, match="cannot be asked"):
        uvloop.run(asked(impatient, keys["plant"]))
