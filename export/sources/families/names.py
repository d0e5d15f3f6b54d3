"""Names of modules that many families share."""

from __future__ import annotations

from dataclasses import replace

from sol_rt.export.sources.families.family import TensorNames

LAYER = "model.layers.{i}."
BLOCK = "blk.{i}."

SPLIT = TensorNames(
    embed="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    attn_norm=LAYER + "input_layernorm",
    mlp_norm=LAYER + "post_attention_layernorm",
    qkv=tuple(LAYER + f"self_attn.{part}_proj" for part in "qkv"),
    o=LAYER + "self_attn.o_proj",
    up=(LAYER + "mlp.gate_proj", LAYER + "mlp.up_proj"),
    down=LAYER + "mlp.down_proj",
)
"""Separate q, k and v, gate and up."""
GGUF_SPLIT = TensorNames(
    embed="token_embd",
    final_norm="output_norm",
    head="output",
    attn_norm=BLOCK + "attn_norm",
    mlp_norm=BLOCK + "ffn_norm",
    qkv=tuple(BLOCK + f"attn_{part}" for part in "qkv"),
    o=BLOCK + "attn_output",
    up=(BLOCK + "ffn_gate", BLOCK + "ffn_up"),
    down=BLOCK + "ffn_down",
)

POST_NORMED = replace(
    SPLIT,
    attn_norm=None,
    mlp_norm=None,
    attn_post_norm=LAYER + "post_attention_layernorm",
    mlp_post_norm=LAYER + "post_feedforward_layernorm",
)
"""Norms after attention and MLP only."""
GGUF_POST_NORMED = replace(
    GGUF_SPLIT,
    attn_norm=None,
    mlp_norm=None,
    attn_post_norm=BLOCK + "post_attention_norm",
    mlp_post_norm=BLOCK + "post_ffw_norm",
)


def qk_normed(names: TensorNames) -> TensorNames:
    """The names with norms of q and k."""
    return replace(names, q_norm=LAYER + "self_attn.q_norm", k_norm=LAYER + "self_attn.k_norm")


def gguf_qk_normed(names: TensorNames) -> TensorNames:
    """llama.cpp's names with norms of q and k."""
    return replace(names, q_norm=BLOCK + "attn_q_norm", k_norm=BLOCK + "attn_k_norm")
