"""The whole export: what is in a bundle, how close it is to its source, and that a failure leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exporting comes with the extra export")
import gguf  # noqa: E402
import onnx  # noqa: E402
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from helpers.gguf_file import GgufFile  # noqa: E402
from helpers.random_checkpoint import PRESETS, RandomCheckpoint, write_random_checkpoint  # noqa: E402
from sol_rt import atomic_write  # noqa: E402
from sol_rt.bundle.actions import Action  # noqa: E402
from sol_rt.bundle.bits import MIXED  # noqa: E402
from sol_rt.bundle.bundle import Bundle  # noqa: E402
from sol_rt.bundle.config import ALIGNMENT, CONFIG_NAME, KvLayout  # noqa: E402
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS  # noqa: E402
from sol_rt.bundle.verify import verify_bundle  # noqa: E402
from sol_rt.errors import CheckpointError, UsageError  # noqa: E402
from sol_rt.export import (  # noqa: E402
    export_bundle,
    parity,
    pipeline,
)
from sol_rt.export.actions.candidates import CHANNEL_DENSITIES  # noqa: E402
from sol_rt.export.graphs.policy_graph import PolicyShape, random_policy_parameters  # noqa: E402
from sol_rt.export.pipeline import ExportReport  # noqa: E402
from sol_rt.export.policy_file import TrainedPolicy, read_policy, write_policy  # noqa: E402
from sol_rt.export.quantize.nested import quantize_matrix  # noqa: E402
from sol_rt.export.sources.decoder import family_of, from_hf_config  # noqa: E402
from sol_rt.export.sources.families import FAMILIES  # noqa: E402
from sol_rt.export.sources.open_checkpoint import open_checkpoint  # noqa: E402
from sol_rt.export.weights import memory  # noqa: E402
from sol_rt.progress import silent  # noqa: E402

FAMILY_PRESETS = ("tiny-llama", "tiny-qwen2", "tiny-phi3", "tiny-phi", "tiny-lfm2")
GGUF_PARTS = [
    ("blk.1.ffn_down.weight", "model.layers.1.mlp.fc2.weight"),
    ("blk.1.attn_q.weight", "model.layers.1.self_attn.q_proj.weight"),
    ("blk.1.ffn_up.bias", "model.layers.1.mlp.fc1.bias"),
    ("output_norm.weight", "model.final_layernorm.weight"),
    ("output.weight", "lm_head.weight"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama checkpoint that a test may damage."""
    return write_random_checkpoint(tmp_path / "checkpoint", PRESETS["tiny-llama"])


def export(source: Path, output: Path, **options: Any) -> ExportReport:
    """A small export without calibration and comparison."""
    levels = {"bits": (8, 4), "channel_density": (1.0, 0.5), "kv_density": (1.0, 0.25)}
    given = {**levels, "calibration": "none", "parity": False, **options}
    return export_bundle(str(source), output, **given)


def tensor(bundle: Path, name: str) -> np.ndarray:
    """A tensor of the blob; uint4 as bytes with half the last axis."""
    config = json.loads((bundle / CONFIG_NAME).read_text())
    entry = config["weights"]["tensors"][name]
    data = np.fromfile(bundle / "weights.bin", np.uint8, entry["bytes"], offset=entry["offset"])
    if entry["dtype"] == "uint4":
        return data.reshape(*entry["shape"][:-1], -1)
    return data.view(entry["dtype"]).reshape(entry["shape"])


@pytest.mark.parametrize("preset", FAMILY_PRESETS)
def test_export_is_complete_and_close_to_its_source(preset: str, tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / preset, PRESETS[preset])
    report = export_bundle(str(source), tmp_path / "out", calibration="none")
    config = Bundle.open(tmp_path / "out").config
    assert config == report.config
    levels_of_bits = {variant.bits for variant in config.variants.values()}
    # of mixed and 6 bits one may be cheaper and closer than the other
    assert {8, 4, 3} <= levels_of_bits <= {8, 6, MIXED, 4, 3}
    assert len(config.variants) == len(CHANNEL_DENSITIES) * len(levels_of_bits)
    assert len(config.actions) == 4 * len(config.variants)
    assert config.dense == Action(1.0, 1.0, 8)
    assert config.model.name == preset
    assert verify_bundle(tmp_path / "out").tensors == len(config.tensors)
    for variant in config.variants.values():
        onnx.checker.check_model(str(tmp_path / "out" / variant.file))
    assert report.parity is not None
    kl = [row.kl for row in report.parity.rows]
    assert kl[0] < 2e-3
    assert kl[0] < kl[1] < kl[2] < 0.1
    assert f"{kl[0]:.3g}" in (tmp_path / "out" / "README.md").read_text()
    assert any("s100-q8" in line for line in report.lines())


