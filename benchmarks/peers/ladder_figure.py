"""Draws perplexity against speed as two SVGs, wide and narrow: the dial's actions beside llama.cpp's files and genai.

    python benchmarks peers.ladder_figure docs/results/data/ladder-*.json -o docs/images/loss-against-time.svg
    python benchmarks peers.ladder_figure docs/results/data/long-*.json --depths 512,4096 -o long-contexts.svg
    make figure

The input is the JSON that `peers.ladder -o` or `peers.peers -o` writes beside its page, one file a model. `others` are
added to a ladder by hand: engines of another run on the same processor. x is the median rate of decode steps in
tokens/s. y is the perplexity over the float32 source's, or of peers over that of 8 bits, in percent, linear near 0 and
logarithmic above; bars are one standard error up and down. Models, and depths of peers, stand side by side, in the
narrow SVG one below the other.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import altair as alt

from peers.peers import positives
from sol_rt.atomic_write import write_text
from sol_rt.errors import SolError
from sol_rt.evaluation.pages.chart import LIGHT, colours, draw, rows
from sol_rt.evaluation.pages.style import colours as style

_DIAL, _FILES, _IMPORTANCE = "sol_rt: settings of one dial", "llama.cpp’s files", "with an importance matrix"
_GENAI = "genai int4"
_OUTLINES = {_DIAL: "blue", _FILES: "orange", _IMPORTANCE: "orange", _GENAI: "purple"}
_FILLS = {**_OUTLINES, _IMPORTANCE: "page"}
_SHAPES = {_DIAL: "circle", _FILES: "square", _IMPORTANCE: "square", _GENAI: "triangle-up"}
_MODELS = {"smollm2-135m": "SmolLM2-135M", "qwen2.5-coder-1.5b": "Qwen2.5-Coder-1.5B"}
_LABELS = {
    "k100-s100-q8": "8 bits",
    "k100-s100-qmix": "mixed bits",
    "k100-s100-q4": "4 bits",
    "k100-s075-q4": "¾ channels",
    "k100-s050-q3": "½, 3 bits",
    "k010-s100-q4": "⅒ of the context",
    "k010-s075-q4": "⅒, ¾ channels",
    "FILE": "published",
}
"""Labels of marks; of other files their names, of marks that are not told apart by name none."""
_PERCENT = [0, 0.5, 1, 2, 5, 10, 20, 50]  # ticks


def marks(document: Mapping[str, Any], depth: int | None = None) -> list[dict[str, Any]]:
    """The marks of a ladder at its first context, or of peers after `depth` tokens.

    Raises KeyError where a value is missing.
    """
    if document["format"] == "sol_rt.peers":
        return _marks_of_peers(_test(document, depth)["rows"])
    context = document["contexts"][0]
    return [
        _mark(_IMPORTANCE if row["name"].endswith("-I") else series, row["name"], row, row, "over_source")
        for group, series in (("actions", _DIAL), ("rungs", _FILES), ("others", _GENAI))
        for row in context.get(group, ())
    ]


def _marks_of_peers(rows_: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Marks of the core's rows with the quality of their actions, of llama.cpp's faster setting, and of genai."""
    by_name = {row["name"]: row for row in rows_}
    found = []
    for name, row in by_name.items():
        if row["engine"] == "sol_rt" and "ppl" in row:
            found.append(_mark(_DIAL, name, by_name.get(f"{name} core", row), row, "over_dense"))
    settings = [row for name, row in by_name.items() if name.startswith("llama.cpp")]
    faster = max(settings, key=lambda row: statistics.median(row["tokens_per_second"]))
    found.append(_mark(_FILES, "llama.cpp", faster, by_name["llama.cpp"], "over_dense"))
    if "ppl" in (genai := by_name.get("genai", {})):
        found.append(_mark(_GENAI, "genai", genai, genai, "over_dense"))
    return found


def _mark(series: str, name: str, speed: Mapping[str, Any], quality: Mapping[str, Any], over: str) -> dict[str, Any]:
    """A mark at the median speed of a row and the loss `over` of one, which are of the same engine and file."""
    rate, error = statistics.median(speed["tokens_per_second"]), quality.get(f"{over}_stderr") or 0
    low, percent, high = (100 * math.expm1(quality[over] + side * error) for side in (-1, 0, 1))
    mark = {"series": series, "name": name, "rate": rate, "percent": percent, "low": low, "high": high}
    label = _LABELS.get(name, name if series in (_FILES, _IMPORTANCE) else "")
    return {**mark, "label": label, "facts": f"{name}: {rate:.1f} tokens/s, {percent:+.2f}% perplexity"}


def _test(document: Mapping[str, Any], depth: int | None) -> Mapping[str, Any]:
    """The test after `depth` tokens. Raises KeyError if there is none."""
    tests = {test["depth"]: test for test in document["tests"]}
    return tests[depth]


