"""The picture of loss against time: what it shows of a ladder's results, and where its labels stand."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import ladder_figure
import pytest
from ladder_figure import Axes, Measured, draw

from helpers.places import ROOT
from sol_rt.evaluation.pages.chart import in_words
from sol_rt.evaluation.pages.label_places import Box, place

RESULTS = ROOT / "docs/results/data/ladder-smollm2-135m.json"
PICTURE = ROOT / "docs/images/loss-against-time.svg"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def results() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return document


def texts(drawn: str, kind: str) -> list[str]:
    """Texts of a CSS class, without what stands beside them."""
    elements = ElementTree.fromstring(drawn).iter(f"{SVG}text")
    return [element.text or "" for element in elements if kind in element.get("class", "").split()]


def test_the_picture_in_the_docs_is_drawn_from_the_results_in_the_docs(results: dict[str, Any]) -> None:
    assert PICTURE.read_text(encoding="utf-8") == draw(results), "run `make figure`"


def test_every_action_and_every_quant_is_marked_and_labelled(results: dict[str, Any]) -> None:
    drawn = draw(results)
    context = results["contexts"][0]
    rows = [*context["actions"], *context["rungs"]]
    assert sorted(texts(drawn, "name")) == sorted(row["name"] for row in rows)
    root = ElementTree.fromstring(drawn)
    marks = [element for element in root.iter() if "mark" in element.get("class", "").split()]
    assert len(marks) == len(rows) + 2  # and one for each line in the key


def test_axes_units_machine_date_and_text_are_named(results: dict[str, Any]) -> None:
    said = " | ".join(element.text or "" for element in ElementTree.fromstring(draw(results)).iter(f"{SVG}text"))
    context = results["contexts"][0]
    for expected in (
        "milliseconds per token",
        "nats per token (log)",
        "perplexity over the source",
        f"{results['machine']}, {results['threads']} threads",
        f"{context['context']} tokens of context",
        f"{results['file']}, {context['source']['tokens']:,} tokens scored",
        results["date"],
    ):
        assert expected in said


def test_the_figure_follows_dark_mode_and_loads_nothing(results: dict[str, Any]) -> None:
    drawn = draw(results)
    light, dark = drawn.split("@media (prefers-color-scheme: dark)")
    used = set(re.findall(r"var\((--\w+)\)", drawn))
    assert used
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark.split("} }")[0]
    assert "http" not in drawn.replace("http://www.w3.org/2000/svg", "")


def test_a_point_lies_at_its_time_and_loss() -> None:
    rows = [Measured("k100-s100-q8", True, 8.8, 100.0, 0.01, 0.0), Measured("Q4_K_M", False, 5.0, 250.0, 0.1, 0.0)]
    axes = Axes.around(rows)
    (slow, fast), plot = (axes.point(row) for row in rows), ladder_figure._PLOT
    assert (slow[0] - plot.left) / (fast[0] - plot.left) == pytest.approx(10 / 4)
    assert axes.y(0.1) == fast[1]
    # a factor of ten takes the same height everywhere
    assert axes.y(0.01) - axes.y(0.1) == pytest.approx(axes.y(0.001) - axes.y(0.01))
    assert axes.y(-0.002) == axes.y(0.0) == plot.bottom


def test_names_are_escaped(results: dict[str, Any]) -> None:
    results["model"] = 'a<b>&"c'
    assert 'a<b>&"c: added loss' in texts(draw(results), "title")[0]


def boxes_of(results: dict[str, Any]) -> list[Box]:
    """The labels' boxes of the first context."""
    found: list[Box] = []

    def keep(*how: Any) -> list[Box]:
        found.extend(place(*how))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder_figure, "place", keep)
        draw(results)
    return found


def row(name: str, bits: float, loss: float, rate: float) -> dict[str, Any]:
    """Values that the figure reads of an action or a quant."""
    return {
        "name": name,
        "bits_per_weight": bits,
        "over_source": loss,
        "over_source_stderr": loss / 10,
        "tokens_per_second": [rate],
    }


