"""Translates GGUF metadata into the Hugging Face `config.json` of the same model."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from sol_rt.errors import CheckpointError, brief
from sol_rt.export.sources.decoder import LARGEST_SIZE, MOST_LAYERS, family_of_gguf
from sol_rt.export.sources.families import Family, GgufForm

_YARN = {
    "yarn_attn_factor": "attention_factor",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}
"""GGUF keys of yarn -> their names in config.json."""
_ARITHMETIC: dict[str, tuple[float, ...]] = {
    **dict.fromkeys(("attention.clamp_kqv", "attention.max_alibi_bias"), (0,)),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (0,)),
    **dict.fromkeys(("embedding_scale", "residual_scale", "logit_scale", "attention.output_scale"), (0, 1)),
    "attention.scale": (0,),
    "attention.causal": (True,),
}
"""GGUF keys that change what a model computes -> the values with which they do not."""


def hf_config(
    metadata: Mapping[str, Any], tied: bool, rope_factors: Mapping[str, list[float]], biases: Collection[str]
) -> dict[str, Any]:
    """The `config.json` that GGUF metadata describes.

    Args:
        metadata: GGUF key -> value.
        tied: the LM head is the embedding matrix.
        rope_factors: the values of the tensors `rope_freqs`, `rope_factors_short` and `rope_factors_long` that the file
            has.
        biases: projections of the first layer, such as `attn_q`, that have a bias, and norms of q and k.

    Raises:
        CheckpointError: the architecture is unknown, or a key is missing or not a number.
    """
    family, form = family_of_gguf(metadata)
    keys = _Keys(metadata, form.architecture)
    heads, hidden = keys.integer("attention.head_count"), keys.integer("embedding_length")
    head_dim = keys.integer("attention.key_length", hidden // heads)
    value_dim = keys.integer("attention.value_length", head_dim)
    if value_dim != head_dim:
        raise CheckpointError(
            f"GGUF key {keys.full('attention.value_length')}: got {value_dim}, expected {head_dim} channels a head, as "
            "of keys; fetch the file again, or convert the model again"
        )
    kv_heads = _kv_heads(keys, form, heads)
    context, tokens = keys.integer("context_length"), metadata.get("tokenizer.ggml.tokens")
    eps = "layer_norm_epsilon" if family.norm == "layer" else "layer_norm_rms_epsilon"
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_size": hidden,
        "num_hidden_layers": keys.integer("block_count", most=MOST_LAYERS),
        "num_attention_heads": heads,
        "num_key_value_heads": max(kv_heads),
        "head_dim": head_dim,
        family.intermediate_key: keys.integer("feed_forward_length"),
        "vocab_size": len(tokens) if isinstance(tokens, list) and tokens else keys.integer("vocab_size"),
        "max_position_embeddings": context,
        "hidden_act": family.default_activation,
        family.eps_key: _shortest(keys.number(f"attention.{eps}")),
        "rope_parameters": _rope_by_kind(keys, family, _rope(keys, head_dim, context, rope_factors)),
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
    }
    if family.softmax_size_key is not None:  # no metadata key says it
        by_width = config["num_hidden_layers"] == form.softmax_by_width_layers
        config[family.softmax_size_key] = hidden // heads if by_width else head_dim
    _check_read(keys, form, head_dim)
    # no metadata key reports biases, the tensors do
    for rule, projections in ((family.qkv_bias, "attn_"), (family.output_bias, "attn_"), (family.mlp_bias, "ffn_")):
        if isinstance(rule, str):
            config[rule] = any(name.startswith(projections) and not name.endswith("_norm") for name in biases)
    if family.qk_norm_key is not None:
        config[family.qk_norm_key] = "attn_q_norm" in biases
    for key, value in form.config_values.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, Mapping) else value
    for key, candidates in form.config_keys.items():
        found = next((candidate for candidate in candidates if keys.has(candidate)), None)
        if found is not None:
            no_window = key == "sliding_window" and keys.value(found) == 0  # as converters write it
            config[key] = None if no_window else keys.setting(found)
    if keys.has("attention.sliding_window_pattern") and "sliding_window" in form.config_keys:
        config["layer_types"] = _layer_types(keys, config["num_hidden_layers"])
    if "sliding_window" in config and config["sliding_window"] is None:
        config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
    if 0 in kv_heads:
        config["layer_types"] = ["full_attention" if count else "conv" for count in kv_heads]
    for name in ("bos", "eos"):
        config[f"{name}_token_id"] = metadata.get(f"tokenizer.ggml.{name}_token_id")
    config["pad_token_id"] = metadata.get("tokenizer.ggml.padding_token_id")
    return config


def _kv_heads(keys: _Keys, form: GgufForm, heads: int) -> list[int]:
    """The numbers of KV heads: one for all layers or, where the form marks layers that attend, one for each layer."""
    key, layers = "attention.head_count_kv", keys.integer("block_count", most=MOST_LAYERS)
    counts = keys.value(key, heads)
    if not form.marks_attention or not isinstance(counts, list) or 0 not in counts:
        return [keys.integer(key, heads)]
    attending = {count for count in counts if type(count) is int and count > 0}
    if len(counts) != layers or len(attending) != 1 or not set(counts) <= attending | {0}:
        raise CheckpointError(
            f"GGUF key {keys.full(key)}: got {brief(counts)}, expected 0 or one number for each of {layers} layers"
        )
    return counts


def _check_read(keys: _Keys, form: GgufForm, head_dim: int) -> None:
    """Raises CheckpointError for a key that would change what the model computes, and that its family does not have."""
    read = {name for names in form.config_keys.values() for name in names}
    for key, neutral in _ARITHMETIC.items():
        value = keys.value(key) if keys.has(key) and key not in read else neutral[0]
        if key == "attention.scale" and isinstance(value, float) and math.isclose(value, head_dim**-0.5, rel_tol=1e-4):
            continue
        if value not in neutral:
            raise CheckpointError(
                f"GGUF key {keys.full(key)}: got {brief(value)}, expected none, as in the architecture's other files; "
                "export from the checkpoint folder"
            )


def _layer_types(keys: _Keys, layers: int) -> list[str]:
    """The kind of every layer: the file has a flag for each, or says that every layer of a number has no window."""
    pattern = keys.value("attention.sliding_window_pattern")
    if not isinstance(pattern, list):
        every = keys.integer("attention.sliding_window_pattern")
        pattern = [(layer + 1) % every != 0 for layer in range(layers)]
    elif len(pattern) != layers:
        key = keys.full("attention.sliding_window_pattern")
        raise CheckpointError(f"GGUF key {key}: got {brief(pattern)}, expected a flag for each of {layers} layers")
    return ["sliding_attention" if windowed else "full_attention" for windowed in pattern]


def _rope_by_kind(keys: _Keys, family: Family, parameters: dict[str, Any]) -> dict[str, Any]:
    """Rotary settings, by the kind of layer in families whose layers with a window have settings of their own."""
    if not family.rope_by_kind:
        return parameters
    default = family.defaults.get(family.local_theta_key or "", parameters["rope_theta"])
    local = {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", default)}
    kept = {"partial_rotary_factor": parameters["partial_rotary_factor"]}
    return {"full_attention": parameters, "sliding_attention": {**local, **kept}}


def _rope(keys: _Keys, head_dim: int, context: int, factors: Mapping[str, list[float]]) -> dict[str, Any]:
    rotary_dim = keys.integer("rope.dimension_count", head_dim)
    parameters: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "partial_rotary_factor": rotary_dim / head_dim,
    }
    kind = str(keys.value("rope.scaling.type", "none"))
    original = keys.integer("rope.scaling.original_context_length", context)
    if "rope_factors_long" in factors:
        parameters |= {
            "rope_type": "longrope",
            "short_factor": factors.get("rope_factors_short", factors["rope_factors_long"]),
            "long_factor": factors["rope_factors_long"],
            "original_max_position_embeddings": original,
            "factor": context / original,
        }
        if keys.has("rope.scaling.attn_factor"):
            parameters["attention_factor"] = keys.number("rope.scaling.attn_factor")
    elif "rope_freqs" in factors:  # the converter evaluated a scaling: one divisor for each frequency
        parameters |= {
            "rope_type": "longrope",
            "short_factor": factors["rope_freqs"],
            "long_factor": factors["rope_freqs"],
            "original_max_position_embeddings": context,
            "factor": 1.0,
            "attention_factor": 1.0,
        }
    elif kind in ("linear", "yarn"):
        parameters |= {"rope_type": kind, "factor": keys.number("rope.scaling.factor")}
        if kind == "yarn":
            parameters["original_max_position_embeddings"] = original
            for key, name in _YARN.items():
                if keys.has(f"rope.scaling.{key}"):
                    parameters[name] = _shortest(keys.number(f"rope.scaling.{key}"))
    elif kind != "none":
        raise CheckpointError(f"GGUF key {keys.full('rope.scaling.type')}: got {kind!r}, expected none, linear or yarn")
    return parameters


class _Keys:
    """Reads metadata keys of one architecture and checks their values."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self._metadata, self._architecture = metadata, architecture

    def full(self, key: str) -> str:
        return f"{self._architecture}.{key}"

    def has(self, key: str) -> bool:
        return self.full(key) in self._metadata

    def value(self, key: str, default: Any = None) -> Any:
        value = self._metadata.get(self.full(key), default)
        if value is None:
            raise CheckpointError(f"GGUF key {self.full(key)} is missing; the file is incomplete")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.value(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise CheckpointError(f"GGUF key {self.full(key)}: got {type(value).__name__}, expected one number")
        return float(value)

    def setting(self, key: str) -> bool | int | float:
        """A flag as it is, a number as `integer` or `number` reads it."""
        value = self.value(key)
        if isinstance(value, bool):
            return value
        return _shortest(self.number(key)) if isinstance(value, float) else self.integer(key)

    def integer(self, key: str, default: int | None = None, most: int = LARGEST_SIZE) -> int:
        value = self.value(key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise CheckpointError(
                f"GGUF key {self.full(key)}: got {str(value)[:40]}, expected one number for all layers, 1 to {most}"
            )
        return value


def _shortest(value: float) -> float:
    """A float32 value with the digits that a person would write: 9.999999747378752e-06 -> 1e-05."""
    return float(f"{value:.7g}")
