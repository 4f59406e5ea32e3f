"""The OpenAI protocol, asked by the `openai` package and, where that would not send it, by hand."""

import asyncio
import base64
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from airserve.serve.protocols._openai_requests import Invalid, read_chat, read_completion, read_embed
from airserve.serve.tenants import new_key

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
USER = [{"role": "user", "content": "How warm is the engine?"}]


class Alone:
    """`airserve serve` with a language model, a sentence encoder and a graph that is neither."""

    def __init__(self, folder, *models):
        self.keys = {
            "all": new_key(folder / "keys.json", "all"),
            "encoder": new_key(folder / "keys.json", "encoder", models=["minilm"]),
            "narrow": new_key(folder / "keys.json", "narrow", concurrency=1),
        }
        command = [sys.executable, "-W", "error", "-m", "airserve.cli", "serve", *map(str, models), "--port", "0"]
        command += ["--keys", str(folder / "keys.json"), "--workers", "2", "--access-log"]
        self.log = folder / "log.txt"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
            )
        line = self.process.stdout.readline()
        assert line.startswith("ready "), self.log.read_text()
        self.port = int(re.search(r":(\d+) ", line)[1])

    def client(self, key="all", kind=openai.OpenAI, **options):
        options = {"max_retries": 0, "timeout": 20, **options}
        options.setdefault("base_url", f"http://127.0.0.1:{self.port}/v1")
        return kind(api_key=self.keys.get(key, key), **options)

    def ask(self, path, body=None, method="POST", key="all", **headers):
        one = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        one.request(method, path, body, {"Authorization": f"Bearer {self.keys[key]}", **headers})
        answer = one.getresponse()
        found = answer.status, answer.read().decode(), dict(answer.getheaders())
        one.close()
        return found

    def metric(self, name, **labels):
        text = self.ask("/metrics", method="GET")[1]
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        wanted = {"model": "gpt"} | labels
        return next(s.value for s in samples if s.name == name and wanted.items() <= s.labels.items())

    def stop(self):
        os.killpg(self.process.pid, signal.SIGTERM)
        status = self.process.wait(15)
        self.process.stdout.close()
        return status


@pytest.fixture(scope="module")
def alone(reference, encoder, graphs, tmp_path_factory):
    service = Alone(tmp_path_factory.mktemp("openai"), reference.path, encoder, graphs["whole"])
    yield service
    assert service.stop() == 0
    assert "Traceback" not in service.log.read_text()


@pytest.fixture
def client(alone):
    with alone.client() as made:
        yield made


def expected(reference, prompt, count):
    """Text and finish reason of the network in numpy, greedy."""
    tokens = reference.greedy(prompt, count, {1})
    return reference.tokenizer.decode(tokens), "stop" if tokens[-1] == 1 else "length", len(tokens)


def chat_prompt(reference):
    return reference.tokenizer.encode(
        "<|begin|>user\nHow warm is the engine?<|end|>\n<|begin|>assistant\n", add_special_tokens=False
    ).ids


def test_the_models_are_those_that_speak(client, alone):
    assert [model.id for model in client.models.list()] == ["gpt", "minilm"]
    assert client.models.retrieve("gpt").owned_by == "airserve"
    assert [model.id for model in alone.client("encoder").models.list()] == ["minilm"]


def test_a_chat_is_the_network_s(client, reference):
    prompt = chat_prompt(reference)
    text, finish, count = expected(reference, prompt, 30)
    for name in ("gpt", "gpt@1"):
        found = client.chat.completions.create(model=name, messages=USER, temperature=0, max_tokens=30)
        assert found.object == "chat.completion"
        assert found.model == name
        assert found.choices[0].message.content == text
        assert found.choices[0].message.role == "assistant"
        assert found.choices[0].finish_reason == finish
        assert found.usage.prompt_tokens == len(prompt)
        assert found.usage.completion_tokens == count
        assert found.usage.total_tokens == len(prompt) + count
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "How warm "}, {"type": "text", "text": "is the engine?"}]}
    ]
    again = client.chat.completions.create(model="gpt", messages=parts, temperature=0, max_completion_tokens=30)
    assert again.choices[0].message.content == text