@pytest.mark.parametrize("preset", FAMILY_PRESETS)
def test_the_streamed_reference_is_transformers_model(preset: str, tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / preset, PRESETS[preset])
    checkpoint = open_checkpoint(source)
    ids = list(range(5, 45))
    got = parity.reference_logits(
        checkpoint, from_hf_config(checkpoint.config), family_of(checkpoint.config), ids, silent
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_a_family_like_those_known_is_added_by_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mistral = replace(
        FAMILIES["llama"],
        architecture="MistralForCausalLM",
        model_type="mistral",
        gguf=None,
        qkv_bias=False,
        output_bias=False,
        mlp_bias=False,
    )
    monkeypatch.setitem(FAMILIES, "mistral", mistral)
    source = write_random_checkpoint(tmp_path / "source", RandomCheckpoint("mistral"))
    report = export(source, tmp_path / "out", bits=(8,), parity=True)
    assert report.config.model.architecture == "MistralForCausalLM"
    assert report.parity is not None
    assert report.parity.rows[0].kl < 2e-3


@pytest.mark.parametrize("norm", [4.0, 1e38], ids=["other", "not finite"])
def test_a_graph_of_other_weights_fails_the_comparison(norm: float, folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", bits=(8,))
    other = write_random_checkpoint(tmp_path / "other", PRESETS["tiny-llama"], seed=1)
    tensors = load_file(other / "model.safetensors")
    factors = {"model.norm.weight": norm, "model.embed_tokens.weight": 100.0}
    save_file({name: value * factors.get(name, 4.0) for name, value in tensors.items()}, other / "model.safetensors")
    checkpoint = open_checkpoint(other)
    with pytest.raises(CheckpointError, match="nats from transformers"):
        parity.measure(
            checkpoint,
            from_hf_config(checkpoint.config),
            family_of(checkpoint.config),
            tmp_path / "out",
            (8,),
            silent,
        )


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_no_bundle_can_hold_are_refused_at_once(folder: Path, tmp_path: Path) -> None:
    named = tmp_path / os.fsdecode(b"small\xff")
    shutil.copytree(folder, named)
    for source, calibration in ((named, "none"), (folder, tmp_path / os.fsdecode(b"text\xff"))):
        with pytest.raises(UsageError, match="got a name that is not UTF-8, expected one that is; rename it"):
            export_bundle(str(source), tmp_path / "out", calibration=calibration)
    with pytest.raises(UsageError, match=f"save calibration {tmp_path}: a folder"):
        export_bundle(str(folder), tmp_path / "out", calibration="full", save_calibration=tmp_path)


def test_blob_holds_the_quantized_weights(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", bits=(8, 6, 4))
    weights = load_file(folder / "model.safetensors")
    at = "model.layers.1."
    up = quantize_matrix(np.concatenate([weights[f"{at}mlp.{part}_proj.weight"].numpy() for part in ("gate", "up")]), 2)
    base = tensor(tmp_path / "out", "layers.1.up.base")
    assert np.array_equal(base & 15, up.q[0::2].T)
    assert np.array_equal(tensor(tmp_path / "out", "layers.1.up.scale"), up.scale)
    qkv = quantize_matrix(np.concatenate([weights[f"{at}self_attn.{part}_proj.weight"].numpy() for part in "qkv"]), 2)
    assert np.array_equal(tensor(tmp_path / "out", "layers.1.qkv.base") >> 4, qkv.q[1::2].T)
    embed = quantize_matrix(weights["model.embed_tokens.weight"].numpy(), 2)
    block = tensor(tmp_path / "out", "embed.base")
    assert np.array_equal(block[1] & 15, embed.q[:, 32:64:2])
    assert np.array_equal(tensor(tmp_path / "out", "layers.1.qkv.zero"), qkv.zero)
    norm = weights["model.norm.weight"].numpy()
    assert np.array_equal(tensor(tmp_path / "out", "final_norm.weight"), norm)
    entries = json.loads((tmp_path / "out" / CONFIG_NAME).read_text())["weights"]["tensors"].values()
    assert all(entry["offset"] % ALIGNMENT == 0 for entry in entries)


@pytest.mark.slow
def test_packed_projections_are_the_same_model(folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    packed = dict(weights)
    for i in range(2):
        for joint, parts in (("self_attn.qkv", "q k v"), ("mlp.gate_up", "gate up")):
            block, _ = joint.split(".")
            names = [f"model.layers.{i}.{block}.{part}_proj.weight" for part in parts.split()]
            packed[f"model.layers.{i}.{joint}_proj.weight"] = torch.cat([packed.pop(name) for name in names])
    other = Path(shutil.copytree(folder, tmp_path / "packed"))
    save_file(packed, other / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
    (other / "config.json").write_text(json.dumps(config))
    export(folder, tmp_path / "one")
    report = export(other, tmp_path / "two", parity=True)
    assert (tmp_path / "one" / "weights.bin").read_bytes() == (tmp_path / "two" / "weights.bin").read_bytes()
    assert report.parity is not None
    assert report.parity.rows[0].kl < 2e-3


@pytest.mark.slow
def test_the_size_of_pieces_changes_no_byte(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(folder, tmp_path / "whole")
    monkeypatch.setattr("sol_rt.export.weights.weights_file.PIECE_WEIGHTS", 64 * 6)
    export(folder, tmp_path / "pieces")
    assert (tmp_path / "whole" / "weights.bin").read_bytes() == (tmp_path / "pieces" / "weights.bin").read_bytes()


@pytest.mark.parametrize(("bits", "planes"), [((4,), 0), ((6, 4), 1), ((8,), 2)])
def test_planes_follow_the_widest_level(bits: tuple[int, ...], planes: int, folder: Path, tmp_path: Path) -> None:
    report = export(folder, tmp_path / "out", bits=bits)
    assert report.config.dense.bits == max(bits)
    present = [plane for plane in (1, 2) if f"embed.plane{plane}" in report.config.tensors]
    assert len(present) == planes


def test_context_sets_the_rope_tables(folder: Path, tmp_path: Path) -> None:
    report = export(folder, tmp_path / "out", max_context=96)
    assert report.config.model.max_context == 96
    assert tensor(tmp_path / "out", "rope.cos").shape == (96, 8)


def test_facts_of_the_source_are_kept(folder: Path, tmp_path: Path) -> None:
    (folder / "README.md").write_bytes(b"---\r\nlicense: mit\r\n---\r\n# tiny\r\n")  # as Windows writes it
    report = export(folder, tmp_path / "out")
    assert report.config.model.license == "mit"
    assert report.config.model.source == "checkpoint"
    assert len(report.config.model.eos_token_ids) == 2
    text = "".join(path.read_text() for path in (tmp_path / "out").glob("*.[jm][sd]*"))
    assert str(tmp_path) not in text


def test_fetched_checkpoints_are_told_by_their_recipe(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    fetched = tmp_path / "home" / "checkpoints"
    shutil.copytree(folder, fetched / "phi-2")
    shutil.copytree(folder, fetched / "owner--name")
    model = export(fetched / "phi-2", tmp_path / "out").config.model
    assert (model.source, model.license) == ("microsoft/phi-2", "MIT")
    assert export(fetched / "owner--name", tmp_path / "out").config.model.source == "owner/name"


def snapshot(path: Path) -> set[str]:
    return {str(entry.relative_to(path)) for entry in path.rglob("*")}


def fails(source: Path, output: Path, error: type[BaseException], match: str | None, **options: Any) -> None:
    before = snapshot(output.parent)
    with pytest.raises(error, match=match):
        export(source, output, **options)
    assert snapshot(output.parent) == before


@pytest.mark.parametrize(
    "name",
    ["model.layers.1.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight", "model.embed_tokens.weight"],
)
def test_non_finite_weights_leave_nothing(name: str, folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[17] = float("nan")
    save_file(weights, folder / "model.safetensors")
    fails(folder, tmp_path / "out", CheckpointError, f"tensor {name}: got NaN or infinite")


@pytest.mark.parametrize("name", ["self_attn.v_proj.bias", "mlp.fc2.bias", "input_layernorm.bias"])
def test_non_finite_biases_leave_nothing(name: str, tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "checkpoint", PRESETS["tiny-phi"])
    weights = load_file(source / "model.safetensors")
    weights[f"model.layers.1.{name}"][3] = -float("inf")
    save_file(weights, source / "model.safetensors")
    fails(source, tmp_path / "out", CheckpointError, rf"tensor model\.layers\.1\.{name}: got NaN or infinite")


@pytest.mark.parametrize("kind", ["F32", "F16", "Q4_1", "Q8_0"])
@pytest.mark.parametrize(("module", "name"), GGUF_PARTS)
def test_non_finite_numbers_of_gguf_files_leave_nothing(module: str, name: str, kind: str, tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "checkpoint", PRESETS["tiny-phi"])
    path = GgufFile(tmp_path / "model.gguf", source).metadata(8).tensors(kind).write()
    tensor = next(t for t in gguf.GGUFReader(str(path)).tensors if t.name == module)
    # the first number of a tensor of floats, the first block's scale of others
    damage = (np.float32 if tensor.tensor_type.name == "F32" else np.float16)("nan").tobytes()
    data = bytearray(path.read_bytes())
    data[tensor.data_offset : tensor.data_offset + len(damage)] = damage
    path.write_bytes(data)
    fails(path, tmp_path / "out", CheckpointError, rf"tensor {name}: got NaN or infinite")


def test_interruption_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    def interrupt(step: str, done: float, total: float) -> None:
        if step.startswith("rounding weights") and done > total / 2:
            raise KeyboardInterrupt

    fails(folder, tmp_path / "out", KeyboardInterrupt, None, progress=interrupt)


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", ["away", "in place", "exchange"])
def test_an_interruption_of_the_replacement_loses_nothing(
    step: str, moment: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(folder, tmp_path / "out", bits=(8,))
    rename, exchange, interrupted = Path.rename, atomic_write._exchange, False

    def interrupt(path: Path, target: Path) -> Path:
        nonlocal interrupted
        if not interrupted and step == ("away" if path.name == "out" else "in place"):
            interrupted = True
            if moment == "after":
                rename(path, target)
            raise KeyboardInterrupt
        return rename(path, target)

    def exchange_and_interrupt(one: Path, other: Path) -> bool:
        if moment == "after" and not exchange(one, other):
            pytest.skip("this system cannot swap two folders in one step")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", interrupt)
    swap = exchange_and_interrupt if step == "exchange" else lambda one, other: False
    monkeypatch.setattr(atomic_write, "_exchange", swap)
    with pytest.raises(KeyboardInterrupt):
        export(folder, tmp_path / "out", bits=(4,))
    replaced = step != "away" and moment == "after"
    assert Bundle.open(tmp_path / "out").config.dense.bits == (4 if replaced else 8)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "out"}


@pytest.mark.slow
def test_a_linked_bundle_is_replaced_where_it_is(folder: Path, tmp_path: Path) -> None:
    export(folder, tmp_path / "real", bits=(8,))
    (tmp_path / "link").symlink_to(tmp_path / "real")
    export(folder, tmp_path / "link", bits=(4,))
    assert Bundle.open(tmp_path / "real").config.dense.bits == 4
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "real", "link"}


def test_a_full_disk_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    fails(folder, tmp_path / "out", CheckpointError, "no room left in")


def test_too_little_memory_or_disk_is_said_before_anything_starts(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 100_000_000)
    fails(folder, tmp_path / "out", CheckpointError, r"needs \d+ MB, available are 100 MB")
    monkeypatch.undo()
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    fails(folder, tmp_path / "out", CheckpointError, r"disk: the bundle needs \d+ MB, free in .* are 0 MB")


def test_memory_needs_grow_with_the_model_not_with_its_depth() -> None:
    def needed(calibration: bool = False, **changes: int) -> int:
        sizes = {"num_hidden_layers": 32, "hidden_size": 2560, "intermediate_size": 10240, **changes}
        decoder = from_hf_config(
            {
                "architectures": ["PhiForCausalLM"],
                "num_attention_heads": 32,
                "vocab_size": 51200,
                "max_position_embeddings": 2048,
                **sizes,
            }
        )
        return memory.needed_memory(decoder, True, 3_000_000_000, native=True, calibration=calibration)

    assert needed() < 2_000_000_000
    assert needed() < needed(calibration=True) < 5_000_000_000
    assert needed(calibration=True, num_hidden_layers=64) == needed(calibration=True)
    assert needed(num_hidden_layers=64) == needed()
    assert needed(hidden_size=5120, intermediate_size=20480) > needed()


def drop_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def shrink_vocabulary(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:300].contiguous()
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 300}))


def break_end_token(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": 100000}')


def break_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_tokenizer, "no tokenizer.json, and none can be made"),
        (shrink_vocabulary, "token ids up to 319, expected 0 to 299"),
        (break_end_token, "eos_token_id: got 100000"),
        (break_template, r"chat_template\.jinja: got no UTF-8 text"),
    ],
)
def test_tokenizers_that_do_not_fit_leave_nothing(
    damage: Callable[[Path], None], message: str, folder: Path, tmp_path: Path
) -> None:
    steps = []
    damage(folder)
    fails(folder, tmp_path / "out", CheckpointError, message, progress=lambda step, *_: steps.append(step))
    assert set(steps) <= {"opening the source"}  # said at once


@pytest.mark.slow
@pytest.mark.parametrize("preset", FAMILY_PRESETS)
def test_an_int8_cache_is_as_close_to_the_source(preset: str, tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / preset, PRESETS[preset])
    report = export_bundle(str(source), tmp_path / "out", kv="int8", bits=(8,), calibration="none")
    config = Bundle.open(tmp_path / "out").config
    kinds = ("conv", "attention") * 2 if preset == "tiny-lfm2" else ()
    assert config.kv == KvLayout("int8", layers=kinds, conv_size=3 if kinds else 0)
    onnx.checker.check_model(str(tmp_path / "out" / "model.q8.onnx"), full_check=True)
    model = config.model
    size = (kinds.count("attention") or model.num_layers) * model.num_kv_heads * 2 * (model.head_dim + 2)
    assert f"| KV cache | int8, {size} bytes a token |" in (tmp_path / "out" / "README.md").read_text()
    assert report.parity is not None
    assert report.parity.rows[0].kl < 2e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": (8, 7)}, "bits: got .* expected different ones of 8, 6, mixed, 4"),
        ({"bits": ()}, "bits: got"),
        ({"channel_density": (0.75, 0.5)}, "channel_density: got .* expected 1 among them"),
        ({"kv_density": (1.0, 1.0)}, "kv_density: got .* different"),
        ({"kv_density": (1.0, 0.0)}, "kv_density: got .* 0.01 to 1"),
        ({"kv": "int4"}, "kv: got int4, expected float16 or int8"),
        ({"bits": (2,)}, r"bits: got 2, expected different ones of 8, 6, mixed, 4"),
        ({"kv_density": (1.0, 1.01)}, "kv_density: got .* 0.01 to 1"),
        ({"max_actions": 0, "calibration": "full"}, "max actions: got 0, expected 1 or more"),
        ({"channel_density": (1.0, 0.03), "calibration": "quick"}, "channel_density: got 0.03, expected 0.04 to 1"),
        ({"max_actions": 5}, "max actions: got 5, .* without one nothing says which actions to drop"),
        ({"calibration": "no-such-file"}, "calibration no-such-file: no such file"),
    ],
)
def test_ladders_are_checked(options: dict[str, Any], message: str, folder: Path, tmp_path: Path) -> None:
    fails(folder, tmp_path / "out", UsageError, message, **options)


