"""The config.json of released models, as far as a description needs it: what the decoder is said to be."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest

from sol_rt.errors import CheckpointError
from sol_rt.export.sources.decoder import Decoder, from_hf_config, scaled_from, short_context
from sol_rt.export.sources.families import FAMILIES

LLAMA3_ROPE = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def sizes(
    hidden: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int, context: int
) -> dict[str, Any]:
    """The keys that every config has."""
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": context,
    }


LFM2_SIZES = sizes(2048, 16, 32, 8, 12288, 65536, 128000)
LFM2_KINDS = tuple("attention" if layer in (2, 5, 8, 10, 12, 14) else "conv" for layer in range(16))
CONFIGS: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": {
        **sizes(2048, 16, 32, 8, 8192, 128256, 131072),
        "architectures": ["LlamaForCausalLM"],
        "head_dim": 64,
        "rope_theta": 500000.0,
        "rope_scaling": LLAMA3_ROPE,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
    },
    "DeepSeek-R1-Distill-Qwen-1.5B": {
        **sizes(1536, 28, 12, 2, 8960, 151936, 131072),
        "architectures": ["Qwen2ForCausalLM"],
        "rope_theta": 10000,
        "sliding_window": 4096,
        "max_window_layers": 21,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    },
    "DeepSeek-R1-Distill-Llama-8B": {
        **sizes(4096, 32, 32, 8, 14336, 128256, 131072),
        "architectures": ["LlamaForCausalLM"],
        "rope_theta": 500000.0,
        "rope_scaling": {**LLAMA3_ROPE, "factor": 8.0},
        "tie_word_embeddings": False,
    },
    "Phi-4-mini": {
        **sizes(3072, 32, 24, 8, 8192, 200064, 131072),
        "architectures": ["Phi3ForCausalLM"],
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.75,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
        "sliding_window": 262144,
        "tie_word_embeddings": True,
    },
    "Phi-3-mini-4k": {
        **sizes(3072, 32, 32, 32, 8192, 32064, 4096),
        "architectures": ["Phi3ForCausalLM"],
        "original_max_position_embeddings": 4096,
        "sliding_window": 2047,
        "rope_theta": 10000.0,
    },
    "Qwen3-0.6B": {
        **sizes(1024, 28, 16, 8, 3072, 151936, 40960),
        "architectures": ["Qwen3ForCausalLM"],
        "head_dim": 128,
        "rope_theta": 1000000,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "max_window_layers": 28,
        "sliding_window": None,
    },
    "gemma-3-270m": {
        **sizes(640, 18, 4, 1, 2048, 262144, 32768),
        "architectures": ["Gemma3ForCausalLM"],
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 512,
        "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    "gemma-3-27b": {
        **sizes(5376, 62, 32, 16, 21504, 262208, 131072),
        "architectures": ["Gemma3ForCausalLM"],
        "head_dim": 128,
        "query_pre_attn_scalar": 168,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window": 1024,
    },
    "gemma-2-2b": {
        **sizes(2304, 26, 8, 4, 9216, 256000, 8192),
        "architectures": ["Gemma2ForCausalLM"],
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
    },
    "SmolLM3-3B": {
        **sizes(2048, 36, 16, 4, 11008, 128256, 65536),
        "architectures": ["SmolLM3ForCausalLM"],
        "no_rope_layers": [1, 1, 1, 0] * 9,
        "layer_types": ["full_attention"] * 36,
        "rope_theta": 5000000.0,
        "sliding_window": None,
        "use_sliding_window": False,
    },
    "granite-4.0-micro": {
        **sizes(2560, 40, 40, 8, 8192, 100352, 131072),
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "shared_intermediate_size": 8192,
        "layer_types": ["attention"] * 40,
        "num_local_experts": 0,
        "position_embedding_type": "rope",
        "attention_multiplier": 0.015625,
        "embedding_multiplier": 12,
        "logits_scaling": 10,
        "residual_multiplier": 0.22,
        "tie_word_embeddings": True,
    },
    "OLMo-3-7B": {
        **sizes(4096, 32, 32, 32, 11008, 100278, 65536),
        "architectures": ["Olmo3ForCausalLM"],
        "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
        "sliding_window": 4096,
        "rope_theta": 500000,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32,
            "beta_slow": 1,
            "original_max_position_embeddings": 8192,
        },
    },
    "OLMo-2-1B": {
        **sizes(2048, 16, 16, 16, 8192, 100352, 4096),
        "architectures": ["Olmo2ForCausalLM"],
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000,
        "rope_scaling": None,
        "tie_word_embeddings": False,
    },
    "granite-3.3-2b": {
        **sizes(2048, 40, 32, 8, 8192, 49159, 131072),
        "architectures": ["GraniteForCausalLM"],
        "attention_bias": False,
        "attention_multiplier": 0.015625,
        "embedding_multiplier": 12.0,
        "logits_scaling": 8.0,
        "mlp_bias": False,
        "residual_multiplier": 0.22,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
    },
    "Mistral-7B-v0.1": {
        **sizes(4096, 32, 32, 8, 14336, 32000, 32768),
        "architectures": ["MistralForCausalLM"],
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
    },
    "Mistral-7B-v0.3": {
        **sizes(4096, 32, 32, 8, 14336, 32768, 32768),
        "architectures": ["MistralForCausalLM"],
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
    },
    "EXAONE-4.0-1.2B": {
        **sizes(2048, 30, 32, 8, 4096, 102400, 65536),
        "architectures": ["Exaone4ForCausalLM"],
        "head_dim": 64,
        "rope_theta": 1000000,
        "rope_scaling": {**LLAMA3_ROPE, "factor": 16.0},
        "sliding_window": None,
        "sliding_window_pattern": None,
        "tie_word_embeddings": True,
    },
    "EXAONE-4.0-32B": {
        **sizes(5120, 64, 40, 8, 27392, 102400, 131072),
        "architectures": ["Exaone4ForCausalLM"],
        "head_dim": 128,
        "sliding_window": 4096,
        "sliding_window_pattern": "LLLG",
    },
    "pythia-160m": {
        **sizes(768, 12, 12, 12, 3072, 50304, 2048),
        "architectures": ["GPTNeoXForCausalLM"],
        "rotary_emb_base": 10000,
        "rotary_pct": 0.25,
        "use_parallel_residual": True,
        "hidden_act": "gelu",
    },
    "stablelm-2-1.6b": {
        **sizes(2048, 24, 32, 32, 5632, 100352, 4096),
        "architectures": ["StableLmForCausalLM"],
        "partial_rotary_factor": 0.25,
        "use_qkv_bias": True,
    },
    "Hunyuan-0.5B": {
        **sizes(1024, 24, 16, 8, 3584, 120818, 262144),
        "architectures": ["HunYuanDenseV1ForCausalLM"],
        "head_dim": 64,
        "rope_theta": 10000.0,
        "rope_scaling": {"alpha": 1000.0, "beta_fast": 32, "beta_slow": 1, "factor": 1.0, "type": "dynamic"},
        "tie_word_embeddings": True,
    },
    "Ministral-3-3B": {
        **sizes(3072, 26, 32, 8, 9216, 131072, 262144),
        "architectures": ["Ministral3ForCausalLM"],
        "head_dim": 128,
        "rope_parameters": {
            "type": "yarn",
            "rope_theta": 1e6,
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
        "sliding_window": None,
        "tie_word_embeddings": True,
    },
    "LFM2-1.2B": {
        **{key: size for key, size in LFM2_SIZES.items() if key != "intermediate_size"},
        "architectures": ["Lfm2ForCausalLM"],
        "block_auto_adjust_ff_dim": True,
        "block_ff_dim": 12288,
        "block_ffn_dim_multiplier": 1.0,
        "block_multiple_of": 256,
        "conv_L_cache": 3,
        "conv_bias": False,
        "full_attn_idxs": [2, 5, 8, 10, 12, 14],
        "norm_eps": 1e-5,
        "rope_theta": 1e6,
    },
    "LFM2.5-350M": {
        **LFM2_SIZES,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 6656,
        "architectures": ["Lfm2ForCausalLM"],
        "block_auto_adjust_ff_dim": True,
        "conv_L_cache": 3,
        "layer_types": ["full_attention" if layer in (2, 5, 8, 10, 12, 14) else "conv" for layer in range(16)],
        "norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"},
        "tie_embedding": True,
    },
}


def of(name: str, max_context: int | None = None) -> Decoder:
    return from_hf_config(CONFIGS[name], max_context)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("Llama-3.2-1B", {"max_context": 131072, "head_dim": 64, "tied": True, "windows": (), "qkv_bias": False}),
        ("DeepSeek-R1-Distill-Qwen-1.5B", {"qkv_bias": True, "output_bias": False, "windows": (), "tied": False}),
        ("DeepSeek-R1-Distill-Llama-8B", {"head_dim": 128, "tied": False, "max_context": 131072}),
        ("Phi-4-mini", {"rotary_dim": 96, "head_dim": 128, "max_context": 131072, "windows": (), "tied": True}),
        ("Phi-3-mini-4k", {"max_context": 4096, "windows": (2047,) * 32}),
        (
            "Qwen3-0.6B",
            {"qk_norm": "head", "qk_norm_after_rope": False, "head_dim": 128, "windows": (), "max_context": 40960},
        ),
        (
            "gemma-3-270m",
            {
                "windows": ((512,) * 5 + (0,)) * 3,
                "rope_of_layer": ((0,) * 5 + (1,)) * 3,
                "norm_place": "around",
                "norm_offset": 1.0,
                "softmax_scale": 1 / 16,
                "embedding_scale": math.sqrt(640),
                "tied": True,
                "attention_cap": 0.0,
                "activation": "gelu_tanh",
            },
        ),
        ("gemma-3-27b", {"softmax_scale": 1 / math.sqrt(168), "rope_of_layer": ((0,) * 5 + (1,)) * 10 + (0, 0)}),
        ("gemma-2-2b", {"windows": (4096, 0) * 13, "attention_cap": 50.0, "logits_cap": 30.0, "head_dim": 256}),
        ("SmolLM3-3B", {"rope_of_layer": (0, 0, 0, 1) * 9, "windows": (), "tied": True, "max_context": 65536}),
        (
            "granite-4.0-micro",
            {"softmax_scale": 0.015625, "embedding_scale": 12.0, "logits_scale": 0.1, "residual_scale": 0.22},
        ),
        ("OLMo-3-7B", {"norm_place": "after", "qk_norm": "row", "rope_of_layer": (0, 0, 0, 1) * 8}),
        ("OLMo-2-1B", {"norm_place": "after", "qk_norm": "row", "windows": (), "tied": False, "max_context": 4096}),
        (
            "granite-3.3-2b",
            {"softmax_scale": 0.015625, "embedding_scale": 12.0, "logits_scale": 0.125, "residual_scale": 0.22},
        ),
        ("Mistral-7B-v0.1", {"windows": (4096,) * 32, "max_context": 32768, "head_dim": 128, "tied": False}),
        ("Mistral-7B-v0.3", {"windows": (), "max_context": 32768, "rotary_dim": 128, "vocab_size": 32768}),
        ("EXAONE-4.0-1.2B", {"norm_place": "after", "qk_norm": "head", "windows": (), "rope_of_layer": (0,) * 30}),
        ("EXAONE-4.0-32B", {"windows": (4096, 4096, 4096, 0) * 16, "rope_of_layer": (0, 0, 0, 1) * 16}),
        ("pythia-160m", {"parallel_residual": True, "shared_norm": False, "rotary_dim": 16, "qkv_by_head": True}),
        ("stablelm-2-1.6b", {"norm": "layer", "rotary_dim": 16, "qk_norm": "none", "qkv_bias": True}),
        ("Hunyuan-0.5B", {"qk_norm": "head", "qk_norm_after_rope": True, "max_context": 262144}),
        ("Ministral-3-3B", {"max_context": 16384, "windows": ()}),
        (
            "LFM2-1.2B",
            {"layer_kinds": LFM2_KINDS, "conv_size": 3, "intermediate_size": 8192, "qk_norm": "head", "tied": True},
        ),
        ("LFM2.5-350M", {"layer_kinds": LFM2_KINDS, "conv_bias": False, "intermediate_size": 4608, "tied": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_released_config_is_described(name: str, facts: dict[str, Any]) -> None:
    decoder = of(name)
    assert {key: getattr(decoder, key) for key in facts} == facts


def test_the_text_part_of_gemma_3_4b_is_described() -> None:
    """Its config.json leaves out what the class in transformers has by default: heads, vocabulary, context and more."""
    pytest.importorskip("transformers")
    from sol_rt.export.sources.folder.vision import text_config

    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    vision = {"hidden_size": 1152, "image_size": 896, "model_type": "siglip_vision_model", "patch_size": 14}
    whole = {"architectures": ["Gemma3ForConditionalGeneration"], "eos_token_id": [1, 106], "model_type": "gemma3"}
    config = text_config({**whole, "text_config": text, "vision_config": vision}, has_head=False)
    assert config is not None
    assert config["eos_token_id"] == [1, 106]
    decoder = from_hf_config(config)
    assert (decoder.num_heads, decoder.num_kv_heads, decoder.head_dim, decoder.num_layers) == (8, 4, 256, 34)
    assert (decoder.vocab_size, decoder.max_context, decoder.tied) == (262208, 131072, True)
    assert decoder.windows == ((1024,) * 5 + (0,)) * 5 + (1024,) * 4
    local, full = decoder.ropes
    assert (local.inverse_frequencies[0], full.inverse_frequencies[0]) == (1.0, 0.125)
    assert from_hf_config(config, 4096).max_context == 4096


def test_every_config_is_described() -> None:
    assert all(of(name).weights > 0 for name in CONFIGS)


def test_rotary_embeddings_of_layers() -> None:
    """Gemma 3 scales the one of layers that attend to all tokens, and no other; SmolLM3 has layers without one."""
    local, full = of("gemma-3-27b").ropes
    plain = np.arange(0, 128, 2) / 128
    np.testing.assert_allclose(local.inverse_frequencies, 1e4**-plain)
    np.testing.assert_allclose(full.inverse_frequencies, 1e6**-plain / 8)
    _, none = of("SmolLM3-3B").ropes
    assert set(none.inverse_frequencies) == {0.0}
    assert of("OLMo-3-7B").ropes[1].attention_factor == pytest.approx(1.2079441541679836)
    (stretched,) = of("Hunyuan-0.5B").ropes
    assert stretched.inverse_frequencies[1] == pytest.approx((1e4 * 1000 ** (64 / 62)) ** (-2 / 64))


def test_full_layers_have_no_rotary_embedding_where_there_is_a_window() -> None:
    """EXAONE 4: what counts is the window's number, whether any layer has it or not."""
    config = {**CONFIGS["EXAONE-4.0-32B"], "layer_types": ["full_attention"] * 64}
    assert {rope.inverse_frequencies[0] for rope in from_hf_config(config).ropes} == {0.0}
    assert 0.0 not in from_hf_config({**config, "sliding_window": None}).ropes[0].inverse_frequencies


