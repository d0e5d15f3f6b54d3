"""Decides which of the measured candidate actions a bundle keeps.

At each context, let t be the time of a step and l(i) the loss at token i = 1 … n. Action a makes action b unnecessary
if

    t(a) < t(b) / (1 + TIE)      and a is not measurably worse,
    or t(a) <= t(b) (1 + TIE)    and a is measurably better, or not measurably worse and simpler.

a is measurably better if the mean of d(i) = l_b(i) - l_a(i) is more than SIGNIFICANCE times its standard error,
std(d) / sqrt(n); measurably worse if the mean is below minus that.

Actions that remain at any context are kept. If they are too many, those are removed in turn that raise the lower convex
hull of the points (time, loss) least. A schedule that mixes two actions reaches every point on the line between them,
so what lies above the hull is not needed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sol_rt.budget.frontier import lower_hull
from sol_rt.bundle.actions import Action

SIGNIFICANCE = 2.0
TIE = 0.02
"""Times that differ by less than this share count as equal: repeated timings of one action differ as much."""


@dataclass(frozen=True)
class Point:
    """One action measured at one context.

    Attributes:
        ms: milliseconds of a decode step.
        added: added loss over dense of each scored token in nats, float64 [n]. All actions of a context are scored on
            the same tokens.
    """

    ms: float
    added: np.ndarray

    @property
    def loss(self) -> float:
        """Mean added loss over dense, nats per token."""
        return float(self.added.mean())

    @property
    def stderr(self) -> float:
        """The standard error of `loss`."""
        return _stderr(self.added)


Front = Mapping[Action, Point]
"""The actions measured at one context, with the dense action among them."""


@dataclass(frozen=True)
class Verdict:
    """Whether an action is kept, and the reason in a few words."""

    kept: bool
    reason: str


def choose(
    fronts: Mapping[int, Front],
    dense: Action,
    max_actions: int,
    *,
    collapse_loss: float = math.inf,
    required: Collection[Action] = (),
) -> dict[Action, Verdict]:
    """Decides on every measured action.

    Args:
        fronts: by context in tokens, the actions measured there.
        dense: the dense action, which is always kept.
        max_actions: most actions to keep, 1 or more. Required ones are kept even beyond it, and so is the fastest at
            each context if it is 2 or more.
        collapse_loss: added loss in nats per token. An action that loses more at a context is not kept for that
            context.
        required: actions that are kept in any case.

    Returns:
        A verdict on every action of `fronts`, in descending order of the actions.
    """
    verdicts = {dense: Verdict(True, "dense")}
    verdicts |= {action: Verdict(True, "the policy picks it") for action in required if action != dense}
    dropped: dict[Action, str] = {}
    useful: dict[int, dict[Action, Point]] = {}
    for context, front in fronts.items():
        useful[context] = {}
        for action, point in front.items():
            if action != dense and point.loss > collapse_loss:
                dropped[action] = (
                    f"the output collapses at {context}: {point.loss:.3g} nats over dense, more than "
                    f"{collapse_loss:.3g}, half the information gained from context"
                )
            else:
                useful[context][action] = point
    pareto: dict[int, set[Action]] = {}
    for context, front in useful.items():
        pareto[context], reasons = _undominated(front, dense, context)
        dropped |= {action: reason for action, reason in reasons.items() if action not in dropped}
    found = {action for front in pareto.values() for action in front} | set(required) | {dense}
    kept, costs = _within_limit({c: useful[c] for c in pareto}, found, dense, max_actions, set(required), pareto)
    for action in found - set(verdicts):
        if action in kept:
            at = [str(context) for context in fronts if action in pareto[context]]
            verdicts[action] = Verdict(True, f"best of its speed at {' and '.join(at)}")
        else:
            verdicts[action] = Verdict(False, f"over the limit of {max_actions}: without it {costs[action]}")
    for action, reason in dropped.items():
        verdicts.setdefault(action, Verdict(False, reason))
    return dict(sorted(verdicts.items(), reverse=True))


def worth_keeping(front: Front, dense: Action, collapse_loss: float) -> set[Action]:
    """The actions of one context that no other makes unnecessary and whose added loss is at most `collapse_loss`."""
    return _undominated({a: p for a, p in front.items() if a == dense or p.loss <= collapse_loss}, dense, 0)[0]


def makes_unnecessary(one: Point, other: Point, one_is_simpler: bool) -> bool:
    """Whether the action measured as `one` makes that measured as `other` unnecessary, by the rule of this module."""
    if one.ms > other.ms * (1 + TIE):
        return False
    gain, error = float((other.added - one.added).mean()), _stderr(other.added - one.added)
    better = gain > SIGNIFICANCE * error
    worse = -gain > SIGNIFICANCE * error
    if one.ms < other.ms / (1 + TIE):
        return not worse
    return better or (not worse and one_is_simpler)


def _simplicity(action: Action) -> tuple[int, int, float, float]:
    """A sort key: actions with fewer densities below 1 come first, then those of fewer bits and lower densities."""
    below = (action.kv_density < 1.0) + (action.channel_density < 1.0)
    return below, action.bits, action.channel_density, action.kv_density


def _undominated(front: Front, dense: Action, context: int) -> tuple[set[Action], dict[Action, str]]:
    """The actions that no other kept one makes unnecessary, and the reason for each of the others."""
    left = dict(front)
    kept: set[Action] = set()
    reasons: dict[Action, str] = {}

    def beaten(action: Action, by: Action) -> bool:
        if action in (by, dense):
            return False
        return makes_unnecessary(front[by], front[action], _simplicity(by) < _simplicity(action))

    while left:
        # noise can make the relation circular; then the simplest action of the circle wins
        free = [action for action in left if not any(beaten(action, by) for by in left)]
        winner = min(free or left, key=_simplicity)
        kept.add(winner)
        del left[winner]
        for action in [action for action in left if beaten(action, winner)]:
            reasons[action] = _why(front, winner, action, context)
            del left[action]
    return kept, reasons


def _why(front: Front, winner: Action, action: Action, context: int) -> str:
    one, other = front[winner], front[action]
    difference = one.added - other.added
    return (
        f"{winner.tag} does as well at {context}: {one.ms:.3g} ms for {other.ms:.3g}, "
        f"{difference.mean():+.2g} ± {_stderr(difference):.1g} nats"
    )


def _within_limit(
    fronts: Mapping[int, Front],
    found: set[Action],
    dense: Action,
    max_actions: int,
    required: set[Action],
    pareto: Mapping[int, set[Action]],
) -> tuple[set[Action], dict[Action, str]]:
    """Removes actions one by one, each time the one whose removal raises the hulls least.

    Returns the actions that stay, and for each removed one what its removal cost.
    """
    bound = required | {dense}
    if max_actions > 1:
        for context, front in fronts.items():
            candidates = [action for action in found if action in pareto[context] and action != dense]
            bound |= {min(candidates, key=lambda action: front[action].ms)} if candidates else set()
    kept, costs = set(found), {}
    while len(kept) > max_actions and kept - bound:
        rises = {action: _rise(fronts, kept, action, dense) for action in kept - bound}
        least = min(rises, key=lambda action: (rises[action], action))
        kept.remove(least)
        area, height = rises[least]
        costs[least] = (
            f"the frontier rises by {area:.2g} nats" if area > 0 else f"nothing rises, it is {-height:.2g} nats above"
        )
    return kept, costs


def _rise(fronts: Mapping[int, Front], kept: set[Action], without: Action, dense: Action) -> tuple[float, float]:
    """What removing the action `without` costs: (area, -height), each summed over the contexts where it was measured.

    The area is the mean rise of the hull in nats, over the range of relative costs. The height is how far the action
    lies above the hull of the others, for actions whose removal does not raise it.
    """
    area = height = 0.0
    for front in fronts.values():
        if without not in front:
            continue
        points = {
            action: (front[action].ms / front[dense].ms, front[action].loss) for action in kept if action in front
        }
        rest = lower_hull(point for action, point in points.items() if action != without)
        x, y = points[without]
        with_it = lower_hull(points.values())
        low, high = with_it[0][0], with_it[-1][0]
        if high > low:
            grid = sorted({min(max(at, low), high) for hull in (rest, with_it) for at, _ in hull})
            rise = _height(rest, grid) - _height(with_it, grid)
            area += float(((rise[1:] + rise[:-1]) / 2 * np.diff(grid)).sum()) / (high - low)
        height += max(0.0, y - float(_height(rest, [x])[0]))
    return area, -height


def _height(hull: Sequence[tuple[float, float]], at: Sequence[float]) -> np.ndarray:
    return np.interp(at, [x for x, _ in hull], [y for _, y in hull])


def _stderr(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.inf
