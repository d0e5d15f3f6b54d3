"""A tiny bundle that is served, and what asks it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from helpers.random_decoder import describe
from helpers.servers import in_thread, served, thinks_and_calls
from helpers.tiny_bundle import write_bundle
from sol_rt.generate.model import SolModel
from sol_rt.serve.app import Server


@pytest.fixture(scope="package")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(
        tmp_path_factory.mktemp("served") / "tiny",
        decoder=replace(describe("llama"), max_context=8192),
        policy=True,
        losses=True,
    )


@pytest.fixture(scope="module")
def address(bundle: Path) -> Iterator[str]:
    with served(bundle, "--sessions", "2") as address:
        yield address


@pytest.fixture(scope="module")
def model(bundle: Path) -> SolModel:
    return SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False)


@pytest.fixture(scope="module")
def thinking(bundle: Path) -> Iterator[str]:
    """Address of a server whose model reasons and calls tools."""
    with in_thread(bundle, thinks_and_calls) as (address, _):
        yield address


@pytest.fixture
def slow(bundle: Path) -> Iterator[tuple[str, Server]]:
    """A server with one session, which shows signs of life every 50 ms."""
    with in_thread(bundle, sessions=1, ping_seconds=0.05) as found:
        yield found
