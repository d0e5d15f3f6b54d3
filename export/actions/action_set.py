"""Gives a bundle its action set: keeps the best of the measured candidates, and records why in selection.json.

measuring.py measures, selection.py decides. Without calibration nothing is measured, and only `without_dominated_bits`
drops actions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import bits_name
from sol_rt.bundle.config import ActionEntry, SolConfig
from sol_rt.bundle.selection import SELECTION, Candidate, Selection, Setting
from sol_rt.export.actions.measuring import Measurements
from sol_rt.export.actions.selection import Front, Verdict, choose
from sol_rt.export.parity import Parity


@dataclass(frozen=True)
class ActionSet:
    """A bundle's config with the chosen actions, and the measurements behind the choice."""

    config: SolConfig
    selection: Selection


def choose_actions(folder: Path, config: SolConfig, measured: Measurements, origin: str, max_actions: int) -> ActionSet:
    """Keeps the best of the candidate actions of the bundle in `folder`, and writes selection.json.

    Args:
        folder: a bundle whose weights are final. Graphs that no kept action runs are removed from it.
        config: the bundle's config, whose actions are the candidates. The policy's actions are kept too.
        measured: the measurements of the candidates and of the policy's actions.
        origin: where the scored text comes from, in a few words.
        max_actions: most actions to keep.

    Returns:
        The config with the kept actions, their losses by context, and their variants. It is not written to
        sol_config.json.
    """
    required = () if config.policy is None else config.policy.actions
    candidates = sorted({entry.action for entry in config.actions} | set(required), reverse=True)
    fronts = {
        context: {action: point for action, point in front.items() if action in candidates}
        for context, front in measured.fronts.items()
    }
    verdicts = choose(
        fronts,
        config.dense,
        max_actions,
        weight_bytes={key: variant.weight_bytes for key, variant in config.variants.items()},
        collapse_loss=measured.collapse_loss,
        required=required,
    )
    selection = Selection(
        dense=config.dense,
        text=origin,
        max_actions=max_actions,
        collapse_loss=measured.collapse_loss if math.isfinite(measured.collapse_loss) else None,
        contexts={context: Setting(measured.tokens[context], loss) for context, loss in measured.dense_loss.items()},
        candidates=tuple(_candidate(action, verdicts, fronts) for action in candidates),
    )
    (folder / SELECTION).write_text(selection.to_json(), encoding="utf-8")
    return ActionSet(_with_actions(folder, config, selection), selection)


def report_lines(selection: Selection) -> list[str]:
    """The result for people, in one line."""
    kept = [candidate for candidate in selection.candidates if candidate.kept]
    return [f"kept {len(kept)} of {len(selection.candidates)} actions; sol-rt inspect --all gives the reasons"]


def without_dominated_bits(folder: Path, config: SolConfig, parity: Parity) -> tuple[SolConfig, tuple[str, ...]]:
    """Drops bits beside which fewer bytes lose less, for exports without calibration.

    Bits are dominated if others read less and are closer to the source beyond doubt. The dense bits stay, and so do
    those that the policy picks. Graphs of dropped bits are removed from `folder`.

    Returns:
        The config without the dropped bits, and one line for each of them.
    """
    rows = {config.variants[row.variant].bits: row for row in parity.rows}
    sizes = {
        variant.bits: variant.weight_bytes for variant in config.variants.values() if variant.channel_density == 1.0
    }
    picked = {action.bits for action in config.policy.actions} if config.policy else set()
    dropped, reasons = set(), []
    for bits in sorted(set(rows) - {config.dense.bits} - picked, reverse=True):
        cheaper = [other for other in rows if sizes[other] < sizes[bits]]
        better = min(cheaper, key=lambda other: rows[other].kl, default=None)
        if better is not None and rows[better].is_beyond_doubt_closer_than(rows[bits]):
            dropped.add(bits)
            reasons.append(
                f"{bits_name(bits)} bits dropped: {bits_name(better)} bits are cheaper and closer "
                f"({rows[better].kl:.3g} to {rows[bits].kl:.3g} nats)"
            )
    for variant in config.variants.values():
        if variant.bits in dropped:
            (folder / variant.file).unlink(missing_ok=True)
    variants = {key: variant for key, variant in config.variants.items() if variant.bits not in dropped}
    actions = tuple(entry for entry in config.actions if entry.action.bits not in dropped)
    return replace(config, variants=variants, actions=actions), tuple(reasons)


def _candidate(action: Action, verdicts: Mapping[Action, Verdict], fronts: Mapping[int, Front]) -> Candidate:
    at = {context: front[action] for context, front in fronts.items() if action in front}
    verdict, short = verdicts.get(action), min(fronts)
    if verdict is None:
        sparse = any(other.kv_density < 1 for front in fronts.values() for other in front)
        reason = (
            f"{action.variant} is far from the hull at {short}"
            if sparse or action.kv_density == 1
            else f"text or model end at {short} tokens, where a lower KV density saves little"
        )
        verdict = Verdict(False, f"not measured: {reason}")
    return Candidate(action, verdict.kept, verdict.reason, at)


def _with_actions(folder: Path, config: SolConfig, selection: Selection) -> SolConfig:
    kept = [candidate for candidate in selection.candidates if candidate.kept]
    actions = []
    for candidate in sorted(kept, key=lambda candidate: _order(candidate.action)):
        losses = {context: point.loss for context, point in sorted(candidate.at.items())}
        longest = losses.get(max(selection.contexts))
        actions.append(ActionEntry(candidate.action, longest, losses))
    wanted = {entry.action.variant for entry in actions}
    variants = {key: variant for key, variant in config.variants.items() if key in wanted}
    for file in {variant.file for variant in config.variants.values()} - {item.file for item in variants.values()}:
        (folder / file).unlink()
    return replace(config, actions=tuple(actions), variants=variants)


def _order(action: Action) -> tuple[int, float, float]:
    return -action.bits, -action.channel_density, -action.kv_density
