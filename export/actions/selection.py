"""Decides which of the measured candidate actions a bundle keeps, by loss and by bytes read, never by time.

Which action is fast depends on the machine, and a bundle is for every machine. Bytes are the same everywhere, and where
memory bandwidth is the limit they are what a step costs. Elsewhere times differ from bytes by some percent, so actions
near the hull are kept as well, and the runtime finds the hull by time where it runs.

At each context the hull is the lower convex hull of the points (bytes, loss): a schedule that takes two actions in turn
reaches every point between them. Let x be the fewest bytes at which a mix of the *other* actions loses no more than
action a does. The excess of a is

    max(0, 1 - x / bytes(a))

the share of its bytes that a would have to save to be on the hull; 0 for actions on it. Actions whose excess is at most
NEAR at any context are kept. Actions near the hull of the actions that read all tokens, at the shortest context, stay
too. There, and on hosts without native operators, lower KV densities save little or nothing.

Where a model of many layers or few KV heads is fast to read, its attention is arithmetic: a byte of the cache then
takes as long as several of the weights. So the hulls count twice, also with DEAR times the cache's bytes.

If these are too many, those are removed in turn that raise the hulls least; of actions that raise none, the one of the
largest excess goes first.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sol_rt.budget.hull import falling_hull, lower_hull
from sol_rt.bundle.actions import Action
from sol_rt.bundle.selection import Measured

NEAR = 0.1
"""The largest excess of a kept action.

