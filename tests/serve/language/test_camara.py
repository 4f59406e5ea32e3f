"""CAMARA's Model as a Service, held to the descriptions that its project published, and its answers to the network."""

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
import schemathesis
import uvloop
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from airserve.contract import Endpoint, SiteProcess
from airserve.model import Function
from airserve.serve import knowledge
from airserve.serve.batching import Overloaded
from airserve.serve.knowledge import Gone, Knowledge, Taken
from airserve.serve.protocols import camara
from airserve.serve.protocols._camara_asked import Asked
from airserve.serve.protocols._camara_requests import Refused, read_upload
from airserve.serve.protocols._head import Head
from airserve.serve.retrieving import nearest, passages
from airserve.serve.service import Service, UnknownEndpoint
from airserve.serve.tenants import new_key

APIS = ("knowledge-base", "qa-assistant-manage", "qa-assistant-service")
PUBLISHED = Path(__file__).parent / "camara"
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
RADIO = "The mast carries a radio.\n\nThe radio carries the answer of a model to the hall.\n"
ENGINE = "topic,fact\nengine,the engine says that it is warm\nmodel,a model is asked\n"


class Alone:
    """`airserve serve --knowledge` with a language model and a sentence encoder, two workers and three tenants."""

    def __init__(self, folder, *models):
        names = {"plant": None, "other": None, "narrow": ["minilm"]}
        self.keys = {name: new_key(folder / "keys.json", name, models=some) for name, some in names.items()}
        command = [sys.executable, "-W", "error", "-m", "airserve.cli", "serve", *map(str, models), "--port", "0"]
        command += ["--keys", str(folder / "keys.json"), "--workers", "2", "--knowledge", str(folder / "knowledge")]
        self.log = folder / "log.txt"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        line = self.process.stdout.readline()
        assert line.startswith("ready "), self.log.read_text()
        self.url = re.search(r"http://\S+", line)[0]
        self.schemas = {}
        for api in APIS:
            described = yaml.safe_load((PUBLISHED / f"{api}.yaml").read_text())
            described["paths"] = {path: of for path, of in described["paths"].items() if "tools" not in path}
            self.schemas[api] = schemathesis.openapi.from_dict(described)
            self.schemas[api].config.update(base_url=f"{self.url}/{api}/v0.2rc1")

    def ask(self, method, path, body=None, key="plant", **more):
        """The answer to a request on a connection of its own, checked against what was published of it."""
        headers = {"x-correlator": "mine-1", "Authorization": f"Bearer {self.keys.get(key, key)}"}
        headers |= more.pop("headers", {})
        api = path.split("/")[1]
        answer = requests.request(
            method,
            self.url + path.replace(f"/{api}/", f"/{api}/v0.2rc1/", 1),
            json=body,
            headers=headers,
            timeout=20,
            **more,
        )
        assert answer.headers.get("x-correlator") == headers["x-correlator"]
        shape = re.sub(r"/[0-9a-f-]{36}", "/ID", path.removeprefix(f"/{api}").partition("?")[0])
        for known, operations in self.schemas[api].raw_schema["paths"].items():
            if (
                re.sub(r"\{\w+\}", "ID", known) == shape
                and str(answer.status_code) in operations[method.lower()]["responses"]
            ):
                self.schemas[api][known][method].validate_response(answer)
        return answer

    def stop(self):
        os.killpg(self.process.pid, signal.SIGTERM)
        status = self.process.wait(15)
        self.process.stdout.close()
        return status


@pytest.fixture(scope="module")
def alone(reference, encoder, tmp_path_factory):
    service = Alone(tmp_path_factory.mktemp("camara"), reference.path, encoder)
    yield service
    assert service.stop() == 0
    assert "Traceback" not in service.log.read_text()


def upload(alone, base, name, text, key="plant"):
    """A document, once it is indexed or has failed; any worker may be asked."""
    path = f"/knowledge-base/knowledge-bases/{base}/documents"
    answer = alone.ask("POST", path, files={"document": (name, text.encode())}, key=key)
    if answer.status_code != 201:
        return answer
    found = answer.json()
    assert answer.headers["Location"].endswith(f"{base}/documents/{found['documentId']}")
    until_s = time.monotonic() + 10
    while found["status"] == "PROCESSING" and time.monotonic() < until_s:
        time.sleep(0.02)
        found = alone.ask("GET", f"{path}/{found['documentId']}", key=key).json()
    return found


