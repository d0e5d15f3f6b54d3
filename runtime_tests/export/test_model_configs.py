"""Decoders of released models, as their config.json describes them."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np
import pytest

from helpers.released_configs import CONFIGS, LFM2_KINDS
from sol_rt.errors import CheckpointError
from sol_rt.export.sources.decoder import Decoder, from_hf_config, scaled_from, short_context
from sol_rt.export.sources.families import FAMILIES


def of(name: str, max_context: int | None = None) -> Decoder:
    return from_hf_config(CONFIGS[name], max_context)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("Llama-3.2-1B", {"max_context": 131072, "head_dim": 64, "tied": True, "windows": (), "qkv_bias": False}),
        ("DeepSeek-R1-Distill-Qwen-1.5B", {"qkv_bias": True, "output_bias": False, "windows": (), "tied": False}),
        ("DeepSeek-R1-Distill-Llama-8B", {"head_dim": 128, "tied": False, "max_context": 131072}),
        ("Phi-4-mini", {"rotary_dim": 96, "head_dim": 128, "max_context": 131072, "windows": (), "tied": True}),
        ("Phi-3.5-mini", {"rotary_dim": 96, "head_dim": 96, "max_context": 131072, "windows": (), "tied": False}),
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


@pytest.mark.parametrize("channels", range(2, 89, 2))
def test_a_share_of_rotated_channels_is_their_number(channels: int) -> None:
    config = {**CONFIGS["Phi-4-mini"], "head_dim": 88, "rope_scaling": None, "partial_rotary_factor": channels / 88}
    assert from_hf_config(config).rotary_dim == channels


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3"])
@pytest.mark.parametrize(
    "given", [{}, {"sliding_window": 1024}, {"max_window_layers": 3}, {"sliding_window": 1024, "max_window_layers": 3}]
)
def test_windows_of_qwen_are_those_of_transformers(model_type: str, given: dict[str, int]) -> None:
    transformers = pytest.importorskip("transformers")
    name = {"qwen2": "DeepSeek-R1-Distill-Qwen-1.5B", "qwen3": "Qwen3-0.6B"}[model_type]
    windows = {"sliding_window", "max_window_layers", "layer_types", "model_type"}
    kept = {key: value for key, value in CONFIGS[name].items() if key not in windows}
    config = {**kept, **given, "use_sliding_window": True, "num_hidden_layers": 30}
    own = transformers.AutoConfig.for_model(model_type, **config)
    wanted = [own.sliding_window * (kind == "sliding_attention") for kind in own.layer_types]
    assert list(from_hf_config(config).windows) == wanted


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
def test_missing_keys_have_the_defaults_of_transformers(kind: str) -> None:
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
