"""The server held to the description that KServe publishes of the protocol's REST, by Schemathesis."""

import json
from pathlib import Path

import numpy as np
import pytest
import requests
import schemathesis
import yaml
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from airserve.model import Engine

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
MODELS = ["whole", "photo", "same", "half", "none"]


@pytest.fixture(scope="module")
def published(mast):
    text = (Path(__file__).parent / "open_inference_rest.yaml").read_text(encoding="utf-8")
    plain = yaml.safe_load(text.replace("${", "{"))  # its paths are written as a shell's, which OpenAPI has not
    for path in plain["paths"].values():  # it names no status but 200 and 400; what does not exist is 404
        for operation in (path[method] for method in ("get", "post") if method in path):
            operation["responses"].setdefault("404", {"description": "no such model"})
            operation["responses"].setdefault("400", {"description": "Bad Request"})
    loaded = schemathesis.openapi.from_dict(plain)
    loaded.config.update(base_url=f"http://{mast.url}")
    return loaded


def test_every_published_route_answers_as_published(published):
    """Models and versions that are there in turn with those that are not; bodies as the description generates them."""
    seen = set()
    for result in published.get_all_operations():
        operation = result.ok()

        @settings(max_examples=8, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case):
            size = len(str(case.body)) + len(str(case.path_parameters))
            if "MODEL_NAME" in case.path_parameters and size % 4:
                case.path_parameters["MODEL_NAME"] = MODELS[size % len(MODELS)]
                case.path_parameters["MODEL_VERSION"] = "1"
            answer = case.call(timeout=10)
            case.validate_response(answer, checks=CHECKS)
            documented = case.operation.definition.raw["responses"]
            assert str(answer.status_code) in documented, (answer.status_code, answer.text)
            seen.add((case.operation.path, answer.status_code))

        ask()
    assert len(published.raw_schema["paths"]) == len({path for path, _ in seen})


@pytest.mark.parametrize("rows", [1, 3])
def test_inference_as_published_is_right_and_so_is_its_form(published, mast, graphs, rows):
    operation = published["/v2/models/{MODEL_NAME}/versions/{MODEL_VERSION}/infer"]["POST"]
    x = np.random.default_rng(rows).normal(size=(rows, 4)).astype("float32")
    for data in (x.tolist(), x.ravel().tolist()):  # nested and flat, as the protocol allows
        body = {"id": "42", "inputs": [{"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": data}]}
        answer = requests.post(f"http://{mast.url}/v2/models/whole/versions/1/infer", json=body, timeout=10)
        assert answer.status_code == 200
        operation.validate_response(answer)
        found = json.loads(answer.text)
        assert (found["id"], found["model_name"], found["model_version"]) == ("42", "whole", "1")
        y = np.array(found["outputs"][0]["data"], "float32").reshape(found["outputs"][0]["shape"])
        np.testing.assert_allclose(y, Engine(graphs["whole"]).run([x])[0], rtol=1e-5)