@pytest.fixture(scope="module")
def base(alone):
    made = alone.ask("POST", "/knowledge-base/knowledge-bases", {"name": "plant", "description": "What there is."})
    assert made.status_code == 201
    identity = made.json()["knowledgeBaseId"]
    assert upload(alone, identity, "radio.txt", RADIO)["status"] == "READY"
    found = upload(alone, identity, "engine.csv", ENGINE)
    assert (found["status"], found["format"], found["filename"]) == ("READY", "CSV", "engine.csv")
    return identity


PARAMETERS = {"model": "gpt", "temperature": 0, "maxTokens": 12}
ASSISTANT = {"name": "helper", "configurationPrompt": "Be brief.", "largeModelParameters": PARAMETERS}


def assistant(alone, **more):
    made = alone.ask("POST", "/qa-assistant-manage/assistants", ASSISTANT | more)
    assert made.status_code == 201, made.text
    return made.json()["assistantId"]


def test_an_answer_is_the_network_s_with_what_was_found_and_says_its_source(alone, base, reference):
    identity = assistant(alone, knowledgeBaseId=base)
    for question, source, first in (
        ("how warm is the engine", "engine.csv", "topic: engine; fact: the engine says that it is warm"),
        ("mast radio hall", "radio.txt", RADIO.replace("\n\n", " ").strip()),
    ):
        answer = alone.ask("POST", "/qa-assistant-service/answer", {"assistantId": identity, "prompt": question})
        found = answer.json()
        assert (found["success"], found["reference"]) == (True, source)
        # The prompt by hand: passages in some order, the nearest first.
        texts = [
            "topic: engine; fact: the engine says that it is warm",
            "topic: model; fact: a model is asked",
            RADIO.replace("\n\n", " ").strip(),
        ]
        rest = [text for text in texts if text != first]
        expected = []
        for others in (rest, rest[::-1]):
            told = "Be brief.\n\nAnswer from this:" + "".join(f"\n\n{text}" for text in [first, *others])
            prompt = f"<|begin|>system\n{told}<|end|>\n<|begin|>user\n{question}<|end|>\n<|begin|>assistant\n"
            tokens = reference.greedy(reference.tokenizer.encode(prompt, add_special_tokens=False).ids, 12, {1})
            expected.append((reference.tokenizer.decode(tokens).strip(), "STOP" if tokens[-1] == 1 else "LENGTH"))
        assert (found["answerText"], found["finished"]) in expected


def test_without_a_knowledge_base_there_is_no_source(alone):
    identity = assistant(alone)
    found = alone.ask("POST", "/qa-assistant-service/answer", {"assistantId": identity, "prompt": "how warm"}).json()
    assert found["success"]
    assert "reference" not in found


def test_what_fails_while_it_is_answered_is_an_outcome(alone, base):
    identity = assistant(alone, configurationPrompt="Be brief. " * 100)
    found = alone.ask("POST", "/qa-assistant-service/answer", {"assistantId": identity, "prompt": "x"}).json()
    assert (found["success"], found["finished"]) == (False, "ERROR")
    assert "more than the 192" in found["answerText"]


def test_what_several_encoders_have_read_is_searched_as_if_one_had(encoder, tmp_path):
    """One encoder under two names: which of them is served as a document comes, or a question, varies."""
    function = Function("minilm", "model", str(encoder / "model.onnx"))
    texts = ["The mast carries a radio.", "How warm is the engine?", "The answer of a model.", "The engine says so."]
    form = "multipart/form-data; boundary=x"

    async def run():
        service = Service(SiteProcess("s", "h", 0, 1, tuple(Endpoint(name, (function,)) for name in ("one", "two"))))
        one, two = service.served
        service.knowledge = str(tmp_path)
        asked = Asked(service, Head("POST", b"/", {}), b"", time.monotonic(), ())

        async def base(*encoders):
            """A knowledge base whose documents come while some encoders are served each."""
            made = asked.known.add_base("", str(encoders), None)
            for k, (text, some) in enumerate(zip(texts, encoders, strict=True)):
                service.offer(some)
                path = f"/knowledge-base/v0.2rc1/knowledge-bases/{made}/documents"
                part = f'Content-Disposition: form-data; name="document"; filename="{k}.txt"\r\n\r\n{text}'
                head = Head("POST", path.encode(), {b"content-type": form.encode()})
                await camara.find(path)["POST"](service, head)(f"--x\r\n{part}\r\n--x--".encode(), time.monotonic())
                await asyncio.gather(*camara._indexing)
            return made

        def found(base, *some):
            service.offer(some)
            return camara._found(asked, base, "what does the engine say of a radio", time.monotonic() + 10)

        whole, mixed = await base(*[[one]] * 4), await base([one], [two], [one], [two])
        assert asked.known.encoders(await base([one], [two, one], [two, one], [one])) == ["one"]  # keeps to its own
        expected = await found(whole, one)
        assert len(expected) == camara.FOUND
        assert await found(mixed, one, two) == await found(mixed, two, one) == expected
        assert {file for _, file in await found(mixed, two)} == {"1.txt", "3.txt"}
        with pytest.raises(UnknownEndpoint):
            await found(whole, two)
        asked.known.close()
        service.close()

    uvloop.run(run())


