"""Writes the model card, a bundle's README.md."""

from __future__ import annotations

import math

from sol_rt.budget.cost.model import BytesCost
from sol_rt.budget.dial import SENSIBLE_LOSS, sensible_budget
from sol_rt.budget.hull import measured_hull
from sol_rt.bundle.bits import MIXED, bits_tag
from sol_rt.bundle.config import SolConfig
from sol_rt.bundle.selection import Selection
from sol_rt.export.parity import Parity

_HUB_LICENSES = {
    *("apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "gemma"),
    *("agpl-3.0", "gpl-3.0", "lgpl-3.0", "mit", "openrail", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3"),
}
"""Identifiers that the hub accepts in a card's metadata: those of common weights."""


def hub_license(name: str) -> str:
    """The hub's identifier of a licence, given its SPDX name; `other` where the hub may not know it.

    The hub refuses a whole upload if the card's metadata has another one.
    """
    found = name.lower().replace("llama-", "llama")
    return found if found in _HUB_LICENSES else "other"


def model_card(config: SolConfig, parity: Parity | None, selection: Selection | None) -> str:
    """The text of README.md: origin and sizes, what each variant reads, what each action reads and loses, and how close
    the bundle is to its source.

    Args:
        config: the bundle's config, with all files but this one.
        parity: the comparison with the source, None if it was not made.
        selection: the measurements of the actions, None without calibration.
    """
    model = config.model
    attending = len(config.kv.attending(model.num_layers))
    token_bytes = attending * model.num_kv_heads * config.kv.token_bytes(model.head_dim)
    mixed = ""
    if any(variant.bits == MIXED for variant in config.variants.values()):
        mixed = f" (`{bits_tag(MIXED)}`: its matrices are read at 4, 6 or 8 bits each, by the source's 4-bit codes)"
    lines = [
        "---",
        f"license: {hub_license(model.license)}",
        "library_name: sol_rt",
        "tags: [onnx, text-generation]",
        "---",
        "",
        f"# {model.name}",
        "",
        f"A bundle for sol_rt, made by {config.generator} from `{model.source}`.",
        f"Licence of the weights: {model.license or 'the source does not say; look there'}.",
        "",
        *_example(config, selection),
        "| | |",
        "|---|---|",
        f"| architecture | {model.architecture} |",
        f"| layers, hidden, intermediate | {model.num_layers}, {model.hidden_size}, {model.intermediate_size} |",
        f"| heads, KV heads, head size | {model.num_heads}, {model.num_kv_heads}, {model.head_dim} |",
        f"| vocabulary, longest context | {model.vocab_size}, {model.max_context} |",
        f"| KV cache | {config.kv.dtype}, {token_bytes} bytes a token{_windows(config)} |",
        *_states(config),
        *([] if config.policy is None else [f"| policy | {config.policy.description} |"]),
        f"| weights.bin | {config.files[config.weights_file].bytes / 1e6:.1f} MB, shared by all variants |",
        "",
        "## Variants",
        "",
        f"`sSSS` is the channel density in hundredths, the share of the layers' base weights read, `qB` the weight "
        f"bits{mixed}; megabytes are what a step reads.",
        "",
        "| variant | MB a step | of dense |",
        "|---|---|---|",
    ]
    dense = config.variants[config.dense.variant].weight_bytes
    for variant in config.variants.values():
        lines.append(f"| {variant.key} | {variant.weight_bytes / 1e6:.1f} | {variant.weight_bytes / dense:.0%} |")
    lines += _actions(config, selection)
    lines += ["", "## Against the source", ""]
    if parity is None:
        return "\n".join([*lines, "Not compared when the bundle was exported.", ""])
    lines += [
        "Logits of the variants of channel density 1 against transformers in float32 with the source's weights, over",
        f"{parity.tokens} tokens of plain English, read in one pass. KL is the mean divergence from the source's",
        "distribution, in nats.",
        "",
        "| variant | largest logit difference | KL | same top token |",
        "|---|---|---|---|",
    ]
    for row in parity.rows:
        lines.append(f"| {row.variant} | {row.max_difference:.3g} | {row.kl:.3g} | {row.top1:.0%} |")
    return "\n".join([*lines, ""])


def _example(config: SolConfig, selection: Selection | None) -> list[str]:
    """A command to start with, and the budgets that the bundle bears, by bytes, where its losses were measured."""
    hull = None if selection is None else measured_hull(BytesCost(config))
    if selection is None or hull is None:
        return ["    sol-rt generate -m .", ""]
    lines = ["    sol-rt generate -m . --max-loss 1%", ""]
    for context in selection.contexts:
        least = math.ceil(100 * sensible_budget(hull, context)) / 100
        lines.append(
            f"After {context} tokens, budgets of {least:.2f} to 1 of the dense bytes raise perplexity by at most "
            f"{SENSIBLE_LOSS:.0%}."
        )
    return [*lines, ""]


def _windows(config: SolConfig) -> str:
    """Counts the layers that attend to a window, as text; empty if all attend to all tokens."""
    windows = {window for window, _ in config.kv.layer_kinds if window}
    if not windows:
        return ""
    layers = sum(count for (window, _), count in config.kv.layer_kinds.items() if window)
    lengths = " or ".join(map(str, sorted(windows)))
    return f"; {layers} of {config.model.num_layers} layers attend to the last {lengths} tokens"


def _states(config: SolConfig) -> list[str]:
    """The line on layers with a state; none if all layers attend."""
    kv, model = config.kv, config.model
    if not kv.convolving:
        return []
    layers = f"in {len(kv.convolving)} of {model.num_layers} layers"
    return [f"| states | {layers}, {kv.state_bytes(model.hidden_size)} bytes; sol_rt runs them on the CPU |"]


def _actions(config: SolConfig, selection: Selection | None) -> list[str]:
    """The section on actions: quality of each and the bytes it reads, as measured when they were chosen."""
    lines = ["", "## Actions", "", "`kKKK` is the KV density in hundredths, the share of the old cached tokens read."]
    if selection is None:
        tags = ", ".join(f"`{entry.action.tag}`" for entry in config.actions)
        return [*lines, "Their losses were not measured when the bundle was exported.", "", tags]
    found = {candidate.action: candidate for candidate in selection.candidates}
    contexts = selection.contexts
    scored = " and ".join(f"{setting.tokens} tokens at {context}" for context, setting in contexts.items())
    lines += [
        f"Loss is in nats a token over dense, over {scored}, ± standard error; text: {selection.text}.",
        "Bytes are those of weights and KV cache that a decode step reads, as a share of dense; `sol-rt profile`",
        "measures times.",
        "",
        "| action |" + "".join(f" loss at {context} | bytes at {context} |" for context in contexts),
        "|---|" + "--:|--:|" * len(contexts),
    ]
    for entry in config.actions:
        cells = []
        for context in contexts:
            point, dense = found[entry.action].at.get(context), found[config.dense].at[context]
            if point is None:
                cells += ["", ""]
            else:
                cells += [f"{point.loss:.4f} ± {point.stderr:.4f}", f"{point.bytes / dense.bytes:.2f}"]
        lines.append(f"| {entry.action.tag} | " + " | ".join(cells) + " |")
    return lines
