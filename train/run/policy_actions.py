"""Selection of the actions that a policy picks among."""

from __future__ import annotations

from collections.abc import Sequence

from sol_rt.budget.cost.model import CostModel
from sol_rt.budget.hull import Hull
from sol_rt.bundle.actions import Action
from sol_rt.bundle.config import SolConfig
from sol_rt.errors import UsageError


def policy_actions(
    config: SolConfig, cost: CostModel, tags: Sequence[str], contexts: Sequence[int]
) -> tuple[Action, ...]:
    """The actions of a policy, in the bundle's order.

    Args:
        config: the bundle's.
        cost: the cost model of the training.
        tags: the config's `policy.actions`.
        contexts: lengths in tokens at which the hull is taken where there are no tags.

    Returns:
        The actions of `tags`; without tags those on the lower hull of measured losses at any of the contexts, dense
        among them, because a mix of these loses least. A bundle without losses gives all its actions.

    Raises UsageError where a tag is none of the bundle's actions, dense is left out, or no other action is left.
    """
    known = tuple(entry.action for entry in config.actions)
    if tags:
        by_tag = {action.tag: action for action in known}
        for tag in tags:
            if tag not in by_tag:
                raise UsageError(f"policy.actions: got {tag}, expected actions of the bundle: {', '.join(by_tag)}")
        if config.dense.tag not in tags:
            raise UsageError(f"policy.actions: got {', '.join(tags)}, expected {config.dense.tag}, dense, among them")
        return tuple(action for action in known if action.tag in tags)
    if not config.losses_measured:
        return known
    hull = Hull(known, cost)
    members = {hull.actions[corner.place] for context in contexts for corner in hull.corners(context)}
    if len(members) < 2:
        raise UsageError(
            "policy.actions: by these costs no action saves anything over dense, so there is nothing to choose; name "
            "actions, or use other costs"
        )
    return tuple(action for action in known if action in members)
