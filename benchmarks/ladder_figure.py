"""Draws a ladder run as one SVG: loss against time of our fixed actions and of llama.cpp's quants of the same weights.

    python benchmarks/ladder_figure.py docs/results/data/ladder-smollm2-135m.json -o docs/images/loss-against-time.svg
    make figure MODEL=smollm2-135m

The input is the JSON that `benchmarks/ladder.py -o` writes beside its page. x is the median time of a decode step in
milliseconds. y is the loss over the float32 source in nats per token, on a logarithmic scale; the right edge shows the
same as an increase of perplexity. The picture follows the reader's light or dark mode. The program needs no package but
sol_rt's own code, which `make figure` finds in this folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from sol_rt.evaluation.pages.chart import in_words
from sol_rt.evaluation.pages.label_places import Box, Point, Segment, place

_WIDTH, _HEIGHT = 860, 520
_PLOT = Box(74, 112, _WIDTH - 74, _HEIGHT - 92)
_HINT = "↙ better: faster, and closer to the source"
_HINT_BOX = Box(_PLOT.left + 14, _PLOT.bottom - 28, _PLOT.left + 14 + 6.5 * len(_HINT), _PLOT.bottom - 10)
_FLOOR = 0.001  # nats; smaller losses, which may be negative, are drawn here
_TICKS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_HEADROOM = 1.5  # between the largest loss and the upper edge, a factor
_MARGIN = 1.15  # between the longest time and the right edge, a factor
_NAME_WIDTH, _DETAIL_WIDTH = 7.9, 5.9  # pixels per character, rounded up
_SPACE = 7  # pixels between a name and the words beside it
_LABEL_HEIGHT = 30.0

_STYLE = """\
svg { --page:#ffffff; --edge:#d5dbe1; --ink:#1c2128; --quiet:#59636e; --grid:#e7ebef;
 --ours:#0a5bbd; --theirs:#b4530a; }
@media (prefers-color-scheme: dark) { svg { --page:#0f141a; --edge:#2c3641; --ink:#e8ecf1; --quiet:#9aa6b2;
 --grid:#222b35; --ours:#6cb0ff; --theirs:#f0a35e; } }
text { font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; fill: var(--quiet);
 font-variant-numeric: tabular-nums; }
.page { fill: var(--page); stroke: var(--edge); }
.title { font-size: 17px; font-weight: 600; fill: var(--ink); }
.key { font-size: 13px; fill: var(--ink); }
.grid { stroke: var(--grid); }
.axis { stroke: var(--edge); }
.name { font: 600 12.5px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.detail, .foot { font-size: 11px; }
tspan.detail { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
 fill: var(--quiet); }
.name, .detail { paint-order: stroke; stroke: var(--page); stroke-width: 4px; stroke-linejoin: round; }
.line { fill: none; stroke-width: 2; opacity: .55; }
.error { stroke-width: 1.5; opacity: .8; }
.mark { stroke: var(--page); stroke-width: 1.5; }
.ours.line, .ours.error { stroke: var(--ours); }
.theirs.line, .theirs.error { stroke: var(--theirs); }
.ours.mark, .ours.name { fill: var(--ours); }
.theirs.mark, .theirs.name { fill: var(--theirs); }"""


@dataclass(frozen=True)
class Measured:
    """A fixed action or a quant of llama.cpp's.

    Attributes:
        name: `k100-s100-q4`, `Q4_K_M`.
        ours: whether it is an action.
        bits: bits that a step reads per weight.
        rate: median tokens/s.
        loss, error: nats per token over the float32 source, and the standard error over windows.
    """

    name: str
    ours: bool
    bits: float
    rate: float
    loss: float
    error: float

    @classmethod
    def of(cls, row: Mapping[str, Any], ours: bool) -> Measured:
        """Reads a row of the JSON. Raises KeyError if speeds or losses were not measured."""
        rate = statistics.median(row["tokens_per_second"])
        return cls(
            row["name"], ours, row["bits_per_weight"], rate, row["over_source"], row.get("over_source_stderr") or 0.0
        )

    @property
    def ms(self) -> float:
        """Milliseconds per token."""
        return 1000 / self.rate

    @property
    def kind(self) -> str:
        """CSS class."""
        return "ours" if self.ours else "theirs"

    @property
    def words(self) -> str:
        """Text beside the name: the action in words."""
        return in_words(self.name)

    @property
    def detail(self) -> str:
        """Text under the name: bits and speed."""
        return f"{self.bits:.1f} bits per weight, {self.rate:.0f} tokens/s"

    @property
    def size(self) -> Point:
        """Width and height of the label in pixels, an upper estimate."""
        first = len(self.name) * _NAME_WIDTH + len(self.words) * _DETAIL_WIDTH + _SPACE
        return max(first, len(self.detail) * _DETAIL_WIDTH), _LABEL_HEIGHT


@dataclass(frozen=True)
class Axes:
    """Maps milliseconds and nats to pixels; `right` and `top` are the values at these edges."""

    right: float
    top: float

    @classmethod
    def around(cls, rows: Sequence[Measured]) -> Axes:
        return cls(
            math.ceil(_MARGIN * max(row.ms for row in rows) / _step(rows)) * _step(rows),
            max(_HEADROOM * max(row.loss + row.error for row in rows), 10 * _FLOOR),
        )

    def x(self, ms: float) -> float:
        return _PLOT.left + (_PLOT.right - _PLOT.left) * ms / self.right

    def y(self, nats: float) -> float:
        share = math.log(max(nats, _FLOOR) / _FLOOR) / math.log(self.top / _FLOOR)
        return _PLOT.bottom - (_PLOT.bottom - _PLOT.top) * share

    def point(self, row: Measured) -> Point:
        return self.x(row.ms), self.y(row.loss)

    def error(self, row: Measured) -> Segment:
        """One standard error up and down."""
        x = self.x(row.ms)
        return (x, self.y(row.loss - row.error)), (x, self.y(row.loss + row.error))


def _step(rows: Sequence[Measured]) -> float:
    """Milliseconds between two ticks: 1, 2 or 5 times a power of ten, so that there are about eight ticks."""
    raw = max(row.ms for row in rows) / 8
    power = 10 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)


def draw(document: Mapping[str, Any], context: int | None = None) -> str:
    """The SVG of one context of a ladder's JSON, by default its first.

    Raises KeyError where a value is missing, StopIteration where the context is.
    """
    found = next(each for each in document["contexts"] if context in (None, each["context"]))
    rows = [Measured.of(row, True) for row in found["actions"]] + [Measured.of(row, False) for row in found["rungs"]]
    axes = Axes.around(rows)
    lines = [_in_order(rows, ours) for ours in (True, False)]
    segments = [(axes.point(a), axes.point(b)) for line in lines for a, b in itertools.pairwise(line)]
    points, errors = [axes.point(row) for row in rows], [axes.error(row) for row in rows]
    boxes = place(points, [row.size for row in rows], [*segments, *errors], [_HINT_BOX], _PLOT)
    title = f"{document['model']}: added loss against time per token"
    scored = found["source"]["tokens"]
    machine = f"{document['machine']}, {document['threads']} threads, after {found['context']} tokens of context"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}"'
        ' role="img" aria-labelledby="title desc">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="desc">{escape("; ".join(map(_spoken, rows)))}</desc>',
        f"<style>\n{_STYLE}\n</style>",
        f'<rect class="page" x=".5" y=".5" width="{_WIDTH - 1}" height="{_HEIGHT - 1}" rx="8"/>',
        _text(28, 36, title, "title"),
        _text(28, 57, machine),
        *_key(),
        *_grid(axes, _step(rows)),
        _text(_HINT_BOX.left, _HINT_BOX.bottom - 5, _HINT),
        *(_polyline([axes.point(row) for row in line], line[0].kind) for line in lines if line),
        *(_segment(*ends, f"{row.kind} error") for row, ends in zip(rows, errors, strict=True)),
        *(_mark(*point, row.kind) for row, point in zip(rows, points, strict=True)),
        *(_label(row, box, point) for row, box, point in zip(rows, boxes, points, strict=True)),
        _text(
            28,
            _HEIGHT - 18,
            f"{document['date']} · {document['file']}, {scored:,} tokens scored · bars: one standard error · "
            "lines join rows in order of bits read per weight",
            "foot",
        ),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _in_order(rows: Sequence[Measured], ours: bool) -> list[Measured]:
    """The rows of one line, from the most bits a weight to the fewest."""
    return sorted((row for row in rows if row.ours == ours), key=lambda row: (-row.bits, -row.ms))


def _spoken(row: Measured) -> str:
    return f"{row.name}: {row.ms:.2f} ms, {row.loss:+.4f} nats"


def _grid(axes: Axes, step: float) -> list[str]:
    """Both axes, with titles, and the lines behind the points."""
    parts = []
    for nats in (tick for tick in _TICKS if tick <= axes.top):
        y = axes.y(nats)
        least = "≤ " if nats == _FLOOR else ""
        increase = 100 * math.expm1(nats)
        parts += [
            _segment((_PLOT.left, y), (_PLOT.right, y), "grid"),
            _text(_PLOT.left - 9, y + 4, f"{least}{nats:g}", anchor="end"),
            _text(_PLOT.right + 9, y + 4, f"+{increase:.2g}%" if increase < 100 else f"+{increase:.0f}%"),
        ]
    for index in range(round(axes.right / step) + 1):
        x = axes.x(index * step)
        parts += [
            _segment((x, _PLOT.top), (x, _PLOT.bottom), "grid"),
            _text(x, _PLOT.bottom + 19, f"{index * step:g}", anchor="middle"),
        ]
    middle = (_PLOT.left + _PLOT.right) / 2, (_PLOT.top + _PLOT.bottom) / 2
    return [
        *parts,
        _segment((_PLOT.left, _PLOT.bottom), (_PLOT.right, _PLOT.bottom), "axis"),
        _text(middle[0], _PLOT.bottom + 41, "milliseconds per token, decode", anchor="middle"),
        _text(22, middle[1], "added loss, nats per token (log)", anchor="middle", turned=True),
        _text(_WIDTH - 15, middle[1], "perplexity over the source", anchor="middle", turned=True),
    ]


def _key() -> list[str]:
    """Draws the key of the two lines."""
    parts, x = [], 28.0
    for kind, words in (
        ("ours", "sol_rt, one fixed action"),
        ("theirs", "llama.cpp, quantized from the same float32 weights, no importance matrix"),
    ):
        parts += [_polyline([(x, 82), (x + 26, 82)], kind), _mark(x + 13, 82, kind), _text(x + 34, 86.5, words, "key")]
        x += 34 + 6.6 * len(words) + 28
    return parts


def _label(row: Measured, box: Box, point: Point) -> str:
    """Draws name and detail, aligned with the side that faces the point."""
    if box.left >= point[0]:
        x, anchor = box.left, "start"
    elif box.right <= point[0]:
        x, anchor = box.right, "end"
    else:
        x, anchor = (box.left + box.right) / 2, "middle"
    words = f'<tspan class="detail" dx="{_SPACE}">{escape(row.words)}</tspan>' if row.words else ""
    name = _text(x, box.top + 12, row.name, f"{row.kind} name", anchor).replace("</text>", f"{words}</text>")
    return f"{name}\n{_text(x, box.top + 26, row.detail, 'detail', anchor)}"


def _mark(x: float, y: float, kind: str) -> str:
    """Draws a disc for ours and a square for theirs, so that readers need no colours to tell them apart."""
    if kind == "ours":
        return f'<circle class="{kind} mark" cx="{x:.1f}" cy="{y:.1f}" r="6"/>'
    return f'<rect class="{kind} mark" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10" rx="1.5"/>'


def _polyline(points: Sequence[Point], kind: str) -> str:
    return f'<polyline class="{kind} line" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def _segment(start: Point, end: Point, kind: str) -> str:
    return f'<line class="{kind}" x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}"/>'


def _text(x: float, y: float, words: str, kind: str = "", anchor: str = "start", turned: bool = False) -> str:
    named = f' class="{kind}"' if kind else ""
    placed = f' text-anchor="{anchor}"' if anchor != "start" else ""
    rotated = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}"{placed}{rotated}>{escape(words)}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON of benchmarks/ladder.py")
    parser.add_argument("-c", "--context", type=int, help="tokens of context; default: the first of the file")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the SVG")
    args = parser.parse_args()
    try:
        text = draw(json.loads(args.results.read_text(encoding="utf-8")), args.context)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text, encoding="utf-8")
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")
    except json.JSONDecodeError as error:
        sys.exit(
            f"error: {args.results}: not JSON ({error}); expected what benchmarks/ladder.py writes beside its page"
        )
    except StopIteration:
        sys.exit(
            f"error: {args.results}: no context of {args.context} tokens in it; measure it, or leave out --context"
        )
    except KeyError as error:
        sys.exit(f"error: {args.results}: no {error} in it; run `make ladder` again, speeds included")


if __name__ == "__main__":
    main()
