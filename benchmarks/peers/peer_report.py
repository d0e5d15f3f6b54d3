"""Turns the rates of several engines, measured in turn in one run, into tables of ratios with their spread.

peers.py and other programs here use it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
    """

    name: str
    own: Mapping[str, Sequence[float]]
    peers: Mapping[str, Sequence[float]]
    notes: Mapping[str, str] = field(default_factory=dict)


def best(rates: Mapping[str, Sequence[float]]) -> str:
    """The name with the highest median."""
    return max(rates, key=lambda name: float(np.median(rates[name])))


def ratios(own: Sequence[float], other: Sequence[float]) -> list[float]:
    """Ratio of two rates in each repetition. Whatever slows the machine during a repetition slows both rates."""
    return [a / b for a, b in zip(own, other, strict=True)]


def tables(tests: Sequence[Test], peers: Sequence[str], quality: Mapping[str, str] | None = None) -> str:
    """Two Markdown tables: the peers' tokens/s, and sol_rt's with its ratio to each and to the test's best.

    Args:
        tests: the tests.
        peers: names of the peers.
        quality: what stands beside the speeds, by peer and by action tag; None leaves it out. An action without one
            gets an empty cell.
    """
    lines = [_row("tokens/s", *peers), _rule(1, len(peers))]
    lines += [_row(test.name, *(quartiles(test.peers[peer], 1) for peer in peers)) for test in tests]
    if quality is not None:
        lines += [_row("perplexity", *(quality.get(peer, "") for peer in peers))]
    column = [] if quality is None else ["perplexity"]
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
            lines += [_row(*cells, *([] if quality is None else [quality.get(tag, "")]))]
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(texts: int, numbers: int) -> str:
    return f"|{'---|' * texts}{'--:|' * numbers}"