def test_windows_of_smollm3_are_transformers_own() -> None:
    auto = pytest.importorskip("transformers").AutoConfig
    config = {**CONFIGS["SmolLM3-3B"], "use_sliding_window": True, "sliding_window": 512, "layer_types": None}
    kinds = auto.for_model("smollm3", **config).layer_types
    assert set(kinds) == {"sliding_attention", "full_attention"}
    assert from_hf_config(config).windows == tuple(512 * (kind == "sliding_attention") for kind in kinds)


@pytest.mark.parametrize(
    ("kind", "what"), [("mamba", r"state-space layers \(Mamba\)"), ("linear_attention", "linear attention")]
)
def test_layers_of_a_kind_that_no_graph_has_are_named(kind: str, what: str) -> None:
    """Granite 4.0 H: of a known architecture, but most layers are no attention."""
    config = {**CONFIGS["granite-4.0-micro"], "model_type": "granitemoehybrid"}
    kinds = ([kind] * 9 + ["attention"]) * 4
    with pytest.raises(
        CheckpointError, match=f"layer_types: got '{kind}', not supported: {what}; nearest .* Granite 4"
    ):
        from_hf_config({**config, "layer_types": kinds})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"full_attn_idxs": [16]}, r"full_attn_idxs: got \[16\], expected indices of the 16 layers"),
        ({"full_attn_idxs": []}, "got no layer that attends, expected one or more"),
        ({"layer_types": ["conv", "sliding"] * 8}, "layer_types: got 'sliding', expected full_attention or conv"),
        ({"layer_types": ["conv", "mamba"] * 8}, r"layer_types: got 'mamba', not supported: state-space.* LFM2$"),
        ({"conv_L_cache": 1}, "conv_L_cache: got 1, expected 2 to 32 tokens"),
        ({"block_ffn_dim_multiplier": -1.0}, r"block_ffn_dim_multiplier: got -1\.0, expected a number above 0"),
        ({"block_ffn_dim_multiplier": 1e6}, r"intermediate_size: got an MLP of \d+ channels, expected 1 to"),
        ({"num_attention_heads": 24, "head_dim": 64}, "got 2048 with 24 heads of 64, expected heads that fill"),
    ],
)
def test_short_convolutions_that_no_graph_has(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        from_hf_config({**CONFIGS["LFM2-1.2B"], **changes})


def test_a_longer_context_takes_the_long_factors() -> None:
    assert of("Phi-4-mini").ropes == of("Phi-4-mini", 8192).ropes != of("Phi-4-mini", 4096).ropes
    assert short_context(CONFIGS["Phi-4-mini"]) == 4096
    assert short_context(CONFIGS["Phi-3-mini-4k"]) is None
    assert short_context(CONFIGS["gemma-3-270m"]) is None


def test_a_context_ends_where_positions_scale_q() -> None:
    config = CONFIGS["Ministral-3-3B"]
    said = r"got 20000, expected 1 to 16384, as positions from 16384 on scale q \(llama_4_scaling_beta\).* -c 16384$"
    with pytest.raises(CheckpointError, match=said):
        from_hf_config(config, 20000)
    assert scaled_from(config) == 16384
    plain = {**config, "rope_parameters": {**config["rope_parameters"], "llama_4_scaling_beta": None}}
    assert scaled_from(plain) is None
    assert scaled_from(CONFIGS["Phi-4-mini"]) is None
    with pytest.raises(CheckpointError, match="got 262145, expected 1 to 262144, the model's own context"):
        from_hf_config(plain, 262145)


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"full_attention": 3, "sliding_attention": 4}, "full_attention: got 3, expected an object"),
        ({"full_attention": {}, "sliding_attention": 4}, "sliding_attention: got 4, expected an object"),
        ({"sliding_attention": {"rope_theta": 1e4}}, "full_attention: got None, expected an object"),
        (
            {"full_attention": {}, "sliding_attention": {"partial_rotary_factor": 0.5}},
            "sliding_attention: got 128 rotated channels, expected 256 as in full_attention",
        ),
    ],
)
def test_rope_settings_of_kinds_of_layers_are_checked(rope: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError, match=f"rope settings: {said}"):
        from_hf_config({**CONFIGS["gemma-3-270m"], "rope_parameters": rope})


