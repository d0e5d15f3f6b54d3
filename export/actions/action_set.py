"""Gives a bundle its action set: measures the candidates, keeps the best, and records why in selection.json.

measuring.py measures, selection.py decides. Without calibration nothing is measured, and only `without_dominated_bits`
drops actions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import bits_name
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import ActionEntry, SolConfig
from sol_rt.bundle.selection import SELECTION, Candidate, Measured, Selection, Setting
from sol_rt.export.actions.calibration_text import CalibrationText
from sol_rt.export.actions.measuring import Measurements, measure
from sol_rt.export.actions.selection import Verdict, choose
from sol_rt.export.parity import Parity
from sol_rt.store.progress import Progress

BUSY = 0.25
"""The `Selection.slowdown` above which the report says that the machine was not idle."""


@dataclass(frozen=True)
class ActionSet:
    """A bundle's config with the chosen actions, and the measurements behind the choice."""

    config: SolConfig
    selection: Selection


def choose_actions(
    folder: Path,
    config: SolConfig,
    text: CalibrationText,
    max_actions: int,
    progress: Progress,
    *,
    own_text: bool = False,
) -> ActionSet:
    """Measures the candidate actions of the bundle in `folder`, keeps the best, and writes selection.json.

    Args:
        folder: a bundle whose weights are final. Graphs that no kept action runs are removed from it.
        config: the bundle's config, whose actions are the candidates. The policy's actions are measured and kept too.
        text: the text to measure losses on.
        max_actions: most actions to keep.
        progress: reports how far the work is.
        own_text: the model wrote the text; see `measure`.

    Returns:
        The config with the kept actions, their losses at the longest context measured, and their variants. It is not
        written to sol_config.json.
    """
    required = () if config.policy is None else config.policy.actions
    kv_densities = sorted({entry.action.kv_density for entry in config.actions}, reverse=True)
    bundle = Bundle.open(folder)
    measured = measure(bundle, text, kv_densities, progress, own_text=own_text, required=required)
    verdicts = choose(
        measured.fronts, config.dense, max_actions, collapse_loss=measured.collapse_loss, required=required
    )
    candidates = sorted({entry.action for entry in config.actions} | set(required), reverse=True)
    selection = Selection(
        dense=config.dense,
        text=text.origin,
        device=measured.device,
        slowdown=measured.slowdown,
        max_actions=max_actions,
        collapse_loss=measured.collapse_loss if math.isfinite(measured.collapse_loss) else None,
        contexts={context: Setting(measured.tokens(context), loss) for context, loss in measured.dense_loss.items()},
        candidates=tuple(_candidate(action, verdicts, measured) for action in candidates),
    )
    (folder / SELECTION).write_text(selection.to_json(), encoding="utf-8")
    return ActionSet(_with_actions(folder, config, selection), selection)


def report_lines(selection: Selection) -> list[str]:
    """The result for people: a few short lines."""
    kept = [candidate for candidate in selection.candidates if candidate.kept]
    lines = [f"kept {len(kept)} of {len(selection.candidates)} actions; sol-rt inspect --all gives the reasons"]
    if selection.slowdown > BUSY:
        lines.append(
            f"this machine was busy: a step often took {selection.slowdown:.0%} longer than it needs, so the "
            "choice may be off; export again when it is idle"
        )
    return lines


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


def _candidate(action: Action, verdicts: dict[Action, Verdict], measured: Measurements) -> Candidate:
    at = {
        context: Measured(front[action].ms, front[action].loss, front[action].stderr)
        for context, front in measured.fronts.items()
        if action in front
    }
    verdict, short = verdicts.get(action), min(measured.fronts)
    if verdict is None and len(measured.fronts) == 1:
        verdict = Verdict(
            False, f"not measured: text or model end at {short} tokens, where a lower KV density saves little"
        )
    elif verdict is None:
        verdict = Verdict(False, f"not measured: {action.variant} was dropped at {short}")
    return Candidate(action, verdict.kept, verdict.reason, at)


def _with_actions(folder: Path, config: SolConfig, selection: Selection) -> SolConfig:
    longest = max(selection.contexts)
    kept = [candidate for candidate in selection.candidates if candidate.kept]
    actions = []
    for candidate in sorted(kept, key=lambda candidate: _order(candidate.action)):
        point = candidate.at.get(longest)
        actions.append(ActionEntry(candidate.action, None if point is None else point.loss))
    wanted = {entry.action.variant for entry in actions}
    variants = {key: variant for key, variant in config.variants.items() if key in wanted}
    for file in {variant.file for variant in config.variants.values()} - {item.file for item in variants.values()}:
        (folder / file).unlink()
    return replace(config, actions=tuple(actions), variants=variants)


def _order(action: Action) -> tuple[int, float, float]:
    return -action.bits, -action.channel_density, -action.kv_density