Between actions that read as many bytes, times of a step differ by up to a tenth: single rows of a matrix come slower
from memory than whole matrices, and scoring old tokens is arithmetic.
"""

DEAR = 8
"""Bytes of weights that take as long as a byte of the KV cache, where attention is slowest."""

_LEAST_RISE = 1e-9  # less is rounding
_LEAST_LOSS = 0.002  # nats; what a hull adds below it hardly counts
_MIX = "a mix of two others loses"

Front = Mapping[Action, Measured]
"""The actions measured at one context, with the dense action among them."""


@dataclass(frozen=True)
class Verdict:
    """Decision to keep an action or not, with the reason in a few words."""

    kept: bool
    reason: str


def choose(
    fronts: Mapping[int, Front],
    dense: Action,
    max_actions: int,
    *,
    weight_bytes: Mapping[str, int] = {},
    collapse_loss: float = math.inf,
    required: Collection[Action] = (),
) -> dict[Action, Verdict]:
    """Decides on every measured action.

    Args:
        fronts: by context in tokens, the actions measured there.
        dense: the dense action, which is always kept.
        max_actions: most actions to keep, 1 or more. Required ones are kept even beyond it, and so is the cheapest at
            each context if it is 2 or more.
        weight_bytes: bytes that a step of each variant reads of the weights; the rest of an action's are the cache's.
            Without them no hull counts the cache's bytes several times.
        collapse_loss: added loss in nats per token. An action that loses more at a context is not kept for that
            context.
        required: actions that are kept in any case.

    Returns:
        A verdict on every action of `fronts`, in descending order of the actions.
    """
    useful = {context: _useful(front, dense, collapse_loss) for context, front in fronts.items()}
    views = _views(useful) | _dear_views(useful, weight_bytes)
    excess = {view: _excess(front, dense) for view, front in views.items()}
    near = {action for found in excess.values() for action, share in found.items() if share <= NEAR}
    found = near | set(required) | {dense}
    kept, costs = _within_limit(views, excess, found, dense, max_actions, set(required))
    verdicts = {}
    for action in sorted({action for front in fronts.values() for action in front} | found, reverse=True):
        if action == dense:
            verdicts[action] = Verdict(True, "dense")
        elif action in required:
            verdicts[action] = Verdict(True, "the policy picks it")
        elif action in kept:
            verdicts[action] = Verdict(True, _why_kept(action, excess))
        elif action in near:
            verdicts[action] = Verdict(False, f"over the limit of {max_actions} actions: {costs[action]}")
        else:
            verdicts[action] = Verdict(False, _why_dropped(action, fronts, excess, collapse_loss))
    return verdicts


def near_hull(front: Front, dense: Action, collapse_loss: float, margin: float = NEAR) -> set[Action]:
    """The actions of one context whose excess is at most `margin` and whose added loss is at most `collapse_loss`.

    The dense action is among them.
    """
    return {a for a, share in _excess(_useful(front, dense, collapse_loss), dense).items() if share <= margin} | {dense}


def excess_bytes(point: Measured, others: Collection[Measured]) -> float:
    """The share of its bytes that an action would have to save so that no mix of the others does as well for fewer."""
    corners = falling_hull((other.bytes, other.loss) for other in others)
    if point.loss < corners[-1][1]:
        return 0.0
    return max(0.0, 1 - _bytes_at(corners, point.loss) / point.bytes)


def _bytes_at(corners: Sequence[tuple[float, float]], loss: float) -> float:
    """The fewest bytes at which a falling hull of (bytes, loss) corners loses no more than `loss`."""
    for (size, top), (next_size, bottom) in itertools.pairwise(corners):
        if bottom <= loss < top:
            # np.interp divides bytes by the loss between two corners, which overflows where that is all but nothing.
            return size + (top - loss) / (top - bottom) * (next_size - size)
    return corners[0][0]


def _views(fronts: Mapping[int, Front]) -> dict[str, Front]:
    """The sets of actions whose hulls count, by name."""
    views = {f"at {context}": front for context, front in fronts.items()}
    short = min(fronts)
    plain = {action: point for action, point in fronts[short].items() if action.kv_density == 1.0}
    if plain.keys() != fronts[short].keys():
        views[f"at {short} without lower KV densities"] = plain
    return views


def _dear_views(fronts: Mapping[int, Front], weight_bytes: Mapping[str, int]) -> dict[str, Front]:
    """The fronts with DEAR times the bytes of the KV cache, of actions measured at the longest context, too."""
    longest = fronts[max(fronts)]
    return {
        f"at {context} where the cache is slow": {
            action: replace(point, bytes=DEAR * point.bytes - (DEAR - 1) * weight_bytes[action.variant])
            for action, point in front.items()
            if action in longest
        }
        for context, front in fronts.items()
        if weight_bytes and any(action.kv_density < 1 for action in front)
    }


def _useful(front: Front, dense: Action, collapse_loss: float) -> Front:
    return {action: point for action, point in front.items() if action == dense or point.loss <= collapse_loss}


def _excess(front: Front, dense: Action) -> dict[Action, float]:
    """The excess of every action but the dense one."""
    return {
        action: excess_bytes(point, [other for by, other in front.items() if by != action])
        for action, point in front.items()
        if action != dense
    }


def _why_kept(action: Action, excess: Mapping[str, Mapping[Action, float]]) -> str:
    shares = {view: found[action] for view, found in excess.items() if action in found}
    on = [view for view, share in shares.items() if share == 0]
    if on:
        return f"on the hull {' and '.join([', '.join(on[:-1]), on[-1]] if len(on) > 1 else on)}"
    view, share = min(shares.items(), key=lambda item: item[1])
    return f"near the hull {view}: {_MIX} as little and reads {share:.1%} fewer bytes"


def _why_dropped(
    action: Action, fronts: Mapping[int, Front], excess: Mapping[str, Mapping[Action, float]], collapse_loss: float
) -> str:
    shares = {view: found[action] for view, found in excess.items() if action in found}
    if not shares:
        context, loss = next((at, front[action].loss) for at, front in fronts.items() if action in front)
        return (
            f"the output collapses at {context}: {loss:.3g} nats over dense, more than {collapse_loss:.3g}, half the "
            "information gained from context"
        )
    view, share = min(shares.items(), key=lambda item: item[1])
    return f"{_MIX} as little {view} and reads {share:.0%} fewer bytes"


def _within_limit(
    views: Mapping[str, Front],
    excess: Mapping[str, Mapping[Action, float]],
    found: set[Action],
    dense: Action,
    max_actions: int,
    required: set[Action],
) -> tuple[set[Action], dict[Action, str]]:
    """Removes actions one by one, each time the one whose removal raises the hulls least.

    Returns the actions that stay, and for each removed one what its removal cost.
    """
    bound = required | {dense}
    if max_actions > 1:
        for front in views.values():
            candidates = [action for action in found if action in front and action != dense]
            bound |= {min(candidates, key=lambda action: (front[action].bytes, action))} if candidates else set()
    kept, costs = set(found), {}
    while len(kept) > max_actions and kept - bound:
        rises = {action: _rise(views, kept, action, dense) for action in kept - bound}
        shares = {action: min(found[action] for found in excess.values() if action in found) for action in rises}
        least = min(rises, key=lambda action: (rises[action], -shares[action], action))
        kept.remove(least)
        costs[least] = (
            f"without it the best mixes lose {math.expm1(rises[least]):.1%} more"
            if rises[least] > 0
            else f"{_MIX} as little and reads {shares[least]:.1%} fewer bytes"
        )
    return kept, costs


def _rise(views: Mapping[str, Front], kept: set[Action], without: Action, dense: Action) -> float:
    """Rise of the hull by the removal of the action `without`: mean of log(loss + _LEAST_LOSS), summed over the views.

    The mean is over the range of relative costs. In nats, hulls would count most where text falls apart.
    """
    area = 0.0
    for front in views.values():
        if without not in front:
            continue
        points = {
            action: (front[action].bytes / front[dense].bytes, front[action].loss) for action in kept if action in front
        }
        rest = lower_hull(point for action, point in points.items() if action != without)
        with_it = lower_hull(points.values())
        low, high = with_it[0][0], with_it[-1][0]
        if high > low:
            grid = sorted({min(max(at, low), high) for hull in (rest, with_it) for at, _ in hull})
            rise = np.log(_height(rest, grid) / _height(with_it, grid))
            area += float(((rise[1:] + rise[:-1]) / 2 * np.diff(grid)).sum()) / (high - low)
    return area if area > _LEAST_RISE else 0.0


def _height(hull: Sequence[tuple[float, float]], at: Sequence[float]) -> np.ndarray:
    return np.maximum(np.interp(at, [x for x, _ in hull], [y for _, y in hull]), 0.0) + _LEAST_LOSS
