"""Metadata of a GGUF file beside sizes: windows, rotary settings, factors, and keys that mean nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="exporting comes with the extra export")
gguf = pytest.importorskip("gguf", reason="exporting comes with the extra export")
transformers = pytest.importorskip("transformers", reason="exporting comes with the extra export")

from helpers.gguf_file import GgufFile  # noqa: E402
from helpers.random_checkpoint import PRESETS, write_random_checkpoint  # noqa: E402
from sol_rt.errors import CheckpointError  # noqa: E402
from sol_rt.export.sources.checkpoint import check_tensors  # noqa: E402
from sol_rt.export.sources.decoder import Decoder, family_of, from_hf_config  # noqa: E402
from sol_rt.export.sources.gguf.config import hf_config  # noqa: E402
from sol_rt.export.sources.open_checkpoint import open_checkpoint  # noqa: E402


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., GgufFile]:
    """Makes a GGUF file of a tiny checkpoint, which a test may add to before it writes it."""

    def make(preset: str) -> GgufFile:
        folder = write_random_checkpoint(tmp_path / "checkpoint", PRESETS[preset])
        rotary_dim = from_hf_config(open_checkpoint(folder).config).rotary_dim
        return GgufFile(tmp_path / "model.gguf", folder).metadata(rotary_dim).tensors()

    return make


def described(file: GgufFile) -> Decoder:
    """The decoder of a file, whose tensors are as its metadata say."""
    checkpoint = open_checkpoint(file.write())
    decoder = from_hf_config(checkpoint.config)
    check_tensors(checkpoint, decoder, family_of(checkpoint.config))
    return decoder


def test_layers_with_a_window_have_the_base_that_the_file_gives_them(made: Callable[..., GgufFile]) -> None:
    file = made("tiny-gemma3")
    file.writer.add_rope_freq_base_swa(5e4)
    decoder = described(file)
    bases = [rope.inverse_frequencies[1] ** -(decoder.rotary_dim / 2) for rope in decoder.ropes]
    assert [bases[index] for index in decoder.rope_of_layer] == pytest.approx([5e4, 5e4, 1e6], rel=1e-5)


def test_every_layer_of_a_number_may_have_no_window(made: Callable[..., GgufFile]) -> None:
    file = made("tiny-gemma3")
    file.writer.kv_data[0]["gemma3.attention.sliding_window_pattern"].value = 2
    file.writer.kv_data[0]["gemma3.attention.sliding_window_pattern"].type = gguf.GGUFValueType.UINT32
    assert described(file).windows == (24, 0, 24)


def test_flags_of_other_layers_than_the_file_has_are_refused(made: Callable[..., GgufFile]) -> None:
    file = made("tiny-gemma3")
    file.writer.kv_data[0]["gemma3.attention.sliding_window_pattern"].value = [True, False]
    with pytest.raises(CheckpointError, match=r"_pattern: got \[True, False\], expected a flag for each of 3 layers"):
        open_checkpoint(file.write())


def test_a_file_without_a_window_has_none(made: Callable[..., GgufFile]) -> None:
    """EXAONE 4 1.2B: transformers' default is a window, and layers without a rotary embedding with it."""
    file = made("tiny-exaone4")
    for key in ("sliding_window", "sliding_window_pattern"):
        del file.writer.kv_data[0][f"exaone4.attention.{key}"]
    assert described(file).windows == ()
    config = open_checkpoint(file.path).config
    assert transformers.AutoConfig.for_model(**config).sliding_window is None


def test_a_window_of_0_tokens_is_no_window(made: Callable[..., GgufFile]) -> None:
    """Files of Phi-4."""
    file = made("tiny-phi3")
    file.writer.add_sliding_window(0)
    assert described(file).windows == ()


def test_rotated_channels_may_stand_once_for_each_layer(made: Callable[..., GgufFile]) -> None:
    file = made("tiny-phi3")
    entry = file.writer.kv_data[0]["phi3.rope.dimension_count"]
    wanted = entry.value
    entry.value, entry.type = [wanted] * 3, gguf.GGUFValueType.ARRAY
    assert described(file).rotary_dim == wanted


@pytest.mark.parametrize("counts", [[0, 2, 0, 1], [0, 2], [0, -2, 0, -2], [0, 0, 0, 0]], ids=str)
def test_layers_that_attend_have_one_number_of_kv_heads(made: Callable[..., GgufFile], counts: list[int]) -> None:
    file = made("tiny-lfm2")
    file.writer.kv_data[0]["lfm2.attention.head_count_kv"].value = counts
    with pytest.raises(
        CheckpointError, match=r"lfm2\.attention\.head_count_kv: got .* expected 0 or one number for each"
    ):
        described(file)


def test_a_file_whose_layers_all_attend_has_no_convolutions(made: Callable[..., GgufFile]) -> None:
    file = made("tiny-lfm2")
    file.writer.kv_data[0]["lfm2.attention.head_count_kv"].value = [2, 2, 2, 2]
    with pytest.raises(CheckpointError, match=r"blk\.0\.|self_attn"):
        described(file)


