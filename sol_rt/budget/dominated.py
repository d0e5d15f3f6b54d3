"""Actions that save nothing on a device: another of better quality costs no more there, at every context.

The export drops such actions by what it measured on its own processor. On a GPU other things pay: function bodies may
read as much for fewer channels or tokens as for all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from sol_rt.budget.cost.bytes_model import CostModel, FunctionBodyBytes
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import bits_name
from sol_rt.bundle.config import ActionEntry, SolConfig
from sol_rt.engine.providers import Provider

_NOISE = 0.01
"""Relative: savings below it are none."""
_CONTEXTS = 24


def replacements(config: SolConfig, cost: CostModel) -> dict[Action, Action]:
    """For every action but the dense one that saves nothing, the one of best quality that costs no more.

    Looked at are all KV densities of the action set with all variants, at contexts up to the model's.
    """
    actions = _candidates(config)
    losses = {entry.action: entry.loss for entry in config.actions if entry.loss is not None}
    contexts = np.unique(np.geomspace(1, max(config.model.max_context - 1, 2), _CONTEXTS).astype(np.int64))
    costs = dict(zip(actions, cost.table(actions)(contexts).T, strict=True))
    found: dict[Action, Action] = {}
    for action in actions:
        if action == config.dense:  # what budgets are shares of, and a budget of 1 promises
            continue
        no_dearer = [
            other
            for other in actions
            if other not in found
            and _better(other, action, losses, config)
            and (costs[other] <= costs[action] * (1 + _NOISE)).all()
        ]
        # the action that none of the others betters
        best = [other for other in no_dearer if not any(_better(third, other, losses, config) for third in no_dearer)]
        if best:
            found[action] = min(best, key=lambda other: (float(costs[other].sum()), other.tag))
    return {action: _last(found, action) for action in found}


def cost_of_gpu(provider: Provider, cost: CostModel, config: SolConfig) -> CostModel | None:
    """The cost model by which dominated actions are found on a GPU; None on the CPU and where nothing is known.

    Measured milliseconds where the GPU was calibrated, else, where function bodies run, the bytes that these read.
    """
    if provider.gpu is None:
        return None
    if cost.name == "calibrated":
        return cost
    return None if provider.native else FunctionBodyBytes(config)


def _candidates(config: SolConfig) -> list[Action]:
    """All KV densities of the action set, and 1, with all variants."""
    kv_densities = {entry.action.kv_density for entry in config.actions} | {1.0}
    return [
        Action(kv_density, variant.channel_density, variant.bits)
        for variant in config.variants.values()
        for kv_density in kv_densities
    ]


def _last(found: Mapping[Action, Action], action: Action) -> Action:
    """What stands for an action in the end: its replacement may itself have been replaced later."""
    while action in found:
        action = found[action]
    return action


def _better(one: Action, other: Action, losses: Mapping[Action, float], config: SolConfig) -> bool:
    """Whether `one` has the better quality: by what the export measured, else where it leaves out less."""
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
    """One line that names the actions of `replacements`; empty where there is none."""
    if not found:
        return ""
    named = [f"{action.tag} (over {found[action].tag})" for action in sorted(found, reverse=True)]
    shown = ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "")
    return f"on {provider} {len(named)} actions save nothing and are not used: {shown}"


def ineffective(
    config: SolConfig, cost: CostModel, schedule: str | None, targets: Mapping[str, float | None], provider: str
) -> str:
    """One line about what a user has chosen that saves nothing, though it is followed; empty where there is nothing.

    Args:
        config, cost: as of `replacements`.
        schedule: its name; looked at is the action of `fixed:TAG`.
        targets: mean `kv_density`, `channel_density` and `bits`, None where none was given.
        provider: for the line.
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
    """The actions with those that save nothing replaced, each in its place; some may come twice then."""
    return tuple(found.get(action, action) for action in actions)
