"""Calibration: Hessians against transformers, and weights.bin filled with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exporting comes with the extra export")
gguf = pytest.importorskip("gguf", reason="exporting comes with the extra export")
import transformers  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from helpers.gguf_file import GgufFile  # noqa: E402
from helpers.random_checkpoint import PRESETS, write_random_checkpoint  # noqa: E402
from sol_rt.bundle.bits import Precision  # noqa: E402
from sol_rt.bundle.config import TensorEntry  # noqa: E402
from sol_rt.errors import CheckpointError  # noqa: E402
from sol_rt.export.quantize.gptq import one_thread_each  # noqa: E402
from sol_rt.export.sources.checkpoint import Checkpoint, matrices  # noqa: E402
from sol_rt.export.sources.decoder import Decoder, family_of, from_hf_config  # noqa: E402
from sol_rt.export.sources.families import Family  # noqa: E402
from sol_rt.export.sources.open_checkpoint import open_checkpoint  # noqa: E402
from sol_rt.export.weights.hessian import channel_groups, matrix_inputs  # noqa: E402
from sol_rt.export.weights.weights_file import fill_blob, layout  # noqa: E402
from sol_rt.progress import silent  # noqa: E402
from sol_rt.train.reference_model.weights import ModelWeights, read_blob  # noqa: E402

FAMILY_PRESETS = ("tiny-llama", "tiny-qwen2", "tiny-phi3", "tiny-phi")
WINDOWS = [[int(token) for token in row] for row in np.random.default_rng(0).integers(3, 320, (5, 40))]


def described(path: Path) -> tuple[Checkpoint, Decoder, Family]:
    checkpoint = open_checkpoint(path)
    return checkpoint, from_hf_config(checkpoint.config), family_of(checkpoint.config)


def tensors_of(path: Path, levels: tuple[int, ...]) -> dict[str, TensorEntry]:
    _, decoder, family = described(path)
    return layout(decoder, family.names, planes=(max(levels) - 4) // 2)


def alike(levels: tuple[int, ...]) -> list[Precision]:
    return [Precision(level, level) for level in levels]


def fill(source: Path, blob: Path, levels: tuple[int, ...] = (8, 6, 4), windows: Any = WINDOWS) -> Path:
    fill_blob(blob, *described(source), tensors_of(source, levels), alike(levels), silent, windows)
    return blob


def filled(source: Path, blob: Path) -> ModelWeights:
    return read_blob(blob, tensors_of(source, (8, 6, 4)), described(source)[1])


def hessians_of(path: Path, windows: Any = WINDOWS, most_channels: int | None = None) -> dict[str, list[Any]]:
    """The Hessians of the groups of every matrix."""
    with one_thread_each() as pool:
        inputs = list(matrix_inputs(*described(path), windows, silent, pool, most_channels))
        return {groups[0].matrix: [group.hessian() for group in groups] for groups in inputs}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_random_checkpoint(tmp_path / "checkpoint", PRESETS["tiny-llama"])


@pytest.mark.parametrize("preset", [*FAMILY_PRESETS, "tiny-lfm2"])
def test_hessians_are_of_what_transformers_modules_read(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_random_checkpoint(tmp_path / preset, PRESETS[preset])
    _, decoder, family = described(source)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
    read: dict[str, Any] = {}
    modules = dict(matrices(decoder, family.names))
    modules["embed" if decoder.tied else "head"] = ("lm_head",)
    if not decoder.tied:
        del modules["embed"]
    for matrix, names in modules.items():
        for name in names:
            keep = lambda module, inputs, matrix=matrix: read.__setitem__(matrix, inputs[0].flatten(0, 1).double())  # noqa: E731
            model.get_submodule(name).register_forward_pre_hook(keep)
    with torch.inference_mode():
        model(torch.tensor(WINDOWS))
    monkeypatch.setattr("sol_rt.export.weights.hessian._TOKENS_AT_ONCE", 100)  # several batches, the last one smaller
    monkeypatch.setattr("sol_rt.export.weights.hessian._COLUMNS_AT_ONCE", 48)
    longer = [[*window, *[5] * extra] for extra, window in enumerate(WINDOWS)]  # cut to the shortest
    got = hessians_of(source, longer)
    assert got.keys() == modules.keys()
    split = hessians_of(source, longer, most_channels=64)
    for matrix, (hessian,) in got.items():
        wanted = read[matrix].T @ read[matrix] / len(read[matrix])
        np.testing.assert_allclose(hessian, wanted, atol=2e-4 * float(wanted.diagonal().max()))
        assert [len(group) for group in split[matrix]] == channel_groups(len(wanted), 64)
        start = 0
        for group in split[matrix]:
            part = slice(start, start + len(group))
            np.testing.assert_allclose(group, wanted[part, part], atol=2e-4 * float(wanted.diagonal().max()))
            start = part.stop


def test_groups_of_channels_are_whole_blocks() -> None:
    assert channel_groups(96, None) == [96]
    assert channel_groups(8960, 2560) == [2240] * 4
    assert channel_groups(160, 96) == [96, 64]
    assert sum(channel_groups(11008, 2560)) == 11008
    assert max(channel_groups(11008, 2560)) <= 2560


def test_groups_are_quantized_as_matrices_of_their_own(folder: Path, tmp_path: Path) -> None:
    """GPTQ fits each group to its own inputs alone."""
    checkpoint, decoder, family = described(folder)
    path, tensors = tmp_path / "split.bin", tensors_of(folder, (8, 6, 4))
    fill_blob(path, checkpoint, decoder, family, tensors, alike((8, 6, 4)), silent, WINDOWS, most_channels=64)
    split = read_blob(path, tensors, decoder).matrix("layers.1.down")
    whole = read_blob(fill(folder, tmp_path / "whole.bin"), tensors, decoder).matrix("layers.1.down")
    w = torch.from_numpy(checkpoint.read("model.layers.1.mlp.down_proj.weight"))
    hessians = hessians_of(folder, most_channels=64)["layers.1.down"]
    start = 0
    for hessian in hessians:
        part = slice(start, start + len(hessian))
        errors = [(each.at(4)[:, part] - w[:, part]).double() for each in (split, whole)]
        own, other = (float(((error @ hessian.double()) * error).sum()) for error in errors)
        assert own < 1.1 * other  # fitted to this group's Hessian alone
        start = part.stop
    assert start == w.shape[1]
    assert not torch.equal(split.at(4), whole.at(4))


@pytest.mark.slow
@pytest.mark.parametrize("preset", FAMILY_PRESETS)
def test_outputs_of_a_calibrated_blob_are_closer(preset: str, tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / preset, PRESETS[preset])
    checkpoint, decoder, family = described(source)
    calibrated = filled(source, fill(source, tmp_path / "calibrated.bin"))
    plain = filled(source, fill(source, tmp_path / "plain.bin", windows=None))
    modules = matrices(decoder, family.names)
    for matrix, (hessian,) in hessians_of(source).items():
        w = torch.from_numpy(np.concatenate([checkpoint.read(f"{module}.weight") for module in modules[matrix]]))

        def lost(weights: ModelWeights, level: int, w: Any = w, hessian: Any = hessian, matrix: str = matrix) -> float:
            error = (weights.matrix(matrix).at(level) - w).double()
            return float(((error @ hessian.double()) * error).sum())

        # random weights make inputs that hardly go together: little to gain, at a price for 8 bits
        for level, limit in ((4, 1.0), (6, 1.0), (8, 1.5)):
            assert lost(calibrated, level) < limit * lost(plain, level), (matrix, level)


@pytest.mark.parametrize("levels", [(4,), (6, 4), (8, 6)])
def test_other_ladders_can_be_filled(levels: tuple[int, ...], folder: Path, tmp_path: Path) -> None:
    checkpoint, decoder, _ = described(folder)
    weights = read_blob(fill(folder, tmp_path / "blob.bin", levels), tensors_of(folder, levels), decoder)
    w = torch.from_numpy(checkpoint.read("model.layers.1.mlp.down_proj.weight"))
    errors = [float((weights.matrix("layers.1.down").at(level) - w).square().mean()) for level in levels]
    assert errors == sorted(errors)
    assert errors[-1] < 0.02 * float(w.square().mean())


def test_the_same_text_gives_the_same_file(folder: Path, tmp_path: Path) -> None:
    one, other = fill(folder, tmp_path / "one.bin"), fill(folder, tmp_path / "other.bin")
    assert one.read_bytes() == other.read_bytes()
    assert one.read_bytes() != fill(folder, tmp_path / "plain.bin", windows=None).read_bytes()


@pytest.mark.parametrize("tensors", ["floats", "Q4_1"])
def test_the_number_of_threads_does_not_show(tensors: str, folder: Path, tmp_path: Path) -> None:
    source = folder
    if tensors != "floats":
        source = GgufFile(tmp_path / "model.gguf", folder).metadata(16).tensors(tensors).write()
    files, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            files.append(fill(source, tmp_path / f"{count}.bin").read_bytes())
    finally:
        torch.set_num_threads(threads)
    assert files[0] == files[1] == files[2]


def test_a_files_own_codes_stay_the_base(tmp_path: Path) -> None:
    source = write_random_checkpoint(tmp_path / "hf", PRESETS["tiny-llama"])
    path = GgufFile(tmp_path / "model.gguf", source).metadata(16).tensors("Q4_0").write()
    checkpoint, _, _ = described(path)
    weights = filled(path, fill(path, tmp_path / "blob.bin"))
    name = "model.layers.1.mlp.down_proj.weight"
    own, w = checkpoint.codes(name, 0, 64), torch.from_numpy(checkpoint.read(name))
    assert own is not None
    codes = weights.matrix("layers.1.down").codes
    assert np.array_equal(codes >> 4, own.q)
    assert torch.equal(weights.matrix("layers.1.down").at(4), w)
    assert 0 < float((weights.matrix("layers.1.down").at(8) - w).abs().max()) < 0.3 * float(own.scale.max())


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.mlp.down_proj.weight",
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.input_layernorm.weight",
        "model.norm.weight",
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_named(name: str, value: float, folder: Path, tmp_path: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[name].view(-1)[17] = value
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name}: got NaN or infinite weights"):
        fill(folder, tmp_path / "blob.bin")


def test_progress_reaches_its_total(folder: Path, tmp_path: Path) -> None:
    told: list[tuple[str, float, float]] = []
    levels = (8, 6, 4)
    fill_blob(
        tmp_path / "blob.bin",
        *described(folder),
        tensors_of(folder, levels),
        alike(levels),
        lambda *step: told.append(step),
        WINDOWS,
    )
    assert told[0][1] < told[-1][1] == told[-1][2]
    assert [step[1] for step in told] == sorted(step[1] for step in told)
