"""Turns the results of a ladder run into tables and verdicts: rates and losses of all rows, one verdict per rung.

ladder.py uses it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from peers.ladder_scores import Difference, Loss, difference
from peers.peer_report import ratios
from report import quartiles

DENSE = "k100-s100-q"  # tags of actions that read fewer bits but everything else
FASTER = 1.3  # the speed-up over a rung that an action of no higher perplexity must reach


@dataclass(frozen=True)
class Row:
    """A rung, an action or a reference at one context.

    Attributes:
        name: `Q4_K_M`, `k100-s100-q4` …
        bits: bits a weight over the matrices that a step reads.
        step_bytes: bytes of weights that a step reads; None for a reference, which no engine runs.
        loss: of an action through the path of generation: the first half of a window is prefilled dense.
        whole: of an action that leaves out bits alone, whole windows under it; else None.
        rates: tokens/s of every repetition; None where no speed was measured.
    """

    name: str
    bits: float
    step_bytes: int | None
    loss: Loss
    whole: Loss | None = None
    rates: Sequence[float] | None = None

    @property
    def alone(self) -> Loss:
        """The loss if the row ran the whole window, without a dense prefill."""
        return self.whole or self.loss


@dataclass(frozen=True)
class Verdict:
    """Comparison of our fixed actions with a rung.

    Attributes:
        rung: its row.
        at_speed: of the actions at least as fast, the one of lowest loss; None where none is.
        loss: that action's loss minus the rung's.
        at_loss: of the actions whose loss is not higher, the fastest; None where none is.
        faster: that action's tokens/s over the rung's, a repetition each.
    """

    rung: Row
    at_speed: Row | None
    loss: Difference | None
    at_loss: Row | None
    faster: Sequence[float]

    @property
    def lower(self) -> bool:
        return self.loss is not None and self.loss.mean < 0

    @property
    def held(self) -> bool:
        """True if an action has a lower perplexity at the rung's speed, or FASTER times its speed at its perplexity."""
        return self.lower or (self.at_loss is not None and float(np.median(self.faster)) >= FASTER)

    @property
    def text(self) -> str:
        if self.lower and self.loss is not None:
            return "lower perplexity" + ("" if self.loss.high < 0 else ", within the error")
        return f"{FASTER} × faster" if self.held else "no"


def verdict(rung: Row, actions: Sequence[Row]) -> Verdict:
    """Compares actions with a rung: medians of speed ratios within a repetition, and mean losses on equal windows."""
    over = {action.name: ratios(action.rates or (), rung.rates or ()) for action in actions}

    def speed(action: Row) -> float:
        return float(np.median(over[action.name]))

    fast = [action for action in actions if speed(action) >= 1]
    best = min(fast, key=lambda action: action.loss.mean, default=None)
    good = [action for action in actions if difference(action.loss, rung.loss).mean <= 0]
    fastest = max(good, key=speed, default=None)
    return Verdict(
        rung,
        best,
        None if best is None else difference(best.loss, rung.loss),
        fastest,
        () if fastest is None else over[fastest.name],
    )


def table(rows: Sequence[Row], source: Row, dense: Row) -> str:
    """Markdown table of rows; if speeds were measured, the fastest row comes first."""
    timed = all(row.rates is not None for row in rows)
    if timed:
        rows = sorted(rows, key=lambda row: -float(np.median(row.rates or ())))
    head = ["", "bits a weight", "MB a step", "perplexity", "over the source", "nats over the source", "whole window"]
    lines = [_row(*head, *(["tokens/s", "× dense"] if timed else [])), _rule(1, len(head) - 1 + 2 * timed)]
    for row in rows:
        over = difference(row.loss, source.loss)
        cells = [f"`{row.name}`", f"{row.bits:.2f}", "" if row.step_bytes is None else f"{row.step_bytes / 1e6:.0f}"]
        cells += [f"{row.loss.ppl:.3f} ± {row.loss.ppl_error:.3f}", percent(row.loss, source.loss), nats(over)]
        cells.append("" if row.whole is None else percent(row.whole, source.loss))
        if timed:
            cells += [quartiles(row.rates or (), 1), quartiles(ratios(row.rates or (), dense.rates or ()))]
        lines.append(_row(*cells))
    return "\n".join(lines)


