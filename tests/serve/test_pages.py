"""The routes as OpenAPI: the document holds, by Schemathesis, against a running site; pages that load nothing else."""

import http.client
import json
import re
import socket

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error, content_type_conformance, response_headers_conformance, response_schema_conformance,
    status_code_conformance,
]  # fmt: skip


def get(running, path, method="GET"):
    one = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    one.request(method, path)
    answer = one.getresponse()
    found = answer.status, answer.getheader("Content-Type"), answer.read().decode()
    one.close()
    return found


@pytest.fixture(scope="module")
def schema(mast):
    status, media, text = get(mast, "/openapi.json")
    assert (status, media) == (200, "application/json")
    loaded = schemathesis.openapi.from_dict(json.loads(text))
    loaded.config.update(base_url=f"http://{mast.url}")
    return loaded


def test_the_document_names_every_route_and_the_page_all_of_them(schema, mast):
    status, media, page = get(mast, "/docs")
    assert (status, media) == (200, "text/html; charset=utf-8")
    for path in schema.raw_schema["paths"]:
        assert f"<code>{path}</code>" in page
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', page)
    assert get(mast, "/docs/") == (status, media, page)
    assert get(mast, "/docs", "POST")[0] == 405
    assert get(mast, "/docs/../etc/passwd")[0] == 404


def test_answers_are_as_the_document_says(schema):
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(max_examples=5, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case):
            if "model" in case.path_parameters:  # where a model is meant, half of them are there
                case.path_parameters["model"] = "whole" if len(str(case.body)) % 2 else case.path_parameters["model"]
            case.validate_response(case.call(timeout=10), checks=CHECKS)

        ask()


def test_an_answer_of_the_page_comes_in_its_turn(mast):

    requests = b"".join(
        b"GET %s HTTP/1.1\r\nHost: h\r\n\r\n" % path for path in (b"/openapi.json", b"/v2/health/live", b"/docs")
    )
    with socket.create_connection(("127.0.0.1", mast.port), timeout=5) as one:
        one.sendall(requests)
        one.shutdown(socket.SHUT_WR)
        got = b""
        while data := one.recv(1 << 16):
            got += data
    order = [got.index(mark) for mark in (b'"openapi":"3.1.0"', b'{"live":true}', b"<!doctype html>")]
    assert order == sorted(order)
