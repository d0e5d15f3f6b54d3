"""ERNIE 4.5 (interleaved rotary embedding) and Hunyuan's dense models (q and k normalized after it)."""

from __future__ import annotations

from dataclasses import replace

from sol_rt.export.sources.families.family import Family, GgufForm
from sol_rt.export.sources.families.names import GGUF_SPLIT, LAYER, SPLIT, gguf_qk_normed

ERNIE = Family(
    architecture="Ernie4_5ForCausalLM",
    model_type="ernie4_5",
    names=SPLIT,
    gguf=GgufForm(architecture="ernie4_5", names=GGUF_SPLIT),
    defaults={"head_dim": 128, "rope_theta": 5e5, "tie_word_embeddings": True},
    qkv_bias="use_bias",
    output_bias="use_bias",
    mlp_bias="use_bias",
    interleaved_rope=True,
    default_eps=1e-5,
)
HUNYUAN = Family(
    architecture="HunYuanDenseV1ForCausalLM",
    model_type="hunyuan_v1_dense",
    names=replace(SPLIT, q_norm=LAYER + "self_attn.query_layernorm", k_norm=LAYER + "self_attn.key_layernorm"),
    gguf=GgufForm(architecture="hunyuan-dense", names=gguf_qk_normed(GGUF_SPLIT)),
    qk_norm="head",
    qk_norm_after_rope=True,
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    default_eps=1e-5,
)