def verdicts(found: Sequence[Verdict]) -> str:
    """Markdown table with one row per rung."""
    head = ["rung", "best action at its speed", "nats over the rung", "fastest action at its perplexity", "× its speed"]
    lines = [_row(*head, "verdict"), _rule(len(head) + 1, 0)]
    for each in found:
        speed = ["none", ""] if each.at_speed is None or each.loss is None else [each.at_speed.name, nats(each.loss)]
        loss = ["none", ""] if each.at_loss is None else [each.at_loss.name, quartiles(each.faster)]
        lines.append(_row(f"`{each.rung.name}`", *speed, *loss, each.text))
    return "\n".join(lines)


@dataclass(frozen=True)
class Check:
    """Compares an action's increase over the source with a bound: a share of another row's increase, or a percentage.

    Attributes:
        row: the action.
        bound: what it is held against.
        over: its increase minus what is allowed, in nats; not above 0 where the check holds.
    """

    row: Row
    bound: str
    over: Difference

    @property
    def held(self) -> bool:
        return self.over.mean <= 0


def checks(actions: Sequence[Row], rungs: Sequence[Row], roundings: Sequence[Row], source: Row) -> list[Check]:
    """Checks dense actions over whole windows.

    The bounds: at 8 bits, 0.3% over the source; at 4 bits, half of plain rounding's increase, and Q4_K_M's; at 3 bits,
    Q3_K_M's. Among the roundings with the action's bits in their name, the one with the nearest bits per weight counts.
    """
    named = {row.name: row for row in rungs}
    found = []
    for action in actions:
        if not action.name.startswith(DENSE):
            continue
        bits = action.name.removeprefix(DENSE)
        if bits == "8":
            over = difference(action.alone, source.loss)
            found.append(Check(action, "+0.30%", replace(over, mean=over.mean - math.log(1.003))))
        plain = [row for row in roundings if row.name.startswith(f"RTN{bits}")]
        nearest = min(plain, key=lambda row: abs(row.bits - action.bits), default=None)
        for other, share in ((nearest, 0.5), (named.get({"4": "Q4_K_M", "3": "Q3_K_M"}.get(bits, "")), 1.0)):
            if other is not None:
                bound = f"{'half of ' if share < 1 else ''}`{other.name}` {percent(other.loss, source.loss)}"
                found.append(Check(action, bound, difference(action.alone, other.loss, share, source.loss)))
    return found


def check_table(found: Sequence[Check], source: Row) -> str:
    """Markdown table with one row per check."""
    lines = [_row("action", "bits a weight", "over the source", "at most", "nats over that", "held"), _rule(1, 5)]
    for each in found:
        action, held = each.row, "yes" if each.held else "no"
        increase = percent(action.alone, source.loss)
        lines.append(_row(f"`{action.name}`", f"{action.bits:.2f}", increase, each.bound, nats(each.over), held))
    return "\n".join(lines)


def percent(loss: Loss, base: Loss) -> str:
    """Increase of perplexity over a base, in percent."""
    return f"{100 * (loss.ppl / base.ppl - 1):+.2f}%"


def nats(difference: Difference) -> str:
    return f"{difference.mean:+.4f} ± {difference.error:.4f}"


def as_json(row: Row, source: Row) -> dict[str, Any]:
    """A row's figures as JSON; losses in nats per token."""
    over = difference(row.loss, source.loss)
    found: dict[str, Any] = {
        "name": row.name,
        "bits_per_weight": row.bits,
        "step_bytes": row.step_bytes,
        "ppl": row.loss.ppl,
        "ppl_stderr": row.loss.ppl_error,
        "over_source": over.mean,
        "over_source_stderr": over.error,
        "windows": len(row.loss.sums),
        "tokens": row.loss.tokens * len(row.loss.sums),
    }
    if row.whole is not None:
        whole = difference(row.whole, source.loss)
        found |= {"whole_ppl": row.whole.ppl, "whole_over_source": whole.mean, "whole_over_source_stderr": whole.error}
    if row.rates is not None:
        found |= {"tokens_per_second": list(row.rates)}
    return found


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(texts: int, numbers: int) -> str:
    return f"|{'---|' * texts}{'--:|' * numbers}"