def test_settings_of_yarn_are_read(made: Callable[..., GgufFile]) -> None:
    file = made("tiny-olmo3")
    plain = described(file).ropes
    for key, value in (("yarn_attn_factor", 1.5), ("yarn_beta_fast", 4.0), ("yarn_beta_slow", 0.1)):
        file = made("tiny-olmo3")
        name = f"olmo2.rope.scaling.{key}"
        file.writer.kv_data[0].pop(name, None)
        file.writer.add_float32(name, value)
        assert described(file).ropes != plain, key
    file = made("tiny-olmo3")
    file.writer.add_rope_scaling_yarn_attn_factor(1.5)
    assert {rope.attention_factor for rope in described(file).ropes} == {1.0, 1.5}


def test_logits_of_gemma_3_may_have_a_cap(made: Callable[..., GgufFile]) -> None:
    file = made("tiny-gemma3")
    file.writer.add_final_logit_softcapping(30.0)
    assert described(file).logits_cap == 30.0


@pytest.mark.parametrize(("architecture", "layers", "by_width"), [("gemma2", 46, 144), ("gemma3", 62, 168)])
def test_the_largest_gemmas_take_the_softmax_factor_from_their_width(
    architecture: str, layers: int, by_width: int
) -> None:
    def of(count: int) -> Any:
        sizes = {
            "block_count": count,
            "embedding_length": by_width * 32,
            "feed_forward_length": 64,
            "attention.head_count": 32,
            "attention.key_length": 128,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "context_length": 512,
            "vocab_size": 32,
        }
        keys: dict[str, Any] = {f"{architecture}.{key}": value for key, value in sizes.items()}
        return hf_config({"general.architecture": architecture, **keys}, True, {}, [])["query_pre_attn_scalar"]

    assert of(layers) == by_width
    assert of(layers - 1) == 128


def test_dense_models_of_granite_4_are_granites(made: Callable[..., GgufFile]) -> None:
    """llama.cpp's converter writes the state-space keys and the experts' of the family's other models as well."""
    file = made("tiny-granite")
    plain = described(file)
    file = made("tiny-granite")
    keys = file.writer.kv_data[0]
    keys["granite.expert_shared_feed_forward_length"] = keys["granite.feed_forward_length"]
    del keys["granite.feed_forward_length"]
    file.writer.add_feed_forward_length(512)
    for key, value in (("state_size", 256), ("conv_kernel", 4), ("inner_size", 128), ("time_step_rank", 4)):
        file.writer.add_uint32(f"granite.ssm.{key}", value)
    keys["granite.attention.head_count_kv"].value = [2, 2]
    keys["granite.attention.head_count_kv"].type = gguf.GGUFValueType.ARRAY
    assert described(file) == plain


@pytest.mark.parametrize(
    ("key", "value", "neutral"),
    [
        ("attention.scale", 0.5, 0.25),
        ("attention.scale", 0.5, 0.0),
        ("attention.causal", False, True),
        ("attention.clamp_kqv", 8.0, 0.0),
        ("final_logit_softcapping", 30.0, 0.0),
        ("residual_scale", 0.25, 1.0),
        ("logit_scale", 8.0, 1.0),
    ],
)
def test_a_factor_that_the_family_does_not_have_is_refused(
    made: Callable[..., GgufFile], key: str, value: float | bool, neutral: float | bool
) -> None:
    for given in (neutral, value):
        file = made("tiny-llama")
        add = file.writer.add_bool if isinstance(given, bool) else file.writer.add_float32
        add(f"llama.{key}", given)
        if given is neutral:
            described(file)
        else:
            with pytest.raises(CheckpointError, match=rf"GGUF key llama\.{key}: got {given}, expected none"):
                described(file)


def test_a_vocabulary_that_is_no_list_is_refused() -> None:
    keys = {"block_count": 1, "embedding_length": 64, "feed_forward_length": 64, "attention.head_count": 4}
    metadata: dict[str, Any] = {f"llama.{key}": value for key, value in keys.items()}
    metadata |= {"llama.context_length": 64, "llama.attention.layer_norm_rms_epsilon": 1e-5}
    for tokens in (7, True, 0.5):
        given = {"general.architecture": "llama", **metadata, "tokenizer.ggml.tokens": tokens}
        with pytest.raises(CheckpointError, match=r"GGUF key llama\.vocab_size is missing"):
            hf_config(given, True, {}, [])


def test_a_tensor_that_nothing_reads_is_refused(made: Callable[..., GgufFile]) -> None:
    file = made("tiny-qwen3")
    file.add("blk.1.attn_sinks.weight", np.ones(4, np.float32))
    with pytest.raises(CheckpointError, match=r"got 1 tensors that .* such as blk\.1\.attn_sinks\.weight"):
        described(file)