def test_proportional_ropes_of_one_kind_of_layers() -> None:
    rope = {"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6}}
    decoder = from_hf_config({**CONFIGS["gemma-3-270m"], "rope_parameters": rope})
    local, full = decoder.ropes
    assert decoder.rotary_dim == 256
    assert [sum(value > 0 for value in each.inverse_frequencies) for each in (local, full)] == [128, 32]


def test_a_window_that_no_context_passes_is_none() -> None:
    assert of("gemma-3-270m", 512).windows == ()
    assert of("gemma-3-270m", 513).windows[0] == 512
    assert of("gemma-3-270m", 512).rope_of_layer == of("gemma-3-270m").rope_of_layer


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_a_config_leaves_out_is_as_in_transformers(kind: str) -> None:
    """A config.json may leave out what its class in transformers has by default. Sizes that it lacks are refused."""
    auto = pytest.importorskip("transformers").AutoConfig
    of_kind = {"granitemoehybrid": {"layer_types": ["attention"] * 8, "num_local_experts": 0}}.get(kind, {})
    small = {"hidden_size": 2048, "num_attention_heads": 32, "num_hidden_layers": 8, "max_position_embeddings": 32768}
    config = {**auto.for_model(kind, **small, **of_kind).to_dict(), "architectures": [FAMILIES[kind].architecture]}
    whole, checked = from_hf_config(config), 0
    for key in config:
        # the shapes of tensors tell how many KV heads there are
        if key not in (*small, "architectures", "num_key_value_heads"):
            with contextlib.suppress(CheckpointError):
                assert from_hf_config({name: value for name, value in config.items() if name != key}) == whole, key
                checked += 1
    assert checked > 10
