"""Checkpoint sources: every file format of a model gives the same tensors, description and tokens; damage is named."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch", reason="exporting comes with the extra export")
gguf = pytest.importorskip("gguf", reason="exporting comes with the extra export")
import tokenizers  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from helpers.gguf_file import GgufFile, interleave, random_rows  # noqa: E402
from helpers.random_checkpoint import PRESETS, RandomCheckpoint, write_random_checkpoint  # noqa: E402
from sol_rt.errors import CheckpointError  # noqa: E402
from sol_rt.export.sources.checkpoint import Checkpoint, check_tensors  # noqa: E402
from sol_rt.export.sources.decoder import family_of, from_hf_config  # noqa: E402
from sol_rt.export.sources.families import FAMILIES  # noqa: E402
from sol_rt.export.sources.gguf import tokenizer as gguf_tokenizer  # noqa: E402
from sol_rt.export.sources.open_checkpoint import open_checkpoint  # noqa: E402
from sol_rt.export.sources.rope import make_rope, tables  # noqa: E402
from sol_rt.export.sources.tokenizer_files import check_files, drop_tokens_beyond, quick_form  # noqa: E402

FAMILY_PRESETS = ("tiny-llama", "tiny-qwen2", "tiny-phi3", "tiny-phi")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama checkpoint that a test may damage."""
    return write_random_checkpoint(tmp_path / "checkpoint", PRESETS["tiny-llama"])


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**config, **changes}.items() if value is not None}))