@pytest.mark.slow
def test_only_bundles_are_replaced(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / "diary.txt").write_text("mine")
    fails(folder, output, UsageError, "no bundle")
    (output / "diary.txt").unlink()
    export(folder, output)
    first = (output / CONFIG_NAME).read_text()
    export(folder, output, bits=(8,), channel_density=(1.0,))
    assert not (output / "model.q4.onnx").exists()
    assert (output / CONFIG_NAME).read_text() != first
    assert Bundle.open(output).config.variants.keys() == {"s100-q8"}
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("inf")
    save_file(weights, folder / "model.safetensors")
    fails(folder, output, CheckpointError, r"model\.norm\.weight")
    assert Bundle.open(output).config.variants.keys() == {"s100-q8"}


def test_unknown_sources_are_refused(tmp_path: Path) -> None:
    fails(tmp_path / "nothing", tmp_path / "out", UsageError, "no such file or folder")


def policy_for(actions: tuple[str, ...], hidden: int = 64) -> TrainedPolicy:
    shape = PolicyShape(hidden, len(KNOWN_SCALARS), len(actions), width=32)
    parameters = random_policy_parameters(0, shape)
    return TrainedPolicy(shape, KNOWN_SCALARS, tuple(map(Action.parse, actions)), "untrained", parameters)


