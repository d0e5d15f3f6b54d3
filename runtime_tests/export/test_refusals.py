"""Checkpoints that can't be exported: one line says what is in the way and what to do, and nothing is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="exporting comes with the extra export")
pytest.importorskip("gguf", reason="exporting comes with the extra export")
import torch
import transformers
from safetensors.torch import load_file, save_file

from helpers.gguf_file import GgufFile
from helpers.onnx_folder import write_onnx_folder
from helpers.random_checkpoint import PRESETS, write_random_checkpoint
from sol_rt.cli import main
from sol_rt.errors import CheckpointError
from sol_rt.export import export_bundle
from sol_rt.export.sources.decoder import family_of_gguf, from_hf_config
from sol_rt.export.sources.families import FAMILIES
from sol_rt.export.sources.open_checkpoint import open_checkpoint
from sol_rt.export.sources.refusals import gguf_refusal

WEIGHTS = "model.safetensors"
LEVELS: dict[str, Any] = {"bits": (8,), "channel_density": (1.0,), "kv_density": (1.0,), "calibration": "none"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama checkpoint that a test may change."""
    return write_random_checkpoint(tmp_path / "checkpoint", PRESETS["tiny-llama"])


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Exports a source, which must fail with one line of error and leave nothing; returns the line."""
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))

    def run(source: Path, *options: str) -> str:
        assert main(["export", "-m", str(source), "-o", str(tmp_path / "out"), "--calibration", "none", *options]) == 1
        out, err = capsys.readouterr()
        assert not out
        lines = [line for line in err.splitlines() if line.startswith("sol-rt: error: ")]
        assert err.splitlines()[-1:] == lines, "one line, the last"
        assert not (tmp_path / "out").exists()
        assert not list(tmp_path.glob(".out*")), "nothing half-written"
        return lines[0]

    return run


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize(
    ("model_type", "architecture", "changes", "trait"),
    [
        ("mixtral", "MixtralForCausalLM", {"num_local_experts": 8}, "a mixture of experts"),
        ("qwen3_moe", "Qwen3MoeForCausalLM", {"num_experts": 128}, "a mixture of experts"),
        ("gpt_oss", "GptOssForCausalLM", {"num_local_experts": 32}, "a mixture of experts with attention sinks"),
        ("minicpm3", "MiniCPM3ForCausalLM", {"kv_lora_rank": 256, "auto_map": {}}, "multi-head latent attention (MLA)"),
        ("falcon_h1", "FalconH1ForCausalLM", {}, "state-space layers (Mamba)"),
        ("mamba2", "Mamba2ForCausalLM", {}, "state-space layers (Mamba)"),
        ("some_hybrid", "SomeHybridForCausalLM", {"layer_types": ["mamba", "attention"]}, "state-space layers (Mamba)"),
        ("lfm2_moe", "Lfm2MoeForCausalLM", {"num_experts": 32}, "a mixture of experts"),
        ("qwen3_next", "Qwen3NextForCausalLM", {"layer_types": ["linear_attention"]}, "linear attention"),
        ("mllama", "MllamaForConditionalGeneration", {"vision_config": {}}, "a vision tower whose text part does not"),
        ("t5", "T5ForConditionalGeneration", {"is_encoder_decoder": True}, "an encoder beside the decoder"),
        ("hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM", {"num_experts": [1, 16]}, "a mixture of experts"),
        ("rwkv7", "RWKV7ForCausalLM", {}, "linear attention"),
        (
            "qwen3_5",
            "Qwen3_5ForConditionalGeneration",
            {"vision_config": {}, "text_config": {"layer_types": ["linear_attention", "full_attention"]}},
            "linear attention",
        ),
        (
            "llama4",
            "Llama4ForConditionalGeneration",
            {"vision_config": {}, "text_config": {"model_type": "llama4_text", "num_local_experts": 16}},
            "a mixture of experts; nearest that works: Llama 3.2",
        ),
        ("bitnet", "BitNetForCausalLM", {}, "norms inside attention and MLP (BitNet)"),
        (
            "own",
            "OwnForCausalLM",
            {"auto_map": {"AutoModel": "own.Own"}},
            "it needs code that comes with the checkpoint",
        ),
    ],
)
def test_a_trait_is_named_with_the_nearest_model_that_works(
    folder: Path, refused: Any, model_type: str, architecture: str, changes: dict[str, Any], trait: str
) -> None:
    edit_config(folder, model_type=model_type, architectures=[architecture], **changes)
    line = refused(folder)
    assert f"architecture: got '{architecture}', not supported: {trait}" in line
    assert "; nearest that works: " in line


def test_the_nearest_model_is_of_the_same_maker(folder: Path, refused: Any) -> None:
    edit_config(folder, model_type="qwen2_moe", architectures=["Qwen2MoeForCausalLM"], num_experts=60)
    assert "nearest that works: Qwen2.5" in refused(folder)
    edit_config(
        folder, model_type="phimoe", architectures=["PhimoeForCausalLM"], num_experts=None, num_local_experts=16
    )
    assert "nearest that works: Phi-4-mini" in refused(folder)
    edit_config(
        folder, model_type="lfm2_moe", architectures=["Lfm2MoeForCausalLM"], num_local_experts=None, num_experts=32
    )
    assert "nearest that works: LFM2" in refused(folder)
    edit_config(folder, model_type="unheard_of", architectures=["UnheardOf"], num_experts=None)
    line = refused(folder)
    assert "got 'UnheardOf', not supported; nearest that works: " in line
    edit_config(folder, model_type=None, architectures=None)
    assert "architecture: its config names no model, expected architectures or model_type" in refused(folder)


@pytest.mark.parametrize("key", ["layer_types", "layers_block_type", "num_experts", "text_config", "model_type"])
@pytest.mark.parametrize("value", [5, True, "mamba", {"mamba": 1}, [[], {}, None], 0.5], ids=str)
def test_values_of_any_type_end_in_the_same_line(folder: Path, refused: Any, key: str, value: Any) -> None:
    edit_config(folder, architectures=["UnheardOf"], **{key: value})
    assert "architecture: got 'UnheardOf', not supported" in refused(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "mish"}, "hidden_act: got 'mish', expected one of silu"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "rope scaling: got 'spiral', expected one of default, linear"),
        (
            {"rope_scaling": {"type": "dynamic", "alpha": -2.0}},
            "rope scaling ntk_alpha: a setting is no number that fits",
        ),
        ({"rope_theta": 0}, "rope scaling default: a setting is no number that fits (rope_theta 0"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention: got true, expected false; a model that"),
        ({"head_dim": 512}, "head_dim: got 512, expected at most 256, the most that the attention kernels take"),
        (
            {"tie_word_embeddings": False},
            "tensor lm_head.weight is missing, but the config says that the head is not the embedding; if it is, set "
            "tie_word_embeddings to true",
        ),
    ],
)
def test_settings_are_refused_in_one_line(folder: Path, refused: Any, changes: dict[str, Any], message: str) -> None:
    edit_config(folder, **changes)
    assert message in refused(folder)


def test_refusals_by_transformers_come_before_weights_are_rounded(
    folder: Path, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_config(folder, torch_dtype="float8")
    monkeypatch.delattr("sol_rt.export.pipeline.written_aside")
    line = refused(folder)
    assert "its config is refused by transformers (module 'torch' has no attribute 'float8'), expected" in line
    assert "or export with --no-parity --calibration none" in line
    monkeypatch.undo()
    export_bundle(str(folder), folder.parent / "bundle", parity=False, **LEVELS)


def test_a_head_of_its_own_in_a_tied_model_is_named(folder: Path, refused: Any) -> None:
    tensors = load_file(folder / WEIGHTS)
    embed = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": embed.clone()}, folder / WEIGHTS)
    assert open_checkpoint(folder)
    export_bundle(str(folder), folder.parent / "equal", parity=False, **LEVELS)
    other = embed.clone()
    other[7, 3] += 1
    save_file({**tensors, "lm_head.weight": other}, folder / WEIGHTS)
    line = refused(folder)
    assert "tensor lm_head.weight differs from model.embed_tokens.weight" in line
    assert "set tie_word_embeddings to false in config.json if the head is its own" in line
    edit_config(folder, tie_word_embeddings=False)
    export_bundle(str(folder), folder.parent / "own", parity=False, **LEVELS)


def test_missing_shards_are_named(folder: Path, refused: Any) -> None:
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save_file(tensors, folder / "model-00001-of-00002.safetensors")
    assert "got shards such as model-00001-of-00002.safetensors without model.safetensors.index.json" in refused(folder)
    where = dict.fromkeys(tensors, "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert "shard model-00002-of-00002.safetensors is missing" in refused(folder)


def test_quantized_checkpoints_are_told_from_incomplete_ones(folder: Path, refused: Any) -> None:
    edit_config(folder, quantization_config={"quant_method": "awq", "bits": 4})
    tensors, name = load_file(folder / WEIGHTS), "model.layers.0.self_attn.q_proj"
    values = tensors.pop(f"{name}.weight")
    said = "the checkpoint is quantized ('awq'); export from the unquantized one"
    save_file({**tensors, f"{name}.qweight": torch.zeros(64, 8, dtype=torch.int32)}, folder / WEIGHTS)
    assert f"tensor {name}.weight is missing; {said}" in refused(folder)
    save_file({**tensors, f"{name}.weight": torch.zeros(values.numel() // 2, 1, dtype=torch.uint8)}, folder / WEIGHTS)
    assert f"expected [64] after the first axis, by config.json; {said}" in refused(folder)


def test_a_folder_of_gguf_files_is_told_from_a_checkpoint(folder: Path, refused: Any, tmp_path: Path) -> None:
    only = tmp_path / "only"
    only.mkdir()
    gguf_file(only, folder).write()
    assert "got a folder of GGUF files, expected one of them; name it, " in refused(only)
    gguf_file(folder, folder).write()
    assert open_checkpoint(folder).path == folder, "a folder with a config is a checkpoint"


def gguf_file(tmp_path: Path, folder: Path) -> GgufFile:
    return GgufFile(tmp_path / "model.gguf", folder).metadata(16).tensors()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", 3, "GGUF key llama.block_count: got 3, but the tensors are of 2 layers"),
        ("block_count", 1, "GGUF key llama.block_count: got 1, but the tensors are of 2 layers"),
        ("attention.head_count", 7, "tensor blk.0.attn_q.weight: got 64 rows, expected a multiple of 14 for 7 heads"),
        (
            "embedding_length",
            96,
            "tensor model.embed_tokens.weight: got shape [320, 64], expected [96]",
        ),
        ("feed_forward_length", 128, "got 192 rows, expected 256, by its metadata"),
        ("rope.dimension_count", 32, "GGUF key llama.rope.dimension_count: got 32, expected at most 16, the"),
        ("rope.dimension_count", 7, "model.gguf: metadata: got 4 heads over 2 KV heads with 7 rotated channels"),
        ("attention.key_length", 512, "model.gguf: metadata: head_dim: got 512, expected at most 256, the most"),
        ("attention.value_length", 32, "GGUF key llama.attention.value_length: got 32, expected 16 channels a head"),
    ],
)
def test_metadata_that_disagree_with_tensors_are_named(
    folder: Path, refused: Any, tmp_path: Path, key: str, value: int, message: str
) -> None:
    file = gguf_file(tmp_path, folder)
    file.writer.kv_data[0].pop(f"llama.{key}", None)
    file.writer.add_uint32(f"llama.{key}", value)
    assert message in refused(file.write())


def test_a_setting_names_the_gguf_file_whoever_reads_it(folder: Path, tmp_path: Path) -> None:
    file = gguf_file(tmp_path, folder)
    file.writer.kv_data[0].pop("llama.rope.dimension_count", None)
    file.writer.add_uint32("llama.rope.dimension_count", 7)
    config = open_checkpoint(file.write()).config
    with pytest.raises(CheckpointError, match=r"^.*model\.gguf: metadata: got 4 heads over 2 KV heads with 7 rotated"):
        from_hf_config(config)
    with pytest.raises(CheckpointError, match=r"^config\.json: got 4 heads over 2 KV heads with 7 rotated"):
        from_hf_config(dict(config))


def trait_of_gguf(architecture: str, metadata: dict[str, Any]) -> str:
    """The trait in the line of a file of an architecture, whose first layer has the tensor `ssm_a`."""
    line = gguf_refusal({"general.architecture": architecture, **metadata}, ["blk.0.ssm_a"], FAMILIES)
    return line.partition("not supported: ")[2].partition("; nearest that works: ")[0]


@pytest.mark.parametrize(
    ("architecture", "metadata", "said"),
    [
        ("gemma3n", {}, "got 'gemma3n', not supported; nearest that works: Gemma 3"),
        ("rwkv7", {}, "got 'rwkv7', not supported: linear attention; nearest that works: Qwen3"),
        ("bert", {"bert.attention.causal": False}, "got 'bert', not supported: it attends to later tokens"),
        ("gpt-oss", {}, "got 'gpt-oss', not supported: a mixture of experts with attention sinks"),
    ],
)
def test_an_unknown_architecture_of_a_gguf_file_names_the_nearest(
    architecture: str, metadata: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        family_of_gguf({"general.architecture": architecture, **metadata})
    assert "; nearest that works: " in str(caught.value)
    with pytest.raises(CheckpointError, match=r"general\.architecture: got None, expected the name of an architecture"):
        family_of_gguf(metadata)


def test_traits_of_gguf_files_are_named(folder: Path, refused: Any, tmp_path: Path) -> None:
    for key, what in (
        ("expert_count", "a mixture of experts"),
        ("attention.kv_lora_rank", "multi-head latent attention (MLA)"),
        ("ssm.state_size", "state-space layers (Mamba)"),
    ):
        file = gguf_file(tmp_path, folder)
        file.writer.add_uint32(f"llama.{key}", 8)
        file.add("blk.0.ssm_a", np.ones(4, np.float32))
        line = refused(file.write())
        assert f"GGUF architecture llama: not supported: {what}; nearest that works: " in line
    assert trait_of_gguf("qwen35", {"qwen35.ssm.state_size": 128}) == "linear attention"
    file = gguf_file(tmp_path, folder)
    file.writer.add_uint16("split.count", 3)
    assert "got one part of 3, expected a whole GGUF file; join them" in refused(file.write())


def test_a_model_without_a_chat_template_says_what_to_do_in_chat(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    bundle = export_bundle(str(folder), tmp_path / "bundle", parity=False, **LEVELS).path
    assert main(["chat", "-m", str(bundle), "-p", "Hello"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert "this model has no chat template; use sol-rt generate -p, or put a chat_template.jinja into the" in err
    assert main(["generate", "-m", str(bundle), "-p", "Hello", "-n", "2"]) == 0


TOKENIZER_CODE = """
from pathlib import Path
from transformers import PreTrainedTokenizerFast
Path(r"MARK").touch()
class OwnTokenizer(PreTrainedTokenizerFast):
    vocab_files_names = {}
    def __init__(self, **settings):
        super().__init__(**{**settings, "tokenizer_file": r"VOCABULARY"})
