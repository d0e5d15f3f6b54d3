"""The playground's files under a strict policy, and the facts of each step."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from helpers.servers import served
from sol_rt.generate.model import SolModel
from sol_rt.serve.steps import curves

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "w3 w4 w5 w6"}], "max_tokens": 12, "temperature": 0}


def chunks(address: str, **options: bool) -> list[Any]:
    body = BODY | {"budget": 0.6, "stream": True, "stream_options": {"include_usage": True, **options}}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    return [json.loads(line) for line in lines[:-1]]


def test_files_come_under_a_strict_policy_and_need_no_key(bundle: Path) -> None:
    with served(bundle, SOL_RT_API_KEY="secret") as address:
        page = httpx.get(address)
        names = re.findall(r'"(playground/[^"]+)"', page.text)
        names += re.findall(r'"\./(.+\.js)"', httpx.get(f"{address}/playground/playground.js").text)
        assert {Path(name).suffix for name in names} == {".css", ".js"}
        files = [page, *(httpx.get(f"{address}/playground/{Path(name).name}") for name in names)]
        for file in files:
            assert file.status_code == 200, file.url
            policy = file.headers["content-security-policy"].split("; ")
            assert policy[:5] == [
                "default-src 'none'",
                "script-src 'self'",
                "style-src 'self'",
                "connect-src 'self'",
                "img-src 'self' data:",
            ]
            assert {"frame-ancestors 'none'", "require-trusted-types-for 'script'"} <= set(policy)
            assert file.headers["x-content-type-options"] == "nosniff"
            assert file.headers["referrer-policy"] == "no-referrer"
        kinds = {file.headers["content-type"].partition(";")[0] for file in files}
        assert kinds == {"text/html", "text/css", "text/javascript"}
        assert httpx.get(f"{address}/playground/playground.py").status_code == 401
        assert httpx.get(f"{address}/v1/models").status_code == 401


def test_a_stream_tells_its_steps_where_that_is_asked_for(address: str) -> None:
    plain, told = chunks(address), chunks(address, include_sol=True)
    assert [chunk for chunk in plain[:-1] if "sol" in chunk] == []
    steps, result = [chunk["sol"] for chunk in told[:-1] if "sol" in chunk], told[-1]

    def text(answer: list[Any]) -> str:
        return "".join(choice["delta"].get("content", "") for chunk in answer for choice in chunk["choices"])

    assert text(told) == text(plain)
    assert len(steps) == result["usage"]["completion_tokens"]
    assert (steps[0]["cost"], steps[0]["expected_loss"]) == (None, None)
    assert steps[-1]["achieved_budget"] == pytest.approx(result["sol"]["achieved_budget"])
    assert {step["requested_budget"] for step in steps} == {0.6}
    losses = [step["expected_loss"] for step in steps[1:]]
    assert sum(losses) / len(losses) == pytest.approx(result["sol"]["expected_loss"])


def test_the_model_s_card_tells_what_budgets_lose(address: str, model: SolModel) -> None:
    (card,) = httpx.get(f"{address}/v1/models").json()["data"]
    assert [curve["context"] for curve in card["losses"]] == [64, 256, 1024, 4096]
    assert all(curve["corners"][-1] == {"budget": 1.0, "expected_loss": 0.0} for curve in card["losses"])
    here = curves(model)  # this server's costs are measured, the model's are bytes
    assert [curve["context"] for curve in here] == [64, 256, 1024, 4096]
    assert model.hull is not None
    for curve in here:
        told = [(corner["budget"], corner["expected_loss"]) for corner in curve["corners"]]
        assert told == [(corner.cost, corner.loss) for corner in model.hull.corners(curve["context"])]
        assert len(told) > 1
