"""Readers of what an export is given: GGUF files, checkpoint folders, policies, stored calibrations."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch

from fuzz.targets import Reader
from helpers.gguf_file import GgufFile
from helpers.random_checkpoint import PRESETS, RandomCheckpoint, write_random_checkpoint
from helpers.random_decoder import describe
from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.config_reader import read_config
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.bundle.selection import Measured
from sol_rt.export.actions.action_set import choose_actions
from sol_rt.export.actions.lm_head_bits import Head
from sol_rt.export.actions.measuring import Measurements
from sol_rt.export.actions.stored import Settings, StoredCalibration
from sol_rt.export.bundle_folder import seal
from sol_rt.export.graphs.policy_graph import PolicyShape, random_policy_parameters
from sol_rt.export.pipeline import _write_small_files, export_bundle
from sol_rt.export.policy_file import TrainedPolicy, read_fitting, write_policy, write_policy_graph
from sol_rt.export.sources.checkpoint import check_tensors
from sol_rt.export.sources.decoder import family_of, from_hf_config
from sol_rt.export.sources.model_section import model_section
from sol_rt.export.sources.open_checkpoint import open_checkpoint
from sol_rt.export.weights import memory
from sol_rt.export.weights.mixed_bits import graph_precisions
from sol_rt.export.weights.weights_file import blob_bytes, layout

_SMALL = RandomCheckpoint("llama", hidden_size=32, num_layers=1, num_heads=2, num_kv_heads=1, intermediate_size=32,
                          vocab_size=300, max_context=64)  # fmt: skip
_WHOLE_OF = 40
"""One of so many inputs is exported from beginning to end."""


def _exported(source: Path, folder: Path, data: bytes) -> None:
    """Does what an export does before its weights are read, and reads a row of every tensor; or exports it all."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    if hashlib.sha256(data).digest()[0] % _WHOLE_OF == 0:
        export_bundle(str(source), out, calibration="none", parity=False, bits=(8, 4), channel_density=(1.0,))
        return
    checkpoint = open_checkpoint(source)
    family, decoder = family_of(checkpoint.config), from_hf_config(checkpoint.config, None)
    check_tensors(checkpoint, decoder, family)
    precisions = graph_precisions((8, 4), checkpoint, decoder, family.names)
    size = blob_bytes(layout(decoder, family.names, planes=2).values())
    memory.require_memory(memory.needed_memory(decoder, False, size, True, calibration=False), 1 << 30)
    out.mkdir()
    _write_small_files(out, checkpoint, decoder)
    model_section(checkpoint, decoder, str(source), "fuzzed", out)
    assert precisions
    for name in checkpoint.names():
        rows = checkpoint.shape(name)[:1]
        if rows and rows[0]:
            checkpoint.read(name, rows[0] - 1, rows[0])
            checkpoint.codes(name, 0, 1)


def gguf_file(folder: Path) -> Reader:
    """A GGUF file, of floats and of Q4_0 weights."""
    source = write_random_checkpoint(folder / "source", _SMALL)
    seeds = []
    for kind in (None, "Q4_0"):
        path = GgufFile(folder / f"{kind}.gguf", source).metadata(16).tensors(kind).write()
        seeds.append(path.read_bytes())
    tried = folder / "tried.gguf"

    def read(data: bytes) -> None:
        tried.unlink(missing_ok=True)  # the one before may still be mapped
        tried.write_bytes(data)
        _exported(tried, folder, data)

    return Reader(read, seeds)


def _folder_file(folder: Path, name: str, shape: RandomCheckpoint = _SMALL) -> Reader:
    """One file of a checkpoint folder."""
    source = write_random_checkpoint(folder / "source", shape)
    seed = (source / name).read_bytes()

    def read(data: bytes) -> None:
        (source / name).unlink(missing_ok=True)
        (source / name).write_bytes(data)
        _exported(source, folder, data)

    return Reader(read, [seed])


def safetensors_file(folder: Path) -> Reader:
    """`model.safetensors` of a checkpoint folder."""
    return _folder_file(folder, "model.safetensors")