"""


@pytest.mark.parametrize("graph", [False, True], ids=["tensors", "graph"])
def test_code_of_a_checkpoint_runs_only_if_asked_for(
    folder: Path, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: bool
) -> None:
    if graph:
        folder = write_onnx_folder(folder, tmp_path / "graph")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (folder / "tokenizer.json").rename(folder / "own.json")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    mapped = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "own_code.OwnTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **mapped}))
    mark = tmp_path / "ran"
    code = TOKENIZER_CODE.replace("MARK", str(mark)).replace("VOCABULARY", str(folder / "own.json"))
    (folder / "own_code.py").write_text(code)
    assert "the tokenizer is code that comes with the checkpoint (auto_map); read that" in refused(folder)
    assert not mark.exists()
    bundle = export_bundle(str(folder), tmp_path / "bundle", parity=False, trust_remote_code=True, **LEVELS).path
    assert mark.exists()
    assert "auto_map" not in json.loads((bundle / "tokenizer_config.json").read_text())


@pytest.mark.parametrize("form", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_a_vision_model_is_exported(folder: Path, tmp_path: Path, form: str) -> None:
    wanted = open_checkpoint(folder)
    text = {**wanted.config, "rope_theta": 20000.0}
    del text["architectures"]
    config = transformers.LlavaConfig(text_config=text, vision_config={"model_type": "clip_vision_model"}).to_dict()
    config["architectures"] = ["LlavaForConditionalGeneration"]
    tensors = load_file(folder / WEIGHTS)
    renamed = {name.replace("model.", form, 1): tensor for name, tensor in tensors.items()}
    save_file({**renamed, "vision_tower.post_layernorm.weight": torch.ones(4)}, folder / WEIGHTS)
    (folder / "config.json").write_text(json.dumps(config))
    got = open_checkpoint(folder)
    assert set(got.names()) == set(wanted.names())
    assert all(np.array_equal(got.read(name), wanted.read(name)) for name in wanted.names())
    report = export_bundle(str(folder), tmp_path / "bundle", **LEVELS)
    assert report.parity is not None
    assert report.parity.rows[0].kl < 0.01, "transformers runs the text part with the same settings"
    assert "the text part of a vision model: 1 tensors that see images are left out" in report.lines()


@pytest.mark.parametrize("change", [{"hidden_size": "wide"}, {"rope_scaling": 7}, {"id2label": 1}, {"model_type": []}])
def test_a_text_part_with_wrong_values_is_refused_in_one_line(
    folder: Path, refused: Any, change: dict[str, Any]
) -> None:
    text = {**open_checkpoint(folder).config, **change}
    edit_config(folder, architectures=["LlavaForConditionalGeneration"], vision_config={}, text_config=text)
    line = refused(folder)
    assert "config.json: text_config: " in line or "a vision tower whose text part does not stand alone" in line


def test_every_nearest_model_is_of_a_family_that_works() -> None:
    from sol_rt.export.sources.refusals import nearest

    for kind in ("gemma3n", "granitemoe", "qwen3_next", "mistral4", "olmoe", "phimoe", "deepseek_v3", "x"):
        assert nearest({"model_type": kind}, FAMILIES)
        assert nearest({"model_type": kind}, ["llama"]) == "Llama 3.2"