@pytest.mark.slow
def test_policies_are_bound_to_the_bundle(folder: Path, tmp_path: Path) -> None:
    policy = policy_for(("k100-s100-q8", "k025-s050-q4"))
    write_policy(tmp_path / "policy.safetensors", policy)
    again = read_policy(tmp_path / "policy.safetensors")
    assert (again.shape, again.scalars, again.actions) == (policy.shape, policy.scalars, policy.actions)
    report = export(folder, tmp_path / "out", policy=tmp_path / "policy.safetensors")
    assert report.config.policy is not None
    assert report.config.policy.actions == policy.actions
    assert "policy.onnx" in Bundle.open(tmp_path / "out").config.files
    write_policy(tmp_path / "foreign.safetensors", policy_for(("k100-s075-q8",)))
    foreign = tmp_path / "foreign.safetensors"
    fails(folder, tmp_path / "other", CheckpointError, "the policy picks k100-s075-q8", policy=foreign)
    write_policy(tmp_path / "large.safetensors", policy_for(("k100-s100-q8",), hidden=96))
    large = tmp_path / "large.safetensors"
    fails(folder, tmp_path / "other", CheckpointError, "made for hidden size 96", policy=large)
    fails(folder, tmp_path / "other", CheckpointError, "got no policy", policy=folder / "config.json")


