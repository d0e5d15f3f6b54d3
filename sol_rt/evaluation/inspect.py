"""Describes a bundle without running it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sol_rt.budget.cost.bytes_model import BytesCost
from sol_rt.budget.cost.calibration_table import load_cost_model
from sol_rt.bundle.bits import bits_name
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import FORMAT_VERSION
from sol_rt.bundle.selection import Candidate, Selection
from sol_rt.engine.providers import default_threads


def describe(path: Path, context: int = 512) -> dict[str, Any]:
    """Describes a bundle as `sol-rt inspect --json` prints it.

    Args:
        path: bundle folder.
        context: tokens in the cache before the step whose costs are given.

    Returns:
        path, format_version, model, kv, variants, policy (null or its description), actions, cost_model and selection.
        Of an action, `cost` is its share of the dense step's cost, `bytes` the bytes that its step reads by the bytes
        model, `loss` its loss in nats over dense or null, and `measured` its measurements in selection.json by context.
        `selection` is null if the export measured nothing. Otherwise it holds how candidates were measured, and every
        candidate with the reason why it was kept or dropped.

    Raises:
        BundleError: the folder holds no valid bundle.
    """
    bundle = Bundle.open(path)
    config = bundle.config
    context = min(context, config.model.max_context - 1)
    cost, size = load_cost_model(bundle, "cpu", default_threads()), BytesCost(config)
    dense = cost.dense(context)
    selection = Selection.of(bundle)
    candidates = {} if selection is None else {candidate.action: candidate for candidate in selection.candidates}
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
                "layer_bits": entry.layer_bits,
                "file": entry.file,
                "bytes": entry.weight_bytes,
            }
            for key, entry in config.variants.items()
        ],
        "policy": config.policy.description if config.policy else None,
        "actions": [
            {
                "tag": entry.action.tag,
                "cost": cost.step(entry.action, context) / dense,
                "loss": entry.loss,
                "bytes": round(size.step(entry.action, context)),
                "measured": _measured(candidates.get(entry.action)),
            }
            for entry in config.actions
        ],
        "cost_model": cost.name,
        "selection": None if selection is None else _selection(selection),
    }


def _measured(candidate: Candidate | None) -> dict[str, Any]:
    return {} if candidate is None else {str(context): asdict(point) for context, point in candidate.at.items()}


def _selection(selection: Selection) -> dict[str, Any]:
    return {
        "text": selection.text,
        "max_actions": selection.max_actions,
        "collapse_loss": selection.collapse_loss,
        "contexts": {str(context): asdict(setting) for context, setting in selection.contexts.items()},
        "candidates": [
            {
                "tag": candidate.action.tag,
                "kept": candidate.kept,
                "reason": candidate.reason,
                "measured": _measured(candidate),
            }
            for candidate in selection.candidates
        ],
    }
