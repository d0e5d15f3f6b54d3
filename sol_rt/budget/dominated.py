"""Dominated actions: beside such an action, another one of better quality costs no more, at every context.

The export drops the actions that are dominated on the processor that it runs on. On a GPU a different set is
dominated: function bodies there may read as much for fewer channels or tokens as for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from sol_rt.budget.cost.model import CostModel, FunctionBodyBytes
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import bits_name
from sol_rt.bundle.config import ActionEntry, SolConfig
from sol_rt.engine.providers import Provider

_NOISE = 0.01
"""Relative saving below which an action counts as saving nothing."""
_CONTEXTS = 24


def replacements(config: SolConfig, cost: CostModel) -> dict[Action, Action]:
    """Every dominated action, with the action of best quality that costs no more. The dense action is never among them.

    Compares all variants at all KV densities of the action set, at contexts up to the model's longest.
    """
    actions = _candidates(config)
    losses = {entry.action: entry.loss for entry in config.actions if entry.loss is not None}
    contexts = np.unique(np.geomspace(1, max(config.model.max_context - 1, 2), _CONTEXTS).astype(np.int64))
    costs = dict(zip(actions, cost.table(actions)(contexts).T, strict=True))
    found: dict[Action, Action] = {}
    for action in actions:
        if action == config.dense:  # budgets are shares of its cost, and a budget of 1 promises to run it
            continue
        no_dearer = [
            other
            for other in actions
            if other not in found
            and _better(other, action, losses, config)
            and (costs[other] <= costs[action] * (1 + _NOISE)).all()
        ]
        # those than which no other one is better
        best = [other for other in no_dearer if not any(_better(third, other, losses, config) for third in no_dearer)]
        if best:
            found[action] = min(best, key=lambda other: (float(costs[other].sum()), other.tag))
    return {action: _last(found, action) for action in found}


def cost_of_gpu(provider: Provider, cost: CostModel, config: SolConfig) -> CostModel | None:
    """The cost model by which dominated actions are found on a GPU; None on the CPU and where nothing is known.

    Measured milliseconds where the GPU was measured, else, where function bodies run, the bytes that these read.
    """
    if provider.gpu is None:
        return None
    if cost.name == "measured":
        return cost
    return None if provider.native else FunctionBodyBytes(config)


def _candidates(config: SolConfig) -> list[Action]:
    """Every variant at every KV density of the action set, and at 1."""
    kv_densities = {entry.action.kv_density for entry in config.actions} | {1.0}
    return [
        Action(kv_density, variant.channel_density, variant.bits)
        for variant in config.variants.values()
        for kv_density in kv_densities
    ]


def _last(found: Mapping[Action, Action], action: Action) -> Action:
    """The final replacement of an action: its first one may itself have been replaced later."""
    while action in found:
        action = found[action]
    return action


def _better(one: Action, other: Action, losses: Mapping[Action, float], config: SolConfig) -> bool:
    """True if `one` has better quality than `other`.

    Decided by the losses that the export measured; without them, by which of the two reads more on every axis.
    """
    if one == other:
        return False
    if one in losses and other in losses:
        return losses[one] < losses[other]
    if one.kv_density < other.kv_density or one.channel_density < other.channel_density:
        return False
    precision, others = (config.variants[action.variant].precision for action in (one, other))
    layers = range(config.model.num_layers)
    return all(a >= b for layer in layers for a, b in zip(precision.layer(layer), others.layer(layer), strict=True))


def describe(found: Mapping[Action, Action], provider: str) -> str:
    """One line that names the dominated actions in `found`, which `replacements` returned; empty if there is none."""
    if not found:
        return ""
    named = [f"{action.tag} (over {found[action].tag})" for action in sorted(found, reverse=True)]
    shown = ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "")
    return f"on {provider} {len(named)} actions save nothing: {shown}"


def ineffective(
    config: SolConfig, cost: CostModel, schedule: str | None, targets: Mapping[str, float | None], provider: str
) -> str:
    """One line about options of the user that save nothing on this device; empty if all of them save something.

    Args:
        config, cost: the bundle's config, and the cost model of the device.
        schedule: name of the schedule. Of `fixed:TAG` the action is looked at, of others nothing.
        targets: mean `kv_density`, `channel_density` and `bits`, None where none was given.
        provider: name of the provider, for the line.
    """
    if schedule is not None and schedule.startswith("fixed:"):
        action = Action.parse(schedule.removeprefix("fixed:"))
        if action.variant not in config.variants:
            return ""
        asked = replace(config, actions=(*config.actions, ActionEntry(action, None)))
        instead = replacements(asked, cost).get(action)
        return (
            "" if instead is None else f"on {provider} {action.tag} saves nothing over {instead.tag}; it runs as asked"
        )
    if all(target is None for target in targets.values()):
        return ""
    found = replacements(config, cost)
    pays = [action for action in _candidates(config) if action not in found]
    useless = []
    for axis, target in targets.items():
        settings = {getattr(action, axis) for action in found} - {getattr(action, axis) for action in pays}
        if target is not None and settings:
            named = (bits_name(setting) if axis == "bits" else setting for setting in sorted(settings))
            useless.append(f"--{axis.replace('_', '-')} {', '.join(map(str, named))}")
    return f"on {provider} no step saves time by {' or '.join(useless)}; it is followed as asked" if useless else ""


def without_dominated(actions: Sequence[Action], found: Mapping[Action, Action]) -> tuple[Action, ...]:
    """The actions in their order, each dominated one replaced. An action may then come twice."""
    return tuple(found.get(action, action) for action in actions)
