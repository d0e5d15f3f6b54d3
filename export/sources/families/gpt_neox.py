"""GPT-NeoX (Pythia) and StableLM 2: LayerNorm, and a rotary embedding of some channels of a head."""

from __future__ import annotations

from dataclasses import replace

from sol_rt.export.sources.families.family import Family, GgufForm, TensorNames
from sol_rt.export.sources.families.names import BLOCK, GGUF_SPLIT, LAYER, SPLIT, gguf_qk_normed

_LAYER = "gpt_neox.layers.{i}."

GPT_NEOX = Family(
    architecture="GPTNeoXForCausalLM",
    model_type="gpt_neox",
    names=TensorNames(
        embed="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        head="embed_out",
        attn_norm=_LAYER + "input_layernorm",
        mlp_norm=_LAYER + "post_attention_layernorm",
        qkv=(_LAYER + "attention.query_key_value",),
        o=_LAYER + "attention.dense",
        up=(_LAYER + "mlp.dense_h_to_4h",),
        down=_LAYER + "mlp.dense_4h_to_h",
    ),
    gguf=GgufForm(
        architecture="gptneox",
        names=replace(GGUF_SPLIT, qkv=(BLOCK + "attn_qkv",), up=(BLOCK + "ffn_up",)),
        config_keys={"use_parallel_residual": ("use_parallel_residual",)},
    ),
    defaults={"use_parallel_residual": True, "attention_bias": True},
    norm="layer",
    eps_key="layer_norm_eps",
    gated=False,
    parallel_residual="use_parallel_residual",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias=True,
    qkv_by_head=True,
    rope_keys={"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"},
    default_activation="gelu",
    default_rotary_fraction=0.25,
    default_eps=1e-5,
)
STABLELM = Family(
    architecture="StableLmForCausalLM",
    model_type="stablelm",
    names=replace(
        SPLIT,
        q_norm=LAYER + "self_attn.q_layernorm.norms.{h}",
        k_norm=LAYER + "self_attn.k_layernorm.norms.{h}",
    ),
    gguf=GgufForm(
        architecture="stablelm",
        names=gguf_qk_normed(GGUF_SPLIT),
        config_keys={"use_parallel_residual": ("use_parallel_residual",)},
    ),
    norm="layer",
    eps_key="layer_norm_eps",
    qk_norm="head",
    qk_norm_key="qk_layernorm",
    parallel_residual="use_parallel_residual",
    parallel_shares_norm=True,
    qkv_bias="use_qkv_bias",
    rope_keys={"rope_pct": "partial_rotary_factor"},
    default_rotary_fraction=0.25,
    default_eps=1e-5,
)
