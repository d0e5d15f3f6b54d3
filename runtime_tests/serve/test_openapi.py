"""The published description of the interface: it has every route, and requests made from it find no lie in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from helpers.random_decoder import describe
from helpers.servers import served
from helpers.tiny_bundle import write_bundle
from sol_rt.generate.model import SolModel
from sol_rt.serve.app import Server, Settings
from sol_rt.serve.openapi import openapi
from sol_rt.serve.playground import FILES

schemathesis = pytest.importorskip("schemathesis")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The description that a server gives. A short context bounds the answers."""
    decoder = replace(describe("llama"), max_context=96)
    with served(write_bundle(tmp_path_factory.mktemp("short") / "tiny", decoder=decoder)) as address:
        yield schemathesis.openapi.from_url(f"{address}/openapi.json")


@pytest.mark.parametrize("valid", [True, False])
def test_no_request_finds_a_lie(published: Any, valid: bool) -> None:
    mode = schemathesis.GenerationMode.POSITIVE if valid else schemathesis.GenerationMode.NEGATIVE
    operations = [found.ok() for found in published.get_all_operations()]
    assert len(operations) == len(openapi("tiny")["paths"])
    for operation in operations:
        if valid or operation.body:

            @settings(max_examples=10, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                case.call_and_validate(checks=CHECKS)

            ask()


def test_every_route_is_described(model: SolModel) -> None:
    server = Server(model, Settings("tiny"))
    server.scheduler.close()
    routes = {route.path.replace(":path", "") for route in server.app.routes}
    assert routes - {*FILES, "/openapi.json"} == set(openapi("tiny")["paths"])


def test_it_names_the_model(address: str) -> None:
    described = httpx.get(f"{address}/openapi.json").json()
    body = described["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["model"]["pattern"].startswith("^(tiny(@")
