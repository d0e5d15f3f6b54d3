"""The README's picture: its marks are the figures in the docs, and a command makes it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from helpers.places import ROOT
from peers import ladder_figure

RESULTS = [ROOT / f"docs/results/data/ladder-{name}.json" for name in ("smollm2-135m", "qwen2.5-coder-1.5b")]
PICTURES = [ROOT / f"docs/images/loss-against-time{ending}.svg" for ending in ("", "-narrow")]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def results() -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS]


def texts(drawn: str, tag: str) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.fromstring(drawn).iter(f"{SVG}{tag}")]


def test_the_command_draws_the_figures_of_the_docs(
    results: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = sorted(mark["facts"] for document in results for mark in ladder_figure.marks(document))
    contexts = [document["contexts"][0] for document in results]
    assert len(facts) == sum(len(context[group]) for context in contexts for group in ("actions", "rungs", "others"))
    monkeypatch.setattr("sys.argv", ["ladder_figure.py", *map(str, RESULTS), "-o", str(tmp_path / PICTURES[0].name)])
    ladder_figure.main()
    for picture in (*PICTURES, *(tmp_path / path.name for path in PICTURES)):
        drawn = picture.read_text(encoding="utf-8")
        assert sorted(texts(drawn, "title")) == facts, "run `make figure`"
        said = " | ".join(texts(drawn, "text"))
        for expected in (*ladder_figure._OUTLINES, "tokens per second", "perplexity over the float32 source"):
            assert expected in said
        for document in results:
            assert f"{document['threads']} threads, {document['date']}" in said
            assert f"{document['contexts'][0]['source']['tokens']:,} tokens" in said
        assert "@media (prefers-color-scheme: dark)" in drawn
        assert "http" not in drawn.replace("http://www.w3.org/", "")


def test_the_picture_of_long_contexts_is_of_the_figures_in_the_docs() -> None:
    document = json.loads((ROOT / "docs/results/data/long-smollm2-135m.json").read_text(encoding="utf-8"))
    facts = sorted(mark["facts"] for depth in (512, 4096) for mark in ladder_figure.marks(document, depth))
    assert "k010-s100-q4: 88.2 tokens/s, -0.11% perplexity" in facts  # the core's speed, the action's loss
    assert "llama.cpp: 32.3 tokens/s, +0.42% perplexity" in facts  # the faster setting
    for ending in ("", "-narrow"):
        drawn = (ROOT / f"docs/images/long-contexts{ending}.svg").read_text(encoding="utf-8")
        assert sorted(texts(drawn, "title")) == facts, "run `make figure`"


def test_every_loss_and_speed_is_that_of_its_row(results: list[dict[str, Any]]) -> None:
    found = ladder_figure.marks(results[1])
    assert [mark["name"] for mark in found if mark["series"] == ladder_figure._IMPORTANCE] == ["Q4_K_M-I", "Q4_0-I"]
    (mark,) = (mark for mark in found if mark["name"] == "FILE")
    assert mark["facts"] == "FILE: 25.7 tokens/s, -0.19% perplexity"
    results[1]["contexts"][0]["rungs"][0].update(over_source_stderr=None)  # a single window has no standard error
    first = next(mark for mark in ladder_figure.marks(results[1]) if mark["name"] == "Q8_0")
    assert first["low"] == first["percent"] == first["high"]


def test_results_without_speeds_are_refused_in_one_line(
    results: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del results[0]["contexts"][0]["actions"][1]["tokens_per_second"]
    (tmp_path / "ladder.json").write_text(json.dumps(results[0]))
    monkeypatch.setattr("sys.argv", ["ladder_figure.py", str(tmp_path / "ladder.json"), "-o", str(tmp_path / "a.svg")])
    with pytest.raises(
        SystemExit, match=r"no 'tokens_per_second' in .*ladder\.json; run `make ladder` or `make peers` again"
    ):
        ladder_figure.main()
