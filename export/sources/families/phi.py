"""Phi-2 and Phi-3 (Phi-3.5, Phi-4-mini)."""

from __future__ import annotations

from dataclasses import replace

from sol_rt.export.sources.families.family import Family, GgufForm, TensorNames
from sol_rt.export.sources.families.names import BLOCK, GGUF_SPLIT, LAYER, SPLIT

PHI3 = Family(
    architecture="Phi3ForCausalLM",
    model_type="phi3",
    names=replace(SPLIT, qkv=(LAYER + "self_attn.qkv_proj",), up=(LAYER + "mlp.gate_up_proj",)),
    gguf=GgufForm(
        architecture="phi3",
        names=replace(GGUF_SPLIT, qkv=(BLOCK + "attn_qkv",), up=(BLOCK + "ffn_up",)),
        config_keys={
            "sliding_window": ("attention.sliding_window",),
            "original_max_position_embeddings": ("rope.scaling.original_context_length", "context_length"),
        },
    ),
    rope_types={"su": "longrope", "yarn": "longrope"},
    default_eps=1e-5,
)
PHI = Family(
    architecture="PhiForCausalLM",
    model_type="phi",
    names=TensorNames(
        embed="model.embed_tokens",
        final_norm="model.final_layernorm",
        head="lm_head",
        attn_norm=LAYER + "input_layernorm",
        mlp_norm=None,
        qkv=SPLIT.qkv,
        o=LAYER + "self_attn.dense",
        up=(LAYER + "mlp.fc1",),
        down=LAYER + "mlp.fc2",
    ),
    gguf=GgufForm(
        architecture="phi2",
        names=replace(GGUF_SPLIT, mlp_norm=None, up=(BLOCK + "ffn_up",)),
        pre_tokenizer="phi-2",
    ),
    norm="layer",
    eps_key="layer_norm_eps",
    gated=False,
    parallel_residual=True,
    qkv_bias=True,
    output_bias=True,
    mlp_bias=True,
    head_bias=True,
    default_activation="gelu_new",
    default_rotary_fraction=0.5,
    default_eps=1e-5,
)