def _scored(document: Mapping[str, Any], depth: int | None) -> str:
    """Which tokens of the text the perplexities are of."""
    if document["format"] == "sol_rt.peers":
        count = next(row["tokens"] for row in _test(document, depth)["rows"] if "tokens" in row)
        return f"{document['file']}, {count:,} tokens after {depth:,}"
    context = document["contexts"][0]
    return f"{document['file']}, windows of {context['context']}, {context['source']['tokens']:,} tokens"


def panel(document: Mapping[str, Any], depth: int | None, width: int, columns: int) -> alt.ChartType:
    """The chart of one model: all marks, and a line through the actions that no other beats in speed and loss."""
    found = marks(document, depth)
    ours = [mark for mark in found if mark["series"] == _DIAL]
    best = [
        mark
        for mark in ours
        if not any(other["rate"] > mark["rate"] and other["percent"] < mark["percent"] for other in ours)
    ]
    rates, highest = [mark["rate"] for mark in found], max(mark["high"] for mark in found)
    last = 1.22 if depth is None else 1.45  # room for the labels of the fastest
    lowest, top = (-0.4, max(60, highest)) if depth is None else (-1, 50)
    x = alt.X(
        "rate:Q",
        title="tokens per second (better: right and down)",
        scale=alt.Scale(domain=[0.8 * min(rates) if depth is None else 0, last * max(rates)], nice=False),
        axis=alt.Axis(tickCount=6),
    )
    y = alt.Y(
        "percent:Q",
        title="perplexity over " + ("the float32 source" if depth is None else "8 bits"),
        scale=alt.Scale(type="symlog", constant=0.5, domain=[lowest, top], nice=False),
        axis=alt.Axis(values=_PERCENT, labelExpr="(datum.value > 0 ? '+' : '') + datum.value + '%'"),
    )
    legend = alt.Legend(columns=columns)
    shapes = {name: shape for name, shape in _SHAPES.items() if depth is None or name != _IMPORTANCE}
    fill = alt.Fill("series:N", scale=colours({name: _FILLS[name] for name in shapes}), legend=legend)
    stroke = alt.Stroke("series:N", scale=colours({name: _OUTLINES[name] for name in shapes}), legend=legend)
    shape = alt.Shape("series:N", scale=alt.Scale(domain=[*shapes], range=[*shapes.values()]), legend=legend)

    def words(chosen: list[dict[str, Any]], **where: Any) -> alt.Chart:
        text = rows(chosen).mark_text(
            aria=False, fontSize=13, fill=LIGHT["ink"], stroke=LIGHT["page"], strokeWidth=3, **where
        )
        return text.encode(x, y, text="label:N")

    file = [mark for mark in found if mark["name"] == "FILE"]
    drawn = alt.layer(
        rows(found).mark_rule(aria=False, opacity=0.6).encode(x, alt.Y("low:Q"), stroke, y2="high:Q"),
        rows(best).mark_line(aria=False, color=LIGHT["blue"]).encode(x, y, order="rate:Q"),
        rows(found)
        .mark_point(size=70, opacity=1, strokeWidth=1.5)
        .encode(x, y, fill, stroke, shape, description="facts:N"),
        words(ours, align="left", dx=8, dy=11),
        words([mark for mark in found if mark not in ours and mark not in file], align="left", dx=7, dy=-9),
        words(file, align="right", dx=-9, dy=5),
    )
    name = _MODELS.get(document["model"], document["model"])
    title = alt.TitleParams(
        name if depth is None else f"{name} after {depth:,} tokens",
        subtitle=[
            f"{document['machine'].replace('(R)', '')}, {document['threads']} threads, {document['date']}",
            _scored(document, depth),
        ],
        subtitleFontSize=13,
    )
    return drawn.properties(width=width, height=300, title=title)


def figure(documents: Sequence[Mapping[str, Any]], depths: Sequence[int | None], narrow: bool) -> str:
    """The SVG, which follows the reader's light or dark mode."""
    width, columns = (300, 1) if narrow else (690 // (len(documents) * len(depths)), 4)
    panels = [panel(document, depth, width, columns) for document in documents for depth in depths]
    chart: alt.ChartType = alt.vconcat(*panels) if narrow else alt.hconcat(*panels)
    drawn = draw(chart)
    start = drawn.index(">") + 1
    return f"{drawn[:start]}<style>{style()}</style>{drawn[start:]}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON of peers.ladder or peers.peers, one file a model")
    parser.add_argument("--depths", type=positives, default=[None], help="tokens before the steps, of peers")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the SVG; the other is NAME-narrow.svg")
    args = parser.parse_args()
    try:
        documents = [json.loads(path.read_text(encoding="utf-8")) for path in args.results]
        for ending, narrow in (("", False), ("-narrow", True)):
            write_text(args.output.with_stem(args.output.stem + ending), figure(documents, args.depths, narrow))
    except (OSError, json.JSONDecodeError, SolError) as error:
        sys.exit(f"error: {error}")
    except KeyError as error:
        named = ", ".join(map(str, args.results))
        sys.exit(f"error: no {error} in {named}; run `make ladder` or `make peers` again, speeds and text included")


if __name__ == "__main__":
    main()