def crowded() -> dict[str, Any]:
    """Five actions, of which two lie close together, beside five quants in a column."""
    actions = [
        row("k100-s100-q8", 8.8, 0.0015, 247),
        row("k025-s100-q6", 7.0, 0.003, 320),
        row("k100-s100-q4", 5.2, 0.0046, 406),
        row("k025-s075-q4", 4.4, 0.2, 460),
        row("k100-s050-q4", 3.6, 0.3113, 485),
    ]
    rungs = [
        row("Q8_0", 8.5, 0.0041, 151),
        row("Q6_K", 8.1, 0.0118, 154),
        row("Q5_K_M", 6.5, 0.0893, 153),
        row("Q4_K_M", 6.2, 0.0407, 158),
        row("Q3_K_M", 5.4, 0.1095, 201),
    ]
    context = {"context": 512, "source": {"tokens": 1020}, "actions": actions, "rungs": rungs}
    head = {"model": "m", "file": "text", "date": "2026-01-01", "machine": "CPU", "threads": 2}
    return {**head, "contexts": [context]}


def test_labels_keep_clear_of_each_other_and_of_the_edges(results: dict[str, Any]) -> None:
    for document in (results, crowded()):
        context, boxes = document["contexts"][0], boxes_of(document)
        assert len(boxes) == len(context["actions"]) + len(context["rungs"])
        assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
        assert all(ladder_figure._PLOT.contains(box) for box in boxes)
        assert not any(box.overlaps(ladder_figure._HINT_BOX) for box in boxes)


def test_a_box_is_crossed_by_a_line_through_it_alone() -> None:
    box = Box(10, 10, 20, 20)
    assert box.is_crossed_by(((0, 0), (30, 30)))
    assert box.is_crossed_by(((12, 12), (13, 13)))
    assert box.is_crossed_by(((15, 0), (15, 30)))
    assert not box.is_crossed_by(((0, 15), (9, 15)))
    assert not box.is_crossed_by(((0, 25), (30, 25)))
    assert not box.is_crossed_by(((0, 15), (15, 30)))


def test_a_label_goes_to_the_first_free_side() -> None:
    bounds = Box(0, 0, 200, 200)
    (free,) = place([(100, 100)], [(40, 20)], [], [], bounds)
    assert (free.left, free.top, free.bottom) == (111, 90, 110)
    (beside,) = place([(100, 100)], [(40, 20)], [((120, 0), (120, 200))], [], bounds)
    assert beside.right == 89
    (inside,) = place([(190, 100)], [(40, 20)], [], [], bounds)
    assert inside.right == 179
    (kept,) = place([(100, 100)], [(40, 20)], [], [Box(120, 95, 130, 98)], bounds)
    assert kept.right == 89


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("k100-s100-q8", "8 bits"),
        ("k010-s050-q4", "4 bits, channel density 0.5, KV density 0.1"),
        ("k100-s100-qmix", "mixed bits"),
        ("Q4_K_M", ""),
    ],
)
def test_a_tag_is_said_in_words(tag: str, words: str) -> None:
    assert in_words(tag) == words


def run(monkeypatch: pytest.MonkeyPatch, *argv: object) -> None:
    monkeypatch.setattr("sys.argv", ["ladder_figure.py", *map(str, argv)])
    ladder_figure.main()


def test_the_command_writes_the_context_asked_for(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results["contexts"].append({**copy.deepcopy(results["contexts"][0]), "context": 777})
    (tmp_path / "ladder.json").write_text(json.dumps(results))
    run(monkeypatch, tmp_path / "ladder.json", "-c", 777, "-o", tmp_path / "new" / "a.svg")
    assert "after 777 tokens of context" in (tmp_path / "new" / "a.svg").read_text(encoding="utf-8")


def test_results_that_cannot_be_drawn_are_refused_in_one_line(
    results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = tmp_path / "ladder.json", tmp_path / "a.svg"
    with pytest.raises(SystemExit, match=r"ladder.json: No such file"):
        run(monkeypatch, file, "-o", out)
    file.write_text("{")
    with pytest.raises(SystemExit, match="not JSON"):
        run(monkeypatch, file, "-o", out)
    file.write_text(json.dumps(results))
    with pytest.raises(SystemExit, match="no context of 99 tokens"):
        run(monkeypatch, file, "-c", 99, "-o", out)
    del results["contexts"][0]["actions"][1]["tokens_per_second"]
    file.write_text(json.dumps(results))
    with pytest.raises(SystemExit, match="no 'tokens_per_second' in it; run `make ladder` again"):
        run(monkeypatch, file, "-o", out)
    assert not out.exists()


def test_a_row_without_an_error_is_drawn(results: dict[str, Any]) -> None:
    """A single window has no standard error."""
    row = {**results["contexts"][0]["actions"][0], "over_source_stderr": None}
    assert Measured.of(row, True).error == 0
    row["over_source_stderr"] = math.inf
    results["contexts"][0]["actions"][0] = row
    ElementTree.fromstring(draw(results))