FORM = "multipart/form-data; boundary=x"


def inside(encoder, folder, talk):
    """Runs `talk(asked, upload)` against a service with an encoder; `upload(base, text)` gives the answer."""
    function = Function("minilm", "model", str(encoder / "model.onnx"))

    async def run():
        service = Service(SiteProcess("s", "h", 0, 1, (Endpoint("one", (function,)),)))
        service.knowledge = str(folder)
        asked = Asked(service, Head("POST", b"/", {}), b"", time.monotonic(), ())

        async def upload(base, text):
            path = f"/knowledge-base/v0.2rc1/knowledge-bases/{base}/documents"
            part = f'Content-Disposition: form-data; name="document"; filename="a.txt"\r\n\r\n{text}'
            head = Head("POST", path.encode(), {b"content-type": FORM.encode()})
            return await camara.find(path)["POST"](service, head)(f"--x\r\n{part}\r\n--x--".encode(), time.monotonic())

        try:
            return await talk(asked, upload)
        finally:
            asked.known.close()
            service.close()

    return uvloop.run(run())


def test_documents_are_indexed_one_after_another_and_wait_where_a_worker_is_busy(
    encoder, tmp_path, monkeypatch, caplog
):
    embed, at_once, refused = camara.embed, [0, 0], []
    monkeypatch.setattr(Overloaded, "retry_s", 0.001)
    monkeypatch.setattr(camara, "WAITING", 6)

    async def busy(*given):
        if len(refused) < 7:
            refused.append(given)
            raise Overloaded("256 requests wait already.")
        at_once[0] += 1
        at_once[1] = max(at_once)
        await asyncio.sleep(0.001)
        found = await embed(*given)
        at_once[0] -= 1
        return found

    monkeypatch.setattr(camara, "embed", busy)
    texts = ["\n\n".join(f"radio {k} {' model' * 40}" for k in range(30)), *["The mast."] * 4, "  "]

    async def talk(asked, upload):
        base = asked.known.add_base("", "plant", None)
        found = [await upload(base, text) for text in texts]
        with pytest.raises(Overloaded, match="6 documents wait"):
            await upload(base, "One more.")
        await asyncio.gather(*camara._indexing)
        whole = asked.known.passages(base, "one").texts
        return found, [one["status"] for one in asked.known.documents(base)], whole

    found, states, whole = inside(encoder, tmp_path, talk)
    assert all(answer.startswith(b"HTTP/1.1 201 ") for answer in found)
    assert states == ["READY"] * 5 + ["FAILED"]
    assert at_once == [0, 1]
    assert whole == texts[0].split("\n\n") + ["The mast."] * 4
    assert "cannot be indexed: the document holds no text" in caplog.text


def test_a_knowledge_base_that_is_deleted_meanwhile_is_not_there(encoder, tmp_path, monkeypatch):
    embed = camara.embed

    async def talk(asked, upload):
        base = asked.known.add_base("", "plant", None)
        await upload(base, "The mast.")
        await asyncio.gather(*camara._indexing)

        async def slow(*given):
            asked.known.drop_base(base)
            return await embed(*given)

        monkeypatch.setattr(camara, "embed", slow)
        with pytest.raises(Gone, match="no knowledge base"):
            await camara._found(asked, base, "mast", time.monotonic() + 10)
        with pytest.raises(Gone, match="no knowledge base"):
            asked.known.add_document(base, "a.txt", "TXT")

    inside(encoder, tmp_path, talk)


def test_a_form_that_holds_no_document_for_its_size_is_not_parsed(monkeypatch):
    monkeypatch.setattr("email.parser.BytesParser", None)
    with pytest.raises(Refused, match="passes 1048576 bytes"):
        read_upload(FORM.encode(), b"\n" * (2 << 20))