def check(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    check_tensors(checkpoint, from_hf_config(checkpoint.config), family_of(checkpoint.config))


def assert_same_tensors(one: Checkpoint, other: Checkpoint, tolerance: float = 0.0) -> None:
    assert set(one.names()) == set(other.names())
    for name in one.names():
        assert one.shape(name) == other.shape(name)
        np.testing.assert_allclose(one.read(name), other.read(name), atol=tolerance, rtol=0)


# folders


def split(tensors: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    names = sorted(tensors)
    half = len(names) // 2
    return {n: tensors[n] for n in names[:half]}, {n: tensors[n] for n in names[half:]}


def as_shards(folder: Path) -> None:
    parts = split(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    for index, part in enumerate(parts):
        save_file(part, folder / f"model-{index}.safetensors")
    write_index(folder / "model.safetensors.index.json", parts, "model-{}.safetensors")


def as_torch(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def as_torch_shards(folder: Path) -> None:
    parts = split(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    for index, part in enumerate(parts):
        torch.save(part, folder / f"pytorch_model-{index}.bin", _use_new_zipfile_serialization=index > 0)
    write_index(folder / "pytorch_model.bin.index.json", parts, "pytorch_model-{}.bin")


def write_index(path: Path, parts: tuple[dict[str, Any], ...], pattern: str) -> None:
    weight_map = {name: pattern.format(index) for index, part in enumerate(parts) for name in part}
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("change", [as_shards, as_torch, as_torch_shards])
def test_every_layout_of_a_folder_reads_the_same(folder: Path, tmp_path: Path, change: Callable[[Path], None]) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    change(other)
    assert_same_tensors(open_checkpoint(folder), open_checkpoint(other))
    check(other)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_floats_become_float32(folder: Path, dtype: str) -> None:
    wanted = load_file(folder / "model.safetensors")
    narrow = {name: tensor.to(getattr(torch, dtype)) for name, tensor in wanted.items()}
    save_file(narrow, folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    got = open_checkpoint(folder).read(name, 3, 9)
    assert got.dtype == np.float32
    assert np.array_equal(got, narrow[name][3:9].float().numpy())


def test_pickles_run_no_code(folder: Path, tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (folder / "model.safetensors").unlink()
    torch.save({"x": Attack()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="damaged or unsafe"):
        open_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def truncate(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def test_damaged_folders_are_named(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    truncate(folder / "model.safetensors", 0.7)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        open_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="got no weights"):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin").write_bytes(weights)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: damaged"):
        open_checkpoint(folder)
    (folder / "pytorch_model.bin").unlink()
    write_index(folder / "model.safetensors.index.json", ({"a": 0},), "gone-{}.safetensors")
    with pytest.raises(CheckpointError, match=r"shard gone-0\.safetensors is missing"):
        open_checkpoint(folder)
    write_index(folder / "model.safetensors.index.json", ({"a": 0},), "../{}.safetensors")
    with pytest.raises(CheckpointError, match="weight_map"):
        open_checkpoint(folder)
    (folder / "config.json").write_text("[1")
    with pytest.raises(CheckpointError, match="not readable as JSON"):
        open_checkpoint(folder)
    with pytest.raises(CheckpointError, match="expected a folder"):
        open_checkpoint(folder / "nothing")


def test_missing_and_misshapen_tensors_are_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.o_proj.weight"
    save_file({n: t for n, t in tensors.items() if n != name}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"tensor {name} is missing"):
        check(folder)
    save_file({**tensors, name: tensors[name][:, :32].contiguous()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name}: got shape \[64, 32\], expected \[64\]"):
        check(folder)
    save_file({**tensors, name: tensors[name][:32].contiguous()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="got 32 rows, expected 64"):
        check(folder)
    norm = "model.layers.1.input_layernorm.weight"
    save_file({**tensors, norm: torch.tensor(1.0)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{norm}: got shape \[\]"):
        check(folder)


def test_tensors_that_nothing_reads_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.layers.0.self_attn.rotary_emb.inv_freq", "gpt_neox.layers.0.attention.masked_bias"):
        save_file({**tensors, name: torch.ones(4)}, folder / "model.safetensors")
        check(folder)  # tables that older versions of transformers stored
    sinks = {f"model.layers.{i}.self_attn.sinks": torch.ones(4) for i in range(2)}
    save_file({**tensors, **sinks}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"got 2 tensors that .* such as model\.layers\.0\.self_attn\.sinks"):
        check(folder)
    save_file({**tensors, "model.layers.1.self_attn.q_proj.bias": torch.ones(64)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"such as model\.layers\.1\.self_attn\.q_proj\.bias"):
        check(folder)


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
def test_quantized_folders_are_refused(folder: Path, dtype: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.o_proj.weight"
    save_file({**tensors, name: tensors[name].to(getattr(torch, dtype))}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"{name}: got type torch.{dtype}.*from the unquantized checkpoint"):
        open_checkpoint(folder).read(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "got .GPT2LMHeadModel., not supported; nearest"),
        ({"hidden_size": None}, "key hidden_size is missing"),
        ({"num_key_value_heads": 3}, "4 heads over 3 KV heads"),
        ({"hidden_act": "mish"}, "hidden_act: got 'mish'"),
        ({"qk_layernorm": True}, "qk_layernorm"),
        ({"rope_scaling": {"rope_type": "dynamic"}}, "rope scaling: got 'dynamic'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "setting 'factor' is missing"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "two"}}, "rope scaling linear: a setting is no number"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "rope scaling linear: .*(not finite|no number)"),
        ({"rope_scaling": [4]}, "rope settings: got .4., expected an object"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers: got 1000000000, expected a whole number from 1 to 4096"),
        ({"num_attention_heads": 0}, "num_attention_heads: got 0"),
        ({"num_key_value_heads": 4096}, "num_key_value_heads: got 4096, expected a whole number from 1 to 2048"),
        ({"max_position_embeddings": 1 << 22}, "with 2 KV heads, expected at most 4194048; use --ctx-size 4194048"),
        ({"vocab_size": "many"}, "vocab_size: got 'many'"),
        ({"rms_norm_eps": -1}, "rms_norm_eps: got -1"),
        ({"partial_rotary_factor": 2}, "partial_rotary_factor: got 2"),
    ],
)
def test_configs_that_do_not_fit_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(folder, **changes)
    with pytest.raises(CheckpointError, match=message):
        check(folder)


def test_context_is_the_models_own_or_less(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert from_hf_config(config).max_context == 1024
    assert from_hf_config(config, 100).max_context == 100
    with pytest.raises(CheckpointError, match="got 2000, expected 1 to 1024"):
        from_hf_config(config, 2000)
    windowed = from_hf_config({**config, "sliding_window": 512})
    assert (windowed.max_context, windowed.windows) == (1024, (512, 512))
    assert from_hf_config({**config, "sliding_window": 512}, 512).windows == ()  # no token is beyond it
    assert from_hf_config({**config, "sliding_window": 512, "use_sliding_window": False}).windows == ()


SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256},
    {
        "rope_type": "longrope",
        "factor": 4.0,
        "original_max_position_embeddings": 256,
        "short_factor": [1.0 + i / 8 for i in range(8)],
        "long_factor": [2.0 + i for i in range(8)],
    },
    {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.4},
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
def test_rope_tables_are_transformers_own(scaling: dict[str, Any]) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    parameters = {"rope_theta": 10000.0, **scaling}
    config = transformers.LlamaConfig(
        hidden_size=64, num_attention_heads=4, max_position_embeddings=1024, rope_parameters=parameters
    )
    for length in (200, 1024):
        cos, sin = tables(make_rope(parameters, 16, length, 1024), 0, length)
        wanted = LlamaRotaryEmbedding(config=config)(torch.zeros(1, 1, 64), torch.arange(length)[None])
        np.testing.assert_allclose(cos, wanted[0][0, :, :8].numpy(), atol=2e-4)
        np.testing.assert_allclose(sin, wanted[1][0, :, :8].numpy(), atol=2e-4)


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
def test_rope_settings_without_an_original_context_are_as_in_transformers(scaling: dict[str, Any]) -> None:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    given = {key: value for key, value in scaling.items() if key != "original_max_position_embeddings"}
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1, "max_position_embeddings": 1024}
    parameters = {"rope_theta": 10000.0, **given}
    config = {**sizes, "intermediate_size": 64, "vocab_size": 64, "architectures": ["LlamaForCausalLM"]}
    decoder = from_hf_config({**config, "rope_parameters": parameters})
    wanted = LlamaRotaryEmbedding(config=transformers.LlamaConfig(**sizes, rope_parameters=dict(parameters)))
    (rope,) = decoder.ropes
    assert decoder.rotary_dim == 16
    np.testing.assert_allclose(rope.inverse_frequencies, wanted.inv_freq.numpy(), rtol=1e-5)
    assert rope.attention_factor == pytest.approx(wanted.attention_scaling)


# GGUF files


ROTARY = {"tiny-phi": 8}


@pytest.mark.parametrize("preset", FAMILY_PRESETS)
def test_gguf_reads_as_the_folder_it_was_made_of(preset: str, tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "hf", PRESETS[preset])
    path = GgufFile(tmp_path / "model.gguf", source).metadata(ROTARY.get(preset, 16)).tensors().write()
    folder, file = open_checkpoint(source), open_checkpoint(path)
    assert_same_tensors(folder, file)
    assert from_hf_config(folder.config) == from_hf_config(file.config)
    assert file.license == "apache-2.0"
    name = FAMILIES[family_of(file.config).model_type].names.qkv[0].format(i=1) + ".weight"
    assert np.array_equal(file.read(name, 5, 11), folder.read(name)[5:11])


def test_gguf_joint_qkv_is_split(tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "hf", PRESETS["tiny-phi"])
    path = GgufFile(tmp_path / "model.gguf", source).metadata(8).tensors(packed_qkv=True).write()
    assert_same_tensors(open_checkpoint(source), open_checkpoint(path))


def test_gguf_biases_of_llamas_are_seen(tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "hf", PRESETS["tiny-llama"])
    edit_config(source, attention_bias=True)
    tensors, sizes = load_file(source / "model.safetensors"), {"q": 64, "k": 32, "v": 32, "o": 64}
    biases = {f"model.layers.{i}.self_attn.{p}_proj.bias": torch.randn(n) for i in range(2) for p, n in sizes.items()}
    save_file({**tensors, **biases}, source / "model.safetensors")
    path = GgufFile(tmp_path / "model.gguf", source).metadata(16).tensors().write()
    folder, file = open_checkpoint(source), open_checkpoint(path)
    assert_same_tensors(folder, file)
    assert from_hf_config(folder.config) == from_hf_config(file.config)
    assert from_hf_config(file.config).qkv_bias


QUANTIZED = [
    ("F16", 5e-4),
    ("BF16", 4e-3),
    ("Q8_0", 5e-3),
    ("Q5_1", 0.05),
    ("Q5_0", 0.07),
    ("Q4_1", 0.1),
    ("Q4_0", 0.15),
    ("MXFP4", 0.3),
    ("TQ2_0", 1.0),
    ("TQ1_0", 1.0),
]
STORED = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", *(kind for kind, _ in QUANTIZED[2:]))


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama whose rows hold whole blocks of 256."""
    shape = RandomCheckpoint("llama", hidden_size=256, intermediate_size=512)
    return write_random_checkpoint(tmp_path_factory.mktemp("wide"), shape)


@pytest.mark.parametrize(("kind", "tolerance"), QUANTIZED)
def test_gguf_types_come_back_as_they_were_quantized(
    kind: str, tolerance: float, wide_folder: Path, tmp_path: Path
) -> None:
    path = GgufFile(tmp_path / "model.gguf", wide_folder).metadata(64).tensors(kind).write()
    one, other = open_checkpoint(wide_folder), open_checkpoint(path)
    for part in ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj"):
        wanted = one.read(f"model.layers.1.{part}.weight")
        # of the largest weight nearby
        error = np.abs(other.read(f"model.layers.1.{part}.weight") - wanted).reshape(-1, 32)
        assert (error.max(axis=1) <= tolerance * np.abs(wanted).max()).all()


@pytest.mark.parametrize("kind", STORED)
def test_gguf_types_are_read_bit_by_bit(kind: str, wide_folder: Path, tmp_path: Path) -> None:
    file = (
        GgufFile(tmp_path / "model.gguf", wide_folder)
        .metadata(64)
        .tensors(leave_out=("blk.1.attn_q", "blk.1.ffn_down"))
    )
    quantized_type, rng = gguf.GGMLQuantizationType[kind], np.random.default_rng(0)
    rows = {module: random_rows(kind, 256, size, rng) for module, size in (("attn_q", 256), ("ffn_down", 512))}
    for module, stored in rows.items():
        file.writer.add_tensor(f"blk.1.{module}.weight", stored, raw_dtype=quantized_type)
    checkpoint = open_checkpoint(file.write())
    wanted = {module: gguf.quants.dequantize(stored, quantized_type) for module, stored in rows.items()}
    assert np.array_equal(checkpoint.read("model.layers.1.mlp.down_proj.weight", 7, 20), wanted["ffn_down"][7:20])
    query = checkpoint.read("model.layers.1.self_attn.q_proj.weight")
    assert np.array_equal(interleave(query, 4), wanted["attn_q"])


def test_gguf_types_that_cannot_be_read_are_named_at_once(wide_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    file = GgufFile(path, wide_folder).metadata(64).tensors(leave_out=("blk.1.ffn_down",))
    kind = gguf.GGMLQuantizationType.Q8_K
    file.writer.add_tensor("blk.1.ffn_down.weight", np.zeros((256, 2 * 292), np.uint8), raw_dtype=kind)
    file.write()
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_down\.weight: got type Q8_K, expected floats .*; take"):
        open_checkpoint(path)
    data = path.read_bytes()
    name = b"blk.1.ffn_down.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8  # number of axes, the axes, then the type
    assert int.from_bytes(data[at : at + 4], "little") == kind
    path.write_bytes(data[:at] + (99).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(CheckpointError, match=r"model\.gguf: got a tensor of type 99, .* expected floats .*; update"):
        open_checkpoint(path)


def test_gguf_with_an_output_that_repeats_the_embedding_is_tied(folder: Path, tmp_path: Path) -> None:
    file = GgufFile(tmp_path / "model.gguf", folder).metadata(16).tensors("Q4_1")
    embedding = file.source.read("model.embed_tokens.weight")
    file.add("output.weight", embedding, "Q8_0")
    checkpoint = open_checkpoint(file.write())
    assert from_hf_config(checkpoint.config).tied
    finer = gguf.quants.dequantize(
        gguf.quants.quantize(embedding, gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0
    )
    assert np.array_equal(checkpoint.read("model.embed_tokens.weight"), finer)


def test_damaged_gguf_files_are_named(folder: Path, tmp_path: Path) -> None:
    path = GgufFile(tmp_path / "model.gguf", folder).metadata(16).tensors().write()
    truncate(path, 0.8)
    with pytest.raises(CheckpointError, match=r"model\.gguf: damaged GGUF file"):
        open_checkpoint(path)
    path.write_bytes(b"GGUX" + bytes(100))
    with pytest.raises(CheckpointError, match="damaged GGUF file"):
        open_checkpoint(path)
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_tensor("x", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="got 'bert', not supported; nearest that works: Qwen3"):
        open_checkpoint(path)
    deep = GgufFile(path, folder).metadata(16).tensors()
    deep.writer.kv_data[0]["llama.block_count"].value = 2**32 - 1
    with pytest.raises(CheckpointError, match="block_count: got 4294967295, expected one number"):
        open_checkpoint(deep.write())
    incomplete = GgufFile(path, folder).tensors().write()
    with pytest.raises(CheckpointError, match=r"llama\.\w+.* is missing"):
        open_checkpoint(incomplete)


def test_gguf_tokenizer_is_the_folders(folder: Path, tmp_path: Path) -> None:
    path = GgufFile(tmp_path / "model.gguf", folder).metadata(16).tensors().write()
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    open_checkpoint(path).write_tokenizer(bundle)
    got = tokenizers.Tokenizer.from_file(str(bundle / "tokenizer.json"))
    wanted = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in ("The quick brown fox<|im_end|>", "déjà vu 1234\n\n  x", "日本語 🎉"):
        assert got.encode(text).ids == wanted.encode(text).ids
        assert got.decode(got.encode(text).ids, skip_special_tokens=False) == text
    assert (bundle / "chat_template.jinja").read_text() == "{{ messages[0]['content'] }}"
    assert json.loads((bundle / "generation_config.json").read_text()) == {"bos_token_id": 0, "eos_token_id": 2}
    settings = json.loads((bundle / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["eos_token"]) == ("<|endoftext|>", "<|im_end|>")


def test_an_added_token_that_the_model_has_no_row_for_is_left_out(folder: Path, tmp_path: Path) -> None:
    """Gemma 3's text models: their tokenizer has a token for images, after the last row of the embedding."""
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    wanted = tokenizer.to_str()
    tokenizer.add_special_tokens(["<image>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    shutil.copyfile(folder / "generation_config.json", tmp_path / "generation_config.json")
    with pytest.raises(CheckpointError, match=f"got token ids up to {size}"):
        check_files(tmp_path, size)
    (tmp_path / "chat_template.jinja").write_text("{{ '<image>' }}")
    drop_tokens_beyond(tmp_path, size)
    with pytest.raises(CheckpointError, match=f"got token ids up to {size}"):  # the template writes it
        check_files(tmp_path, size)
    (tmp_path / "chat_template.jinja").unlink()
    drop_tokens_beyond(tmp_path, size)
    check_files(tmp_path, size)
    assert tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")).to_str() == wanted


@pytest.mark.parametrize(
    ("left", "right", "form"), [("a", "b", "a b"), ("a", " ", ["a", " "]), ("#version", "a", ["#version", "a"])]
)
def test_merges_are_one_text_each_where_the_library_reads_them_back(left: str, right: str, form: Any) -> None:
    vocabulary = {right: 2, left: 1, left + right: 0}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[(left, right)]))
    text = quick_form(tokenizer)
    assert tokenizers.Tokenizer.from_str(text).to_str() == tokenizer.to_str()
    assert json.loads(text)["model"]["merges"] == [form]


def byte_vocabulary(*merged: str) -> dict[str, Any]:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", *alphabet, *merged]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": [f"{token[:-1]} {token[-1]}" for token in merged],
        "tokenizer.ggml.token_type": [3] + [1] * (len(tokens) - 1),
        "tokenizer.ggml.bos_token_id": 0,
    }


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "a12345", ["a", "12345"]),
        ("phi-2", "a12345", ["a", "12345"]),
        ("smollm", "a12345", ["a", "1", "2", "3", "4", "5"]),
        ("qwen2", "a12345", ["a", "1", "2", "3", "4", "5"]),
        ("llama-bpe", "a12345", ["<s>", "a", "123", "45"]),
        ("olmo", "a12345", ["a", "12345"]),
        ("exaone4", "a12345", ["a", "12345"]),
        ("refact", "a12345", ["a", "1", "2", "3", "4", "5"]),
        ("deepseek-r1-qwen", "a12345", ["a", "1", "2", "3", "4", "5"]),
        ("stablelm2", "a12345", ["a", "1", "2", "3", "4", "5"]),
        ("tekken", "a12345", ["<s>", "a", "1", "2", "3", "4", "5"]),
        ("dbrx", "a12345", ["a", "123", "45"]),
        ("smaug-bpe", "a12345", ["a", "123", "45"]),
        ("gpt-4o", "a12345", ["a", "123", "45"]),
        ("hunyuan-dense", "a12345", ["a", "123", "45"]),
    ],
)
def test_digits_are_grouped_as_the_model_was_trained(pre: str, text: str, pieces: list[str]) -> None:
    metadata = byte_vocabulary("12", "123", "1234", "12345", "45") | {"tokenizer.ggml.pre": pre}
    assert gguf_tokenizer.build(metadata).encode(text).tokens == pieces


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("tekken", "doIt's I/O\n", ["do", "It", "'s", "ĠI", "/O", "Ċ"]),
        ("gpt-4o", "doIt's I/O\n", ["do", "It's", "ĠI", "/O", "Ċ"]),
        ("dbrx", "doIt's I/O\n", ["doIt", "'s", "ĠI", "/O", "Ċ"]),
        ("stablelm2", "doIt's I/O\n", ["doIt", "'s", "ĠI", "/O", "Ċ"]),
        ("hunyuan-dense", "doIt's I/O\n", ["doIt", "'s", "ĠI", "/O", "Ċ"]),
        ("hunyuan-dense", "x+=1 你好la", ["x", "+=", "1", "Ġ", "ä½łå¥½", "la"]),
        ("refact", "doIt's  I/O", ["doIt", "'s", "Ġ", "ĠI", "/", "O"]),
    ],
)
def test_words_are_split_as_the_model_was_trained(pre: str, text: str, pieces: list[str]) -> None:
    split = gguf_tokenizer.build(byte_vocabulary() | {"tokenizer.ggml.pre": pre}).pre_tokenizer
    assert [piece for piece, _ in split.pre_tokenize_str(text)] == pieces


@pytest.mark.parametrize(
    ("architecture", "pieces"), [("qwen2", ["a", "1", "2", "3", "4", "5"]), ("phi2", ["a", "12345"]), ("llama", None)]
)
def test_a_file_that_does_not_say_how_words_are_split(architecture: str, pieces: list[str] | None) -> None:
    """Older ones: known where all models of an architecture do it alike."""
    metadata = byte_vocabulary("12", "123", "1234", "12345", "45") | {"general.architecture": architecture}
    if pieces is None:
        with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.pre: got None, expected one of"):
            gguf_tokenizer.build(metadata)
    else:
        assert gguf_tokenizer.build(metadata).encode("a12345").tokens == pieces


def test_first_token_is_added_where_the_file_says_so() -> None:
    metadata = byte_vocabulary() | {"tokenizer.ggml.pre": "gpt-2"}
    assert gguf_tokenizer.build(metadata).encode("a").tokens == ["a"]
    metadata["tokenizer.ggml.add_bos_token"] = True
    assert gguf_tokenizer.build(metadata).encode("a").tokens == ["<s>", "a"]


PIECES = ["▁", "a", "b", "é", "▁a", "ab", "ba", "bb", "▁ab", "aba", "abab", "▁b", "▁▁"]
"""Of a SentencePiece model, by falling score."""


def sentence_piece(**changes: Any) -> dict[str, Any]:
    """Metadata of a file with these pieces after the special ones and the bytes, as llama.cpp's converter writes."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES, "<end>"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(len(PIECES))] + [0.0],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(PIECES), 4],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 0,
        **{f"tokenizer.ggml.{name}": value for name, value in changes.items()},
    }


def by_scores(text: str) -> list[str]:
    """SentencePiece's own procedure: join the two neighbours that make the piece of highest score, the first of equals,
    until none make one; characters without a piece are bytes."""
    symbols = list(text)
    while True:
        joined = [(PIECES.index(a + b), at) for at, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in PIECES]
        if not joined:
            break
        _, at = min(joined)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return [
        part
        for symbol in symbols
        for part in ([symbol] if symbol in PIECES else [f"<0x{byte:02X}>" for byte in symbol.encode()])
    ]


@given(st.text(alphabet="ab é\nz€", min_size=1, max_size=24))
def test_sentence_piece_files_split_by_score(text: str) -> None:
    tokenizer = gguf_tokenizer.build(sentence_piece())
    encoded = tokenizer.encode(text)
    assert encoded.tokens == ["<s>", *by_scores("▁" + text.replace(" ", "▁"))]
    assert tokenizer.decode(encoded.ids) == text


def test_sentence_piece_files_say_what_comes_first() -> None:
    tokenizer = gguf_tokenizer.build(sentence_piece(add_bos_token=False, add_space_prefix=False))
    assert tokenizer.encode("ab").tokens == ["ab"]
    assert tokenizer.decode(tokenizer.encode(" ab").ids) == " ab"
    assert gguf_tokenizer.build(sentence_piece()).encode("a<end></s>b").tokens == ["<s>", "▁a", "<end>", "</s>", "▁b"]


def test_unknown_tokenizers_are_refused() -> None:
    for change, message in (
        ({"tokenizer.ggml.model": "bert"}, "expected 'gpt2'"),
        ({"tokenizer.ggml.model": "llama"}, "list of scores is missing"),
        ({"tokenizer.ggml.pre": "klingon"}, "got 'klingon', expected one of default, gpt-2"),
        ({"tokenizer.ggml.token_type": [1]}, "different length"),
        ({"tokenizer.ggml.token_type": 1}, "different length"),
        ({"tokenizer.ggml.tokens": 7}, "are missing"),
        ({"tokenizer.ggml.merges": ["a nonsense"]}, "the file is damaged"),
        ({"tokenizer.ggml.merges": [1]}, "the file is damaged"),
    ):
        with pytest.raises(CheckpointError, match=message):
            gguf_tokenizer.build(byte_vocabulary() | {"tokenizer.ggml.pre": "gpt-2"} | change)


@pytest.mark.parametrize(
    ("old", "wanted"),
    [("plain", "plain"), ([{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}], "d")],
)
def test_chat_templates_of_older_folders_are_found(folder: Path, tmp_path: Path, old: Any, wanted: str) -> None:
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": old, "eos_token": "x"}))
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    open_checkpoint(folder).write_tokenizer(bundle)
    assert (bundle / "chat_template.jinja").read_text() == wanted
    assert json.loads((bundle / "tokenizer_config.json").read_text()) == {"eos_token": "x"}
