"""Describes a bundle without running it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sol_rt.budget.cost.cost_table import cpu_device, stored_cost
from sol_rt.budget.cost.model import BytesCost, CostModel
from sol_rt.budget.dial import DEFAULT_MAX_LOSS, budget_of_loss, sensible_budget
from sol_rt.budget.hull import measured_hull
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import THREE, bits_name, is_of_screen
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import FORMAT_VERSION, SolConfig, Variant, screened_bytes
from sol_rt.bundle.selection import Selection
from sol_rt.evaluation.footprint import footprint, usual_contexts, windowed_layers
from sol_rt.evaluation.frontier import RelativeCost, frontier


def describe(path: Path, context: int = 512) -> dict[str, Any]:
    """Describes a bundle as `sol-rt inspect --json` prints it.

    Args:
        path: bundle folder.
        context: tokens in the cache before the step whose costs are given, or as many as the bundle takes.

    Returns:
        path, format_version, model, kv, variants, policy (null or its description), context (of the costs), actions,
        cost_model, memory and selection. `memory` has by context the bytes of main memory that running the bundle
        takes: see `Footprint`.
        Of an action, `cost` is its share of the dense step's cost, `bytes` the bytes that its step reads by the bytes
        model, `loss` its loss in nats over dense or null, and `measured` what selection.json says of it, by context:
        `cost`, the share of the dense step's bytes, `bytes`, `loss` and `stderr`. `budgets` has by context the budgets
        of the bundle on this device: `cheapest`, `sensible` (perplexity at most 10% over dense) and `default` (what
        runs if nothing is asked for); it is empty if the export measured no losses.
        `selection` is null if the export measured nothing. Otherwise it holds how candidates were measured, and every
        candidate with the reason why it was kept or dropped.

    Raises:
        BundleError: the folder holds no valid bundle.
    """
    bundle = Bundle.open(path)
    config = bundle.config
    context = min(context, config.model.max_context - 1)
    cost, size = cost_here(bundle), BytesCost(config)
    dense = cost.dense(context)
    selection = Selection.of(bundle)
    measured = {} if selection is None else _measurements(selection)
    return {
        "path": str(path),
        "format_version": FORMAT_VERSION,
        "model": asdict(config.model),
        "kv": asdict(config.kv),
        "variants": [
            {
                "key": key,
                "channel_density": entry.channel_density,
                "bits": bits_name(entry.bits),
                "lm_head_bits": entry.lm_head_bits,
                "lm_head_screen": _screen(config, entry),
                "layer_bits": entry.layer_bits,
                "file": entry.file,
                "bytes": entry.weight_bytes,
            }
            for key, entry in config.variants.items()
        ],
        "policy": config.policy.description if config.policy else None,
        "context": context,
        "actions": [
            {
                "tag": entry.action.tag,
                "cost": cost.step(entry.action, context) / dense,
                "loss": entry.loss,
                "bytes": round(size.step(entry.action, context)),
                "measured": measured.get(entry.action.tag, {}),
            }
            for entry in config.actions
        ],
        "cost_model": cost.name,
        "memory": {str(at): footprint(config, at).to_json_dict() for at in usual_contexts(config.model.max_context)},
        "windows": [asdict(layers) for layers in windowed_layers(config)],
        "budgets": _budgets(cost),
        "selection": None if selection is None else _selection(selection, measured),
    }


def cost_here(bundle: Bundle) -> CostModel:
    """The cost model of the bundle on this machine's CPU, in whose unit commands count budgets here."""
    return stored_cost(bundle, cpu_device())


def relative_cost(bundle: Bundle) -> tuple[str, RelativeCost | None]:
    """Name of `cost_here`, and the costs by it, which are known of the bundle's variants; None for costs in bytes."""
    cost, variants = cost_here(bundle), bundle.config.variants
    if cost.name == "bytes":
        return cost.name, None

    def relative(action: Action, context: int) -> float | None:
        return cost.step(action, context) / cost.dense(context) if action.variant in variants else None

    return cost.name, relative


def _screen(config: SolConfig, variant: Variant) -> dict[str, float] | None:
    """Describes the screen of the LM head: candidates, tail offset, bits of the first pass, and the bytes that it
    saves.

    The saving is over a step that reads the whole matrix at `lm_head_bits`. None without a screen.
    """
    screen = variant.lm_head_screen
    if screen is None:
        return None
    head = "head" if "head.base" in config.tensors else "embed"
    planes = [f"plane{index}" for index in range(1, 1 + (variant.lm_head_bits - 4) // 2)]
    whole = {name: config.tensors[name] for part in ("base", "scale", "zero", *planes) for name in [f"{head}.{part}"]}
    own = {name: entry for name, entry in config.tensors.items() if screen.bits == THREE and is_of_screen(name)}
    saved = sum(entry.bytes for entry in whole.values())
    saved -= sum(screened_bytes(name, entry, screen) for name, entry in {**whole, **own}.items())
    return {**screen._asdict(), "saved_bytes": saved}


def _budgets(cost: CostModel) -> dict[str, dict[str, float]]:
    hull = measured_hull(cost)
    if hull is None:
        return {}
    contexts = sorted({context for entry in cost.config.actions for context in entry.losses}) or [512]
    return {
        str(context): {
            "cheapest": hull.corners(context)[0].cost,
            "sensible": sensible_budget(hull, context),
            "default": budget_of_loss(DEFAULT_MAX_LOSS, hull, context),
        }
        for context in contexts
    }


def _measurements(selection: Selection) -> dict[str, dict[str, Any]]:
    """Collects the measurements of each candidate, by tag and context."""
    found: dict[str, dict[str, Any]] = {candidate.action.tag: {} for candidate in selection.candidates}
    for context in selection.contexts:
        for point in frontier(selection, context):
            facts = asdict(point)
            found[point.tag][str(context)] = {key: facts[key] for key in ("cost", "bytes", "loss", "stderr")}
    return found


def _selection(selection: Selection, measured: dict[str, dict[str, Any]]) -> dict[str, Any]:
    described = asdict(selection)
    return {
        **{key: value for key, value in described.items() if key not in ("dense", "contexts", "candidates")},
        "contexts": {str(context): asdict(setting) for context, setting in selection.contexts.items()},
        "candidates": [
            {
                "tag": candidate.action.tag,
                "kept": candidate.kept,
                "reason": candidate.reason,
                "measured": measured[candidate.action.tag],
            }
            for candidate in selection.candidates
        ],
    }
