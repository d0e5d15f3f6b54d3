"""Families that normalize what attention and MLP give, not what they get: OLMo 2 and 3, EXAONE 4."""

from __future__ import annotations

from dataclasses import replace

from sol_rt.export.sources.families.family import Family, GgufForm, Windows
from sol_rt.export.sources.families.names import GGUF_POST_NORMED, POST_NORMED, gguf_qk_normed, qk_normed

_NAMES, _GGUF_NAMES = qk_normed(POST_NORMED), gguf_qk_normed(GGUF_POST_NORMED)
_WINDOW = {"sliding_window": ("attention.sliding_window",)}

OLMO2 = Family(
    architecture="Olmo2ForCausalLM",
    model_type="olmo2",
    names=_NAMES,
    gguf=GgufForm(architecture="olmo2", names=_GGUF_NAMES),
    qk_norm="row",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    default_eps=1e-5,
)
OLMO3 = replace(
    OLMO2,
    architecture="Olmo3ForCausalLM",
    model_type="olmo3",
    gguf=GgufForm(architecture="olmo2", names=_GGUF_NAMES, config_keys=_WINDOW, marker="attention.sliding_window"),
    defaults={"sliding_window": 4096, "rope_theta": 5e5},
    windows=Windows(full_every=("", 4)),
    rope_by_kind=True,
)
EXAONE4 = Family(
    architecture="Exaone4ForCausalLM",
    model_type="exaone4",
    names=_NAMES,
    gguf=GgufForm(
        architecture="exaone4", names=_GGUF_NAMES, config_keys=_WINDOW, config_values={"sliding_window": None}
    ),
    defaults={"sliding_window": 4096},
    qk_norm="head",
    windows=Windows(full_every=("sliding_window_pattern", 4)),
    nope_full_layers=True,
    default_eps=1e-5,
)
