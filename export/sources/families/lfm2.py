"""LFM2 and LFM2.5: gated short convolutions in most layers, attention in the others."""

from __future__ import annotations

from dataclasses import replace

from sol_rt.export.sources.families.family import AdjustedWidth, Family, GgufForm, ShortConv
from sol_rt.export.sources.families.names import BLOCK, GGUF_SPLIT, LAYER, SPLIT, gguf_qk_normed

_NAMES = replace(
    SPLIT,
    final_norm="model.embedding_norm",
    attn_norm=LAYER + "operator_norm",
    mlp_norm=LAYER + "ffn_norm",
    q_norm=LAYER + "self_attn.q_layernorm",
    k_norm=LAYER + "self_attn.k_layernorm",
    o=LAYER + "self_attn.out_proj",
    up=(LAYER + "feed_forward.w1", LAYER + "feed_forward.w3"),
    down=LAYER + "feed_forward.w2",
    conv_in=LAYER + "conv.in_proj",
    conv=LAYER + "conv.conv",
    conv_out=LAYER + "conv.out_proj",
)
_GGUF_NAMES = replace(
    gguf_qk_normed(GGUF_SPLIT),
    final_norm="token_embd_norm",
    conv_in=BLOCK + "shortconv.in_proj",
    conv=BLOCK + "shortconv.conv",
    conv_out=BLOCK + "shortconv.out_proj",
)
LFM2 = Family(
    architecture="Lfm2ForCausalLM",
    model_type="lfm2",
    names=_NAMES,
    gguf=GgufForm(
        architecture="lfm2",
        names=_GGUF_NAMES,
        config_keys={"conv_L_cache": ("shortconv.l_cache",)},
        config_values={"block_auto_adjust_ff_dim": False},
        marks_attention=True,
    ),
    defaults={
        "num_key_value_heads": 8,
        "tie_word_embeddings": True,
        "rope_theta": 1e6,
        "conv_L_cache": 3,
        "block_auto_adjust_ff_dim": True,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
    },
    eps_key="norm_eps",
    default_eps=1e-5,
    qk_norm="head",
    conv=ShortConv(size_key="conv_L_cache", bias_key="conv_bias", attention_key="full_attn_idxs"),
    adjusted_width=AdjustedWidth(
        flag_key="block_auto_adjust_ff_dim", factor_key="block_ffn_dim_multiplier", multiple_key="block_multiple_of"
    ),
    other_keys={"tie_embedding": "tie_word_embeddings", "block_ff_dim": "intermediate_size"},
)