def test_knowledge_is_made_changed_and_deleted_whichever_worker_is_asked(alone):
    top = "/knowledge-base/knowledge-bases"
    identity = alone.ask("POST", top, {"name": "short"}).json()["knowledgeBaseId"]
    assert alone.ask("POST", top, {"name": "short"}).json()["code"] == "ALREADY_EXISTS"
    document = upload(alone, identity, "a.txt", "The radio.")
    empty = upload(alone, identity, "b.txt", "  ")
    assert empty["status"] == "FAILED"
    for _ in range(4):
        found = alone.ask("GET", f"{top}/{identity}").json()
        assert [one["documentId"] for one in found["documents"]] == [document["documentId"], empty["documentId"]]
        assert alone.ask("GET", f"{top}/{identity}", key="other").status_code == 404
    changed = alone.ask("PUT", f"{top}/{identity}", {"description": "more"}).json()
    assert (changed["name"], changed["description"]) == ("short", "more")
    page = alone.ask("GET", f"{top}?page=1&perPage=1").json()
    assert len(page["items"]) == 1
    assert page["pagination"]["totalPages"] == page["pagination"]["totalCount"] >= 1
    for query in ("perPage=101", "perPage=0000000000010000", f"page=000000000001{'0' * 5000}"):
        assert alone.ask("GET", f"{top}?{query}").json()["code"] == "INVALID_ARGUMENT"
    path = f"{top}/{identity}/documents/{document['documentId']}"
    assert alone.ask("DELETE", path).status_code == 204
    assert alone.ask("GET", path).status_code == 404
    assert alone.ask("DELETE", f"{top}/{identity}").status_code == 204
    assert alone.ask("GET", f"{top}/{identity}").json()["code"] == "NOT_FOUND"


def test_assistants_are_made_changed_and_deleted(alone, base):
    top = "/qa-assistant-manage/assistants"
    identity = assistant(alone, openingRemarks="Hello.")
    changed = alone.ask("PUT", f"{top}/{identity}", {"name": "another", "knowledgeBaseId": base}).json()
    assert (changed["name"], changed["openingRemarks"], changed["knowledgeBaseId"]) == ("another", "Hello.", base)
    assert changed["updatedAt"] >= changed["createdAt"]
    assert identity in [one["assistantId"] for one in alone.ask("GET", f"{top}?perPage=100").json()["items"]]
    for said, status, code in (
        ({"toolIds": [str(uuid.uuid4())]}, 422, "KNOWLEDGE_BASE.TOOL_NOT_FOUND"),
        ({"largeModelParameters": PARAMETERS | {"temperature": 3}}, 400, "OUT_OF_RANGE"),
        ({"largeModelParameters": PARAMETERS | {"maxTokens": 192}}, 400, "OUT_OF_RANGE"),
        ({"largeModelParameters": PARAMETERS | {"model": "nothing"}}, 400, "INVALID_ARGUMENT"),
        ({"largeModelParameters": PARAMETERS | {"model": "minilm"}}, 400, "INVALID_ARGUMENT"),
        ({"knowledgeBaseId": str(uuid.uuid4())}, 404, "NOT_FOUND"),
        ({"knowledgeBaseId": "x"}, 400, "INVALID_ARGUMENT"),
        ({"name": "n" * 256}, 400, "OUT_OF_RANGE"),
        ({}, 400, "INVALID_ARGUMENT"),
        ({"unknown": 1}, 400, "INVALID_ARGUMENT"),
    ):
        answer = alone.ask("PUT", f"{top}/{identity}", said)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert alone.ask("DELETE", f"{top}/{identity}").status_code == 204
    assert alone.ask("GET", f"{top}/{identity}").status_code == 404


def test_the_scenarios_of_the_published_features(alone):
    """qa-assistant-service.feature: what is asked wrongly, by whom nobody knows, of what there is not."""
    identity, path = assistant(alone), "/qa-assistant-service/answer"
    right = {"assistantId": identity, "prompt": "how warm"}
    for said, status, code in (
        ({}, 400, "INVALID_ARGUMENT"), ({"assistantId": identity}, 400, "INVALID_ARGUMENT"),
        (right | {"prompt": "p" * 1001}, 400, "OUT_OF_RANGE"), (right | {"prompt": 5}, 400, "INVALID_ARGUMENT"),
        (right | {"assistantId": str(uuid.uuid4())}, 404, "NOT_FOUND"), (None, 400, "INVALID_ARGUMENT"),
        (right | {"assistantId": "1"}, 400, "INVALID_ARGUMENT"), (right | {"more": 1}, 400, "INVALID_ARGUMENT"),
    ):  # fmt: skip
        answer = alone.ask("POST", path, said)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.json()["status"] == status
    for key, status, code in (("as_wrong", 401, "UNAUTHENTICATED"), ("other", 404, "NOT_FOUND")):
        answer = alone.ask("POST", path, right, key=key)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.headers.get("WWW-Authenticate", "").startswith("Bearer") == (status == 401)
    narrow = alone.ask("POST", "/qa-assistant-manage/assistants", ASSISTANT, key="narrow")
    assert (narrow.status_code, narrow.json()["code"]) == (403, "PERMISSION_DENIED")


