"""Granite 3 and the dense models of Granite 4: factors on embeddings, attention, residual and logits."""

from __future__ import annotations

from dataclasses import replace

from sol_rt.export.sources.families.family import Family, GgufForm
from sol_rt.export.sources.families.names import GGUF_SPLIT, LAYER, SPLIT

GRANITE = Family(
    architecture="GraniteForCausalLM",
    model_type="granite",
    names=SPLIT,
    gguf=GgufForm(
        architecture="granite",
        names=GGUF_SPLIT,
        interleaves_qk=True,
        config_keys={
            "embedding_multiplier": ("embedding_scale",),
            "attention_multiplier": ("attention.scale",),
            "residual_multiplier": ("residual_scale",),
            "logits_scaling": ("logit_scale",),
            "intermediate_size": ("expert_shared_feed_forward_length", "feed_forward_length"),  # the first: Granite 4
        },
    ),
    defaults={"attention_multiplier": 1.0},
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    mlp_bias="mlp_bias",
    embedding_key="embedding_multiplier",
    softmax_key="attention_multiplier",
    residual_key="residual_multiplier",
    logits_divisor_key="logits_scaling",
)
GRANITE4 = replace(
    GRANITE,
    architecture="GraniteMoeHybridForCausalLM",
    model_type="granitemoehybrid",
    names=replace(SPLIT, up=(LAYER + "shared_mlp.input_linear",), down=LAYER + "shared_mlp.output_linear"),
    gguf=None,
    mlp_bias=False,
    intermediate_key="shared_intermediate_size",
    rope_if=("position_embedding_type", "rope"),
)
