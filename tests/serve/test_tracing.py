"""Spans, as a collector gets them from `airserve serve --otel`: by OTLP over HTTP, in the client's trace."""

import contextlib
import http.server
import os
import re
import subprocess
import sys
import threading
import time

import pytest
import requests

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `otel` is not installed")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def collector():
    """An OTLP receiver; its address, and the spans that it has been sent, with their resources."""
    spans = []

    class Receiver(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            got = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/traces"
            for one in got.resource_spans:
                resource = {pair.key: pair.value.string_value for pair in one.resource.attributes}
                spans.extend((resource, span) for scope in one.scope_spans for span in scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}", spans
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def traced(collector, graphs):
    environment = {
        **os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": collector[0], "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_SERVICE_NAME": "hall",
    }  # fmt: skip
    words = [str(graphs["whole"]), str(graphs["heavy"]), "--port", "0", "--grpc-port", "0", "--otel"]
    command = [sys.executable, "-m", "airserve.cli", "serve", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        yield re.search(r"(http://\S+) grpc://(\S+)", process.stdout.readline()).groups()
        process.terminate()


def test_a_request_is_a_span_of_the_clients_trace_with_queue_and_work_in_it(collector, traced):
    http_at, _ = traced
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    begun_ns = time.time_ns()
    for given in (body, {**body, "inputs": []}):
        requests.post(f"{http_at}/v2/models/whole/infer", json=given, headers=headers, timeout=10)
    requests.get(f"{http_at}/v2/health/live", headers=headers, timeout=10)
    for k in range(3):  # whoever asks for what is not there makes no names of spans
        requests.get(f"{http_at}/{k}/.git/config", headers=headers, timeout=10)
    unsampled = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    requests.post(f"{http_at}/v2/models/whole/infer", json=body, headers=unsampled, timeout=10)
    until_s = time.monotonic() + 20
    while len(collector[1]) < 7 and time.monotonic() < until_s:
        time.sleep(0.05)
    time.sleep(0.3)  # for those that should not come
    found = {}
    for resource, span in collector[1]:
        assert resource["service.name"] == "hall"
        assert span.trace_id.hex() == TRACE
        found.setdefault(span.name, []).append(span)
    assert {name: len(spans) for name, spans in found.items()} == {
        "POST /v2/models/{model}/infer": 2, "queue": 1, "compute": 1, "GET": 3
    }  # fmt: skip
    whole, refused = sorted(found["POST /v2/models/{model}/infer"], key=lambda span: span.start_time_unix_nano)
    assert whole.parent_span_id.hex() == refused.parent_span_id.hex() == PARENT
    said = {pair.key: pair.value for pair in whole.attributes}
    assert (said["http.response.status_code"].int_value, said["airserve.model"].string_value) == (200, "whole")
    assert {p.key: p.value.int_value for p in refused.attributes}["http.response.status_code"] == 400
    (queue,), (compute,) = found["queue"], found["compute"]
    assert queue.parent_span_id == compute.parent_span_id == whole.span_id
    times = [
        begun_ns, whole.start_time_unix_nano, queue.end_time_unix_nano, compute.start_time_unix_nano,
        compute.end_time_unix_nano, whole.end_time_unix_nano, time.time_ns(),
    ]  # fmt: skip
    assert times == sorted(times)
    assert queue.start_time_unix_nano == whole.start_time_unix_nano


def test_a_grpc_request_is_a_span_too_alone_and_in_a_stream(collector, traced):
    """Of a model that is computed on the thread that hears of calls, and of one that waits for the engine's thread."""
    grpc = pytest.importorskip("grpc")
    from airserve.serve.protocols._messages import SERVICE, classes

    def request(model):
        made = classes()["ModelInferRequest"](model_name=model, raw_input_contents=[b"\0" * 16])
        made.inputs.add(name="x", datatype="FP32", shape=[1, 4])
        return made.SerializeToString()

    trace, models = "1" * 32, ("whole", "heavy", "nothing")
    sent = (("traceparent", f"00-{trace}-{PARENT}-01"), ("tracestate", "a=1"))
    with grpc.insecure_channel(traced[1]) as channel:
        channel.unary_unary(f"/{SERVICE}/ServerLive")(b"", metadata=sent)
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        for model in models:
            with contextlib.suppress(grpc.RpcError):
                infer(request(model), metadata=sent)
        stream = channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        assert len(list(stream(map(request, models), metadata=sent))) == len(models)

    def here():
        return [span for _, span in collector[1] if span.trace_id.hex() == trace]

    until_s = time.monotonic() + 20
    while len(here()) < 14 and time.monotonic() < until_s:
        time.sleep(0.05)
    calls = [span for span in here() if span.parent_span_id.hex() == PARENT]
    inner = {name: [span for span in here() if span.name == name] for name in ("queue", "compute")}
    assert len(here()) == len(calls) + sum(map(len, inner.values()))
    said = {}
    for span in calls:
        of = {pair.key: pair.value.string_value or pair.value.int_value for pair in span.attributes}
        assert (of["rpc.system"], span.name) == ("grpc", f"{SERVICE}/{of['rpc.method']}")
        assert span.trace_state == "a=1"
        parts = [[part for part in inner[name] if part.parent_span_id == span.span_id] for name in inner]
        said[of["rpc.method"], of["airserve.model"]] = of["rpc.grpc.status_code"], [len(part) for part in parts]
        if all(parts):
            (queue,), (compute,) = parts
            ends = (queue.end_time_unix_nano, compute.start_time_unix_nano, compute.end_time_unix_nano)
            times = [span.start_time_unix_nano, queue.start_time_unix_nano, *ends, span.end_time_unix_nano]
            assert times == sorted(times)
    assert said == {
        (method, model): (5, [0, 0]) if model == "nothing" else (0, [1, 1])
        for method in ("ModelInfer", "ModelStreamInfer")
        for model in models
    }