def test_documents_that_cannot_be_read_are_refused(alone, base):
    for name, text, status in (("a.pdf", "%PDF", 415), ("a.txt", "x" * (1 << 20) + "x", 400), ("a", "b", 415)):
        assert upload(alone, base, name, text).status_code == status
    path = f"/knowledge-base/knowledge-bases/{base}/documents"
    assert alone.ask("POST", path, {"document": "x"}).json()["code"] == "UNSUPPORTED_MEDIA_TYPE"
    assert alone.ask("POST", path, files={"other": ("a.txt", b"x")}).status_code == 400
    assert alone.ask("POST", path, files={"document": ("a.txt", b"\xff\xfe\x00")}).status_code == 400


@pytest.mark.parametrize("api", APIS)
def test_answers_are_as_published(alone, api):
    key = {"Authorization": f"Bearer {alone.keys['other']}"}
    for result in alone.schemas[api].get_all_operations():

        @settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=result.ok().as_strategy())
        def ask(case):
            answer = case.call(timeout=20, headers=key)
            assert answer.status_code < 500
            if str(answer.status_code) in case.operation.definition.raw["responses"]:
                case.validate_response(answer, checks=CHECKS)

        ask()


def test_a_service_without_knowledge_says_so(mast):
    one = http.client.HTTPConnection("127.0.0.1", mast.port, timeout=10)
    one.request("POST", "/qa-assistant-service/v0.2rc1/answer", "{}")
    answer = one.getresponse()
    assert (answer.status, json.loads(answer.read())["code"]) == (404, "NOT_FOUND")
    one.close()


def words(text):
    return len(text.split())


@given(st.text("ab .!?\n,", max_size=200), st.integers(1, 6))
def test_passages_lose_nothing_and_fit(text, size):
    found = passages(text, size, words)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(words(piece) <= size for piece in found)


@given(st.text("abc", max_size=60), st.integers(1, 7))
def test_a_word_that_is_too_long_is_cut(text, size):
    found = passages(text, size, len)
    assert "".join("".join(found).split()) == text
    assert all(len(piece) <= size for piece in found)


def test_the_nearest_are_those_of_all_pairs():
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(50, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    question = vectors[7] + 0.1 * vectors[9]
    by_hand = sorted(range(50), key=lambda k: -sum(a * b for a, b in zip(question, vectors[k], strict=True)))
    assert list(nearest(question, vectors, 5)) == by_hand[:5]


def test_two_processes_see_one_store(tmp_path):
    one, two = Knowledge(tmp_path), Knowledge(tmp_path)
    base = one.add_base("t", "n", None)
    with pytest.raises(Taken):
        two.add_base("t", "n", None)
    two.add_base("u", "n", None)
    document = two.add_document(base, "a.txt", "TXT")
    assert one.passages(base, "e").texts == []
    with ThreadPoolExecutor(1) as aside:  # as what takes long is asked
        aside.submit(two.index, document, "e", ["x", "y"], np.eye(2, dtype="float32")).result()
        assert aside.submit(one.passages, base, "e").result().texts == ["x", "y"]
    assert one.passages(base, "e") is one.passages(base, "e"), "it is read once"
    np.testing.assert_array_equal(one.passages(base, "e").vectors, np.eye(2))
    two.drop_document(document)
    assert one.passages(base, "e").texts == []
    late = one.add_document(base, "b.txt", "TXT")
    one._db.execute("UPDATE documents SET indexer = ?", (2**22 + 1,))  # its worker died
    assert two.documents(base, late)[0]["status"] == "FAILED"
    one.close()
    two.close()


def test_vectors_in_memory_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(knowledge, "KEPT_BYTES", 100)  # of 64 bytes each, one
    store = Knowledge(tmp_path)
    bases = [store.add_base("t", name, None) for name in "ab"]
    for base in bases:
        store.index(store.add_document(base, "a.txt", "TXT"), "e", ["x"], np.ones((1, 16), "float32"))
    first = store.passages(bases[0], "e")
    assert store.passages(bases[0], "e") is first
    store.passages(bases[1], "e")
    assert store.passages(bases[0], "e") is not first
    store.close()


@settings(deadline=None)
@given(
    st.binary(max_size=200),
    st.sampled_from([b"multipart/form-data; boundary=x", b"multipart/form-data", b"text/plain"]),
)
def test_any_form_is_read_or_refused(body, media):
    try:
        read_upload(media, body)
    except Refused as refused:
        assert str(refused).endswith(".")
