"""Turns the rates of several engines, measured in turn in one run, into tables of ratios with their spread.

peers.py and other programs here use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from report import quartiles


@dataclass(frozen=True)
class Test:
    """One test on all engines; entry i of every list comes from repetition i.

    Attributes:
        name: name in llama-bench's notation: `pp512`, or `tg64 @ d512` for 64 steps after 512 tokens.
        own: tokens/s of sol_rt by action tag.
        peers: tokens/s by peer.
        notes: text after an action's tag in its row.
        depth: tokens before the timed steps; 0 for a prompt.
        losses: losses in nats of the same tokens after that depth, by action tag and by peer; empty: not scored.
    """

    name: str
    own: Mapping[str, Sequence[float]]
    peers: Mapping[str, Sequence[float]]
    notes: Mapping[str, str] = field(default_factory=dict)
    depth: int = 0
    losses: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def quality(self, name: str, dense: str) -> tuple[float, float, float] | None:
        """Perplexity, and its rise over the action `dense` in nats with the standard error of paired losses.

        None if the row was not scored.
        """
        if name not in self.losses:
            return None
        own = np.asarray(self.losses[name], np.float64)
        rise = own - np.asarray(self.losses[dense], np.float64)
        error = float(rise.std(ddof=1)) / math.sqrt(rise.size) if rise.size > 1 else 0.0
        return math.exp(float(own.mean())), float(rise.mean()), error


def best(rates: Mapping[str, Sequence[float]]) -> str:
    """The name with the highest median."""
    return max(rates, key=lambda name: float(np.median(rates[name])))


def ratios(own: Sequence[float], other: Sequence[float]) -> list[float]:
    """Ratio of two rates in each repetition. Whatever slows the machine during a repetition slows both rates."""
    return [a / b for a, b in zip(own, other, strict=True)]


def tables(tests: Sequence[Test], peers: Sequence[str], dense: str) -> str:
    """Two Markdown tables: the peers' tokens/s, and sol_rt's with its ratio to each and to the test's best.

    Perplexities stand beside the speeds where losses were scored, with their rise over the action `dense`.
    """
    lines = [_row("tokens/s", *peers), _rule(1, len(peers))]
    for test in tests:
        lines += [_row(test.name, *(quartiles(test.peers[peer], 1) for peer in peers))]
        if test.losses:
            lines += [_row(f"perplexity @ d{test.depth}", *(_quality(test, peer, dense) for peer in peers))]
    scored = any(test.losses for test in tests)
    column = ["perplexity"] if scored else []
    lines += ["", _row("sol_rt", "action", "tokens/s", "× best peer", *(f"× {peer}" for peer in peers), *column)]
    lines += [_rule(2, 2 + len(peers) + len(column))]
    for test in tests:
        first = best(test.peers)
        for tag, own in test.own.items():
            over = {peer: quartiles(ratios(own, test.peers[peer])) for peer in peers}
            cells = [
                test.name,
                f"`{tag}` {test.notes.get(tag, '')}".rstrip(),
                quartiles(own, 1),
                f"{over[first]} ({first})",
                *over.values(),
            ]
            lines += [_row(*cells, *([_quality(test, tag, dense)] if scored else []))]
    return "\n".join(lines)


def as_json(test: Test, dense: str) -> dict[str, Any]:
    """The figures of a test: of every row the rates in tokens/s and, if it was scored, its quality."""
    found = []
    for engine, rates in (("sol_rt", test.own), ("peer", test.peers)):
        for name, each in rates.items():
            row: dict[str, Any] = {
                "name": name,
                "engine": engine,
                "tokens_per_second": [round(rate, 2) for rate in each],
            }
            if quality := test.quality(name, dense):
                row |= dict(
                    zip(("ppl", "over_dense", "over_dense_stderr"), (round(x, 5) for x in quality), strict=True)
                )
                row["tokens"] = len(test.losses[name])
            found.append(row)
    return {"name": test.name, "depth": test.depth, "rows": found}


def _quality(test: Test, name: str, dense: str) -> str:
    """A row's perplexity in words; empty if the row was not scored."""
    quality = test.quality(name, dense)
    if quality is None:
        return ""
    ppl, rise, error = quality
    return f"{ppl:.2f} ({100 * math.expm1(rise):+.1f} ± {100 * error:.1f}%)" if name != dense else f"{ppl:.2f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(texts: int, numbers: int) -> str:
    return f"|{'---|' * texts}{'--:|' * numbers}"