def reported(**divergences: tuple[float, ...]) -> parity.Parity:
    """A report by bits, from many to few."""
    rows = [parity.ParityRow(f"s100-{tag}", 0.1, values, 1.0) for tag, values in divergences.items()]
    return parity.Parity(len(rows[0].divergences), tuple(rows))


def test_widths_that_a_narrower_one_beats_are_dropped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = reported(q8=(0.01,) * 8, q6=(0.3, 0.2) * 4, q4=(0.2, 0.11) * 4)
    monkeypatch.setattr(pipeline.parity_report, "measure", lambda *_: compared)
    report = export(folder, tmp_path / "out", bits=(8, 6, 4), parity=True)
    assert set(report.config.variants) == {"s100-q8", "s050-q8", "s100-q4", "s050-q4"}
    assert not list((tmp_path / "out").glob("*q6.onnx"))
    assert {entry.action.bits for entry in report.config.actions} == {8, 4}
    assert report.lines()[-1].startswith("6 bits dropped: 4 bits")
    verify_bundle(tmp_path / "out")


def test_a_width_is_dropped_for_one_that_reads_less_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If 4-bit codes are only a part of one matrix, 5 bits read more than 6. 5 bits stay if they are closer, and go if
    they are farther.
    """
    queries = tuple(f"blk.{layer}.attn_q" for layer in range(2))
    file = GgufFile(tmp_path / "model.gguf", write_random_checkpoint(tmp_path / "llama", PRESETS["tiny-llama"]))
    file.metadata(16).tensors("Q8_0", leave_out=queries)
    for layer, name in enumerate(queries):
        file.add(f"{name}.weight", file.source.read(f"model.layers.{layer}.self_attn.q_proj.weight"), "Q4_0")
    source = file.write()
    for mixed, kept in ((0.1, {8, 6, MIXED, 4}), (0.3, {8, 6, 4})):
        compared = reported(q8=(0.01,) * 8, q6=(0.2, 0.21) * 4, qmix=(mixed,) * 8, q4=(0.4,) * 8)
        monkeypatch.setattr(pipeline.parity_report, "measure", lambda *_, compared=compared: compared)
        report = export(source, tmp_path / f"{mixed}", bits=(8, 6, MIXED, 4), parity=True)
        assert {variant.bits for variant in report.config.variants.values()} == kept


def test_widths_are_not_dropped_by_chance(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # in the mean 4 bits are closer, by one position of eight
    compared = reported(q8=(0.01,) * 8, q6=(0.1, 0.2) * 3 + (0.1, 0.9), q4=(0.11, 0.22) * 4)
    assert compared.rows[2].kl < compared.rows[1].kl
    monkeypatch.setattr(pipeline.parity_report, "measure", lambda *_: compared)
    report = export(folder, tmp_path / "out", bits=(8, 6, 4), parity=True)
    assert {variant.bits for variant in report.config.variants.values()} == {8, 6, 4}
    assert not report.dropped
