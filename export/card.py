"""The model card of a bundle."""

from __future__ import annotations

from sol_rt.config import SolConfig
from sol_rt.export.parity import Parity


def model_card(config: SolConfig, parity: Parity | None) -> str:
    """README.md: what the bundle is, where it comes from, what its variants read, how close they are to the source."""
    model = config.model
    token_bytes = model.num_layers * model.num_kv_heads * config.kv.token_bytes(model.head_dim)
    lines = [
        "---",
        f"license: {model.license or 'other'}",
        "library_name: sol_rt",
        "tags: [onnx, text-generation]",
        "---",
        "",
        f"# {model.name}",
        "",
        f"A bundle for sol_rt, made by {config.generator} from `{model.source}`.",
        f"Licence of the weights: {model.license or 'not told by the source; look there'}.",
        "",
        "    sol-rt generate -m . --budget 0.4",
        "",
        "| | |",
        "|---|---|",
        f"| architecture | {model.architecture} |",
        f"| layers, hidden, intermediate | {model.num_layers}, {model.hidden_size}, {model.intermediate_size} |",
        f"| heads, KV heads, head size | {model.num_heads}, {model.num_kv_heads}, {model.head_dim} |",
        f"| vocabulary, longest context | {model.vocab_size}, {model.max_context} |",
        f"| KV cache | {config.kv.dtype}, {token_bytes} bytes a token |",
        f"| weights.bin | {config.files[config.weights_file].bytes / 1e6:.1f} MB, shared by all variants |",
        "",
        "## Variants",
        "",
        "`sPPP` is the share of MLP channels kept, `qB` the weight bits; megabytes are what a step reads of weights.",
        "",
        "| variant | MB a step | of dense |",
        "|---|---|---|",
    ]
    dense = config.variants[config.dense.variant].weight_bytes
    for variant in config.variants.values():
        lines.append(f"| {variant.key} | {variant.weight_bytes / 1e6:.1f} | {variant.weight_bytes / dense:.0%} |")
    lines += ["", "## Against the source", ""]
    if parity is None:
        return "\n".join([*lines, "Not compared when it was exported.", ""])
    lines += [
        "Logits of the unpruned variants against transformers in float32 with the source's weights, over",
        f"{parity.tokens} tokens of plain English, read in one pass. KL is the mean divergence of the source's",
        "distribution, in nats.",
        "",
        "| variant | largest logit difference | KL | same top token |",
        "|---|---|---|---|",
    ]
    for row in parity.rows:
        lines.append(f"| {row.variant} | {row.max_difference:.3g} | {row.kl:.3g} | {row.top1:.0%} |")
    return "\n".join([*lines, ""])