def hf_config(folder: Path) -> Reader:
    """`config.json` of a checkpoint folder, of three families."""
    made = [_folder_file(_made(folder / preset), "config.json", PRESETS[preset]) for preset in
            ("tiny-llama", "tiny-phi", "tiny-phi3")]  # fmt: skip
    seeds = [reader.seeds[0] for reader in made]
    scaled = json.loads(seeds[0])
    scaled["rope_scaling"] = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled["rope_scaling"]["original_max_position_embeddings"] = 512

    def read(data: bytes) -> None:
        place = 1 if b'"phi"' in data else 2 if b'"phi3"' in data else 0
        made[place].read(data)

    return Reader(read, [*seeds, json.dumps(scaled).encode()])


def torch_file(folder: Path) -> Reader:
    """`pytorch_model.bin` of a checkpoint folder."""
    source = write_random_checkpoint(folder / "source", _SMALL)
    checkpoint = open_checkpoint(source)
    path = source / "pytorch_model.bin"
    torch.save({name: torch.from_numpy(checkpoint.read(name)) for name in checkpoint.names()}, path)
    del checkpoint
    (source / "model.safetensors").unlink()
    seed = path.read_bytes()

    def read(data: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        _exported(source, folder, data)

    return Reader(read, [seed])


def policy_file(folder: Path) -> Reader:
    """`policy.safetensors`, whose metadata hold JSON, given to a bundle."""
    bundle = write_bundle(folder / "tiny", channel_densities=(1.0,), bits=(8, 4))
    config = read_config(bundle / CONFIG_NAME)
    actions = tuple(entry.action for entry in config.actions)
    shape = PolicyShape(config.model.hidden_size, len(KNOWN_SCALARS), len(actions), width=8, heads=2, scalar_size=4,
                        action_size=4)  # fmt: skip
    parameters = {name: np.asarray(value, np.float32) for name, value in random_policy_parameters(0, shape).items()}
    path = folder / "policy.safetensors"
    about = "made up", parameters, config.model.name
    write_policy(path, TrainedPolicy(shape, KNOWN_SCALARS, actions, *about))
    seed = path.read_bytes()

    def read(data: bytes) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(data)
        write_policy_graph(folder, read_fitting(path, config), config, "made.onnx")

    return Reader(read, [seed])


def stored_calibration(folder: Path) -> Reader:
    """A stored calibration, applied to a bundle."""
    bundle = write_bundle(folder / "tiny", channel_densities=(1.0, 0.5), bits=(8, 4), kv_densities=(1.0, 0.3))
    config, decoder = Bundle.open(bundle).config, describe("llama")
    settings = Settings("0" * 64, (8, 4), (1.0, 0.5), (1.0, 0.3), config.kv.dtype, config.model.max_context)
    front = {
        entry.action: Measured(1e5 * entry.action.bits * entry.action.channel_density, 8 - entry.action.bits, 0.01)
        for entry in config.actions
    }
    stored = StoredCalibration(
        settings=settings,
        origin="made up",
        fitted=((1, 2, 3), (4, 5, 6)),
        most_channels=None,
        lm_heads={8: Head(8), 4: Head(8, 40, 0.25)},
        active_channels={
            key: {name: getattr(variant, name) for name in config.model.channels}
            for key, variant in config.variants.items()
            if variant.channel_density < 1
        },
        measured=Measurements({64: front, 256: front}, {64: 100, 256: 100}, {64: 4.0, 256: 3.5}, math.inf),
        prompt_losses={"s100-q4": {256: 0.01}},
    )
    path, out = folder / "s.calibration.json", folder / "out"
    stored.write(path)
    seed = path.read_bytes()

    def read(data: bytes) -> None:
        path.write_bytes(data)
        made = StoredCalibration.read(path)
        made.difference(settings, ())
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(bundle, out)
        applied = made.applied(out, config, decoder)
        choose_actions(out, seal(out, applied, config.files["weights.bin"]), made.measured, made.origin, 4)

    return Reader(read, [seed])


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
