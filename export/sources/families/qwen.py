"""Qwen2, and Qwen3, which normalizes q and k."""

from __future__ import annotations

from sol_rt.export.sources.families.family import Family, GgufForm, Windows
from sol_rt.export.sources.families.names import GGUF_SPLIT, SPLIT, gguf_qk_normed, qk_normed

_WINDOWS = Windows(first_key="max_window_layers", opt_in=True)
_DEFAULTS = {"sliding_window": 4096, "max_window_layers": 28}  # of transformers; they count if the windows do

QWEN2 = Family(
    architecture="Qwen2ForCausalLM",
    model_type="qwen2",
    names=SPLIT,
    gguf=GgufForm(architecture="qwen2", names=GGUF_SPLIT, pre_tokenizer="qwen2"),
    defaults=_DEFAULTS,
    qkv_bias=True,
    windows=_WINDOWS,
)
QWEN3 = Family(
    architecture="Qwen3ForCausalLM",
    model_type="qwen3",
    names=qk_normed(SPLIT),
    gguf=GgufForm(architecture="qwen3", names=gguf_qk_normed(GGUF_SPLIT), pre_tokenizer="qwen2"),
    defaults={**_DEFAULTS, "head_dim": 128},
    qk_norm="head",
    qkv_bias="attention_bias",
    output_bias="attention_bias",
    windows=_WINDOWS,
)
