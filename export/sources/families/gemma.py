"""Gemma 2 and Gemma 3 (text): norms around blocks, windows, scaled embeddings."""

from __future__ import annotations

from dataclasses import replace

from sol_rt.export.sources.families.family import Family, GgufForm, Windows
from sol_rt.export.sources.families.names import BLOCK, GGUF_SPLIT, LAYER, SPLIT, gguf_qk_normed, qk_normed

_NAMES = replace(
    SPLIT,
    attn_post_norm=LAYER + "post_attention_layernorm",
    mlp_norm=LAYER + "pre_feedforward_layernorm",
    mlp_post_norm=LAYER + "post_feedforward_layernorm",
)
_GGUF_NAMES = replace(GGUF_SPLIT, attn_post_norm=BLOCK + "post_attention_norm", mlp_post_norm=BLOCK + "post_ffw_norm")
_DEFAULTS = {"head_dim": 256, "sliding_window": 4096, "query_pre_attn_scalar": 256, "tie_word_embeddings": True}

GEMMA2 = Family(
    architecture="Gemma2ForCausalLM",
    model_type="gemma2",
    names=_NAMES,
    gguf=GgufForm(
        architecture="gemma2",
        names=_GGUF_NAMES,
        norm_offset=1.0,
        config_keys={
            "sliding_window": ("attention.sliding_window",),
            "attn_logit_softcapping": ("attn_logit_softcapping",),
            "final_logit_softcapping": ("final_logit_softcapping",),
        },
        softmax_by_width_layers=46,  # 27B
    ),
    defaults={**_DEFAULTS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    norm_offset=1.0,
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    scales_embedding_by_width=True,
    softmax_size_key="query_pre_attn_scalar",
    attention_cap_key="attn_logit_softcapping",
    logits_cap_key="final_logit_softcapping",
    windows=Windows(full_every=("", 2)),
    default_activation="gelu_pytorch_tanh",
)
GEMMA3 = Family(
    architecture="Gemma3ForCausalLM",
    model_type="gemma3_text",
    names=qk_normed(_NAMES),
    gguf=GgufForm(
        architecture="gemma3",
        names=gguf_qk_normed(_GGUF_NAMES),
        norm_offset=1.0,
        config_keys={
            "sliding_window": ("attention.sliding_window",),
            "final_logit_softcapping": ("final_logit_softcapping",),
        },
        config_values={"sliding_window": None},
        softmax_by_width_layers=62,  # 27B
    ),
    defaults={**_DEFAULTS, "rope_theta": 1e6, "rope_local_base_freq": 1e4},
    norm_offset=1.0,
    qk_norm="head",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    scales_embedding_by_width=True,
    softmax_size_key="query_pre_attn_scalar",
    attention_cap_key="attn_logit_softcapping",
    logits_cap_key="final_logit_softcapping",
    windows=Windows(full_every=("sliding_window_pattern", 6)),
    rope_by_kind=True,
    local_theta_key="rope_local_base_freq",
    default_activation="gelu_pytorch_tanh",
)
