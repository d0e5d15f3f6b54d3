"""Llama and what differs from it in a trait or two: SmolLM3, Mistral, Ministral 3, Arcee."""

from __future__ import annotations

from dataclasses import replace

from sol_rt.export.sources.families.family import Family, GgufForm, Windows
from sol_rt.export.sources.families.names import GGUF_SPLIT, SPLIT

LLAMA = Family(
    architecture="LlamaForCausalLM",
    model_type="llama",
    names=SPLIT,
    gguf=GgufForm(architecture="llama", names=GGUF_SPLIT, interleaves_qk=True),
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
)
SMOLLM3 = Family(
    architecture="SmolLM3ForCausalLM",
    model_type="smollm3",
    names=SPLIT,
    gguf=GgufForm(architecture="smollm3", names=GGUF_SPLIT, interleaves_qk=True),
    defaults={"tie_word_embeddings": True, "rope_theta": 2e6},
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    windows=Windows(opt_in=True),
    nope_every=("no_rope_layer_interval", 4),
)
MISTRAL = Family(
    architecture="MistralForCausalLM",
    model_type="mistral",
    names=SPLIT,
    gguf=None,  # llama.cpp writes Llamas
    defaults={"sliding_window": 4096, "num_key_value_heads": 8},
)
MINISTRAL3 = Family(
    architecture="Ministral3ForCausalLM",
    model_type="ministral3",
    names=SPLIT,
    gguf=GgufForm(
        architecture="mistral3",
        names=GGUF_SPLIT,
        interleaves_qk=True,
        config_values={"rope_parameters": {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}},
    ),
    defaults={
        "head_dim": 128,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
            "llama_4_scaling_beta": 0.1,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    },
    default_eps=1e-5,
)
ARCEE = Family(
    architecture="ArceeForCausalLM",
    model_type="arcee",
    names=replace(SPLIT, up=(SPLIT.up[1],)),
    gguf=GgufForm(architecture="arcee", names=replace(GGUF_SPLIT, up=(GGUF_SPLIT.up[1],)), interleaves_qk=True),
    gated=False,
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    default_activation="relu2",
    default_eps=1e-5,
)