def test_a_stream_is_the_same_text_and_ends_with_its_usage(client, reference):
    prompt = chat_prompt(reference)
    text, finish, count = expected(reference, prompt, 30)
    chunks = list(
        client.chat.completions.create(
            model="gpt",
            messages=USER,
            temperature=0,
            max_tokens=30,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [finish]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == count
    assert len(chunks) > 4


def test_an_asynchronous_client_s_streams_run_side_by_side(alone, reference):
    async def talk():
        async with alone.client(kind=openai.AsyncOpenAI) as client:

            async def one(seed):
                stream = await client.chat.completions.create(
                    model="gpt", messages=USER, seed=seed, max_tokens=40, stream=True
                )
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            return await asyncio.gather(*(one(seed) for seed in (1, 2, 3, 1, 2, 3)))

    found = asyncio.run(talk())
    assert found[:3] == found[3:]
    assert len(set(found)) == 3


def test_completions_of_text_tokens_and_several_at_once(client, reference):
    encode = reference.tokenizer.encode
    prompts = ["The mast", "A model is asked", "é"]
    wanted = [expected(reference, encode(prompt).ids, 16) for prompt in prompts]
    found = client.completions.create(model="gpt", prompt=prompts, temperature=0)  # 16 tokens is the protocol's default
    assert [(c.index, c.text, c.finish_reason) for c in found.choices] == [
        (k, text, finish) for k, (text, finish, _) in enumerate(wanted)
    ]
    assert found.usage.completion_tokens == sum(count for _, _, count in wanted)
    tokens = client.completions.create(model="gpt", prompt=encode("The mast").ids, temperature=0, max_tokens=16)
    assert tokens.choices[0].text == wanted[0][0]
    texts = ["", "", ""]
    for chunk in client.completions.create(model="gpt", prompt=prompts, temperature=0, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [text for text, _, _ in wanted]


def test_stops_and_limits_end_a_text(client, reference):
    prompt = reference.tokenizer.encode("A model").ids
    whole = expected(reference, prompt, 40)[0]
    stop = whole[7:10]
    found = client.completions.create(model="gpt", prompt="A model", temperature=0, max_tokens=40, stop=[stop, "§"])
    assert found.choices[0].text == whole.partition(stop)[0]
    assert found.choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="and 500 to generate are more than the 192"):
        client.completions.create(model="gpt", prompt="A model", max_tokens=500)


def test_a_text_that_cannot_fit_is_not_read(client):
    with pytest.raises(openai.BadRequestError, match="cannot fit into the 192 tokens"):
        client.completions.create(model="gpt", prompt="a" * 5_000_000)
    messages = [{"role": "user", "content": "a" * 30_000}]
    with pytest.raises(openai.BadRequestError, match="cannot fit into the 192 tokens"):
        client.chat.completions.create(model="gpt", messages=messages)


def test_embeddings_are_means_of_length_1(client, encoder):
    import onnx
    import tokenizers
    from onnx import numpy_helper

    table = numpy_helper.to_array(onnx.load(encoder / "model.onnx").graph.initializer[0])
    tokenizer = tokenizers.Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.no_padding()
    texts = ["the radio", "A model is asked how warm the engine is", "nothing of this is known", "radio"] * 6
    expected = []
    for text in texts:
        mean = table[tokenizer.encode(text).ids].mean(axis=0)
        expected.append(mean / np.linalg.norm(mean))
    found = client.embeddings.create(model="minilm", input=texts)  # the package asks for base64
    np.testing.assert_allclose([one.embedding for one in found.data], expected, atol=1e-6)
    assert [one.index for one in found.data] == list(range(24))
    assert found.usage.prompt_tokens == sum(len(tokenizer.encode(text).ids) for text in texts)
    plain = client.embeddings.create(model="minilm", input=tokenizer.encode("radio").ids, encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, expected[3], atol=1e-6)
    raw = client.embeddings.with_raw_response.create(model="minilm", input="radio", encoding_format="base64")
    coded = json.loads(raw.text)["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(coded), "<f4"), expected[3], atol=1e-6)
    for wrong, said in (
        ("radio " * 60, "62 tokens; minilm takes 48"),
        ("radio " * 900, "5400 characters"),
        ([[-1]], "a token -1"),
    ):
        with pytest.raises(openai.BadRequestError, match=said):
            client.embeddings.create(model="minilm", input=wrong)
    with pytest.raises(openai.BadRequestError, match="have 24 dimensions"):
        client.embeddings.create(model="minilm", input="a", dimensions=12)


def test_errors_are_those_of_the_package(alone, client):
    with pytest.raises(openai.AuthenticationError) as wrong:
        alone.client("as_wrong").models.list()
    assert wrong.value.code == "invalid_api_key"
    with pytest.raises(openai.NotFoundError, match="has no model 'nothing'") as wrong:
        client.chat.completions.create(model="nothing", messages=USER)
    assert (wrong.value.code, wrong.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError, match="no version '9'"):
        client.models.retrieve("gpt@9")
    with pytest.raises(openai.PermissionDeniedError):
        alone.client("encoder").completions.create(model="gpt", prompt="a")
    with pytest.raises(openai.BadRequestError, match="whole generates no text; ask gpt"):
        client.completions.create(model="whole", prompt="a")
    with pytest.raises(openai.BadRequestError, match="gpt makes no vectors; ask minilm"):
        client.embeddings.create(model="gpt", input="a")
    with pytest.raises(openai.BadRequestError, match="probabilities of tokens are not given"):
        client.chat.completions.create(model="gpt", messages=USER, logprobs=True)
    with pytest.raises(openai.BadRequestError, match="no role oracle"):
        client.chat.completions.create(model="gpt", messages=[{"role": "oracle", "content": "x"}])
    with pytest.raises(openai.InternalServerError, match="the deadline passed") as late:
        client.with_options(default_headers={"X-Request-Timeout-Ms": "0"}).completions.create(model="gpt", prompt="a")
    assert late.value.status_code == 504
    assert alone.ask("/v1/nothing")[0] == 404
    status, text, _ = alone.ask("/v1/completions", method="GET")
    assert status == 405
    assert "takes POST, not GET" in json.loads(text)["error"]["message"]
    status, text, _ = alone.ask("/v1/completions", "{")
    assert (status, json.loads(text)["error"]["type"]) == (400, "invalid_request_error")


def test_a_stream_that_is_left_frees_its_place_and_its_tenant_s(alone):
    """A tenant with one request under way: when it leaves the stream it may ask again."""
    client = alone.client("narrow")
    streams = []

    def ask_again():
        for _ in range(50):  # a stream may have ended before another request comes
            streams.append(client.completions.create(model="gpt", prompt="a", max_tokens=180, seed=1, stream=True))
            next(iter(streams[-1]))

    with pytest.raises(openai.RateLimitError, match="may have 1 requests under way") as many:
        ask_again()
    assert many.value.response.headers["retry-after"] == "1"
    for stream in streams:
        stream.close()
    until_s = time.monotonic() + 10
    while time.monotonic() < until_s and alone.metric("airserve_sequences_running"):
        time.sleep(0.02)
    assert alone.metric("airserve_sequences_running") == 0
    assert client.completions.create(model="gpt", prompt="a", max_tokens=1).choices


def test_what_is_counted_is_one_truth_over_the_workers(alone, client):
    names = (
        "airserve_generated_tokens_total",
        "airserve_prompt_tokens_total",
        "airserve_time_to_first_token_seconds_count",
    )
    before = [alone.metric(name) for name in names]
    answered = alone.metric("airserve_requests_total", outcome="answered")
    used = [client.completions.create(model="gpt", prompt="The mast", max_tokens=5).usage for _ in range(6)]
    after = [alone.metric(name) for name in names]
    assert after[0] - before[0] == sum(usage.completion_tokens for usage in used)
    assert after[1] - before[1] == sum(usage.prompt_tokens for usage in used)
    assert after[2] - before[2] == 6
    assert alone.metric("airserve_requests_total", outcome="answered") == answered + 6


def test_the_package_speaks_through_a_gateway(alone, reference, tmp_path):
    """Chats whole and in parts, embeddings and errors: what the site says is what the client reads."""
    site = f"http://127.0.0.1:{alone.port}"
    file = tmp_path / "gateway.yaml"
    file.write_text(f"listen: 127.0.0.1:0\nroutes:\n  '*': [{site}]\n  small: [{{url: '{site}', model: gpt}}]\n")
    gateway = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "airserve.cli", "gateway", str(file)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        said = gateway.stdout.readline()
        assert said.startswith("ready gateway "), gateway.stderr.read()
        base = f"{said.split()[2]}/v1"
        text, finish, count = expected(reference, chat_prompt(reference), 30)
        greedy = {"messages": USER, "temperature": 0, "max_tokens": 30}
        with alone.client(base_url=base) as client, alone.client() as direct:
            for name in ("gpt", "small"):
                whole = client.chat.completions.create(model=name, **greedy)
                assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (text, finish)
                assert whole.usage.completion_tokens == count
                parts = [part.choices[0].delta.content for part in client.chat.completions.create(
                    model=name, stream=True, **greedy)]  # fmt: skip
                assert len([part for part in parts if part]) > 1
                assert "".join(part or "" for part in parts) == text
            asked = {"model": "minilm", "input": ["the radio", "the engine"]}
            assert client.embeddings.create(**asked).data == direct.embeddings.create(**asked).data
            with pytest.raises(openai.NotFoundError, match="no-such"):
                client.chat.completions.create(model="no-such", **greedy)
            with pytest.raises(openai.BadRequestError, match="temperature"):
                client.chat.completions.create(model="gpt", **{**greedy, "temperature": 9})
        with alone.client("as_nobody", base_url=base) as stranger, pytest.raises(openai.AuthenticationError):
            stranger.chat.completions.create(model="gpt", **greedy)
    finally:
        os.killpg(gateway.pid, signal.SIGTERM)
        with gateway:
            assert gateway.wait(15) == 0


def test_the_header_says_where_time_went_and_ids_come_back(alone):
    body = json.dumps({"model": "gpt", "prompt": "a", "max_tokens": 3})
    status, _, headers = alone.ask("/v1/completions", body, **{"X-Request-Id": "mine"})
    assert status == 200
    assert headers["X-Request-Id"] == "mine"
    assert re.search(r"queue;dur=[\d.]+.*compute;dur=[\d.]+", headers["Server-Timing"])
    streamed = json.dumps({"model": "gpt", "prompt": "a", "max_tokens": 3, "stream": True})
    status, text, headers = alone.ask("/v1/completions", streamed, **{"X-Request-Id": "mine"})
    assert (headers["X-Request-Id"], headers["Content-Type"]) == ("mine", "text/event-stream; charset=utf-8")
    assert text.endswith("data: [DONE]\n\n")
    assert '"path":"/v1/completions","status":200' in alone.log.read_text()


def test_answers_are_as_the_document_says(alone):
    """Schemathesis over the routes of the protocol, where the models that are asked are there."""
    described = schemathesis.openapi.from_dict(json.loads(alone.ask("/openapi.json", method="GET")[1]))
    described.config.update(base_url=f"http://127.0.0.1:{alone.port}")
    key = {"Authorization": f"Bearer {alone.keys['all']}"}
    for result in described.get_all_operations():
        operation = result.ok()
        if not operation.path.startswith("/v1/"):
            continue

        @settings(max_examples=4, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case):
            name = "minilm" if "embed" in case.path else "gpt"
            if isinstance(case.body, dict):
                case.body["model"] = name
                case.body["max_tokens"] = 3
                case.body.pop("max_completion_tokens", None)
                if name == "minilm":
                    del case.body["max_tokens"]
            if "model" in case.path_parameters:
                case.path_parameters["model"] = name
            case.validate_response(case.call(timeout=20, headers=key), checks=CHECKS)

        ask()


NOTHING = {"model": "m", "messages": USER}


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"temperature": 2.1}, "temperature"), ({"temperature": "1"}, "temperature"), ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"), ({"max_tokens": True}, "max_tokens"), ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"), ({"seed": 1.5}, "seed"), ({"n": 2}, "n"), ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"), ({"tools": [{}]}, "tools"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options"), ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_object"}}, "response_format"), ({"temperatur": 1}, "temperatur"),
        ({"messages": []}, "messages"), ({"messages": [{"role": "user"}]}, "messages"), ({"model": ""}, "model"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"), ({"model": 5}, "model"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages"), ({"n": 1.0}, "n"),
        ({"messages": [{"role": "user", "content": "x", "weight": 1}]}, "messages"), ({"logprobs": 0}, "logprobs"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(more, param):
    with pytest.raises(Invalid) as wrong:
        read_chat(json.dumps(NOTHING | more).encode())
    assert wrong.value.param == param
    assert str(wrong.value).endswith(".")


def test_what_changes_nothing_is_taken():
    harmless = {
        "n": 1,
        "logprobs": False,
        "tools": [],
        "user": "me",
        "metadata": {"a": "b"},
        "stop": None,
        "store": True,
    }
    asked = read_chat(json.dumps(NOTHING | harmless | {"seed": -3, "response_format": {"type": "text"}}).encode())
    assert asked.options == {"seed": 3}
    assert read_chat(json.dumps(NOTHING | {"max_tokens": 4, "max_completion_tokens": 5}).encode()).max_tokens == 5
    developer = read_chat(json.dumps(NOTHING | {"messages": [{"role": "developer", "content": "be brief"}]}).encode())
    assert developer.messages == [{"role": "system", "content": "be brief"}]


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    ["model", "messages", "prompt", "input", "stop", "stream", "stream_options", "max_tokens", "seed", "logprobs",
     "temperature", "tools", "role", "content", "n", "dimensions", "encoding_format"]
)  # fmt: skip


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(FIELDS, ANY) | ANY, st.binary(max_size=4))
def test_anything_is_read_or_refused_in_a_sentence(value, noise):
    for read in (read_chat, read_completion, read_embed):
        for body in (json.dumps(value).encode(), json.dumps(value).encode() + noise):
            try:
                read(body)
            except Invalid as wrong:
                assert str(wrong).endswith(".")
