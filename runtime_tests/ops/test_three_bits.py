"""The 3-bit level: its function bodies and graphs against the specification, and its form in configs.

A body's tolerance is that of levels 4 and 6 in test_bodies.py: ONNX Runtime rounds activations in its own way.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_bodies import assert_close, run_operator

from helpers import reference
from helpers.random_decoder import CONFIGS, THREE_BIT_LAYERS, RandomDecoder, describe
from helpers.reference import Coded, Nested, random_codebook
from helpers.tiny_bundle import seal, write_bundle
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import THREE, LayerBits
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.config_reader import parse_config
from sol_rt.bundle.verify import verify_bundle
from sol_rt.errors import BundleError
from sol_rt.export.graphs.functions import operators as bodies
from sol_rt.export.sources.decoder import family_of, from_hf_config
from sol_rt.export.sources.open_checkpoint import open_checkpoint
from sol_rt.export.weights.mixed_bits import graph_precisions
from sol_rt.generate.native.engine import Engine

BODY = 5e-3
WHOLE_GRAPH = 0.08
PRUNED_GRAPH = 0.35


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_an_export_reads_first_matrices_at_three_bits_but_the_last_layer_s(llama_checkpoint: Path, layers: int) -> None:
    checkpoint = open_checkpoint(llama_checkpoint)
    decoder = replace(from_hf_config(checkpoint.config, None), num_layers=layers)
    _, _, three = graph_precisions([8, 4, THREE], checkpoint, decoder, family_of(checkpoint.config).names)
    assert three.bits == THREE
    assert three.layers is not None
    assert [each.up for each in three.layers] == ([3] * layers)[: max(layers - 1, 1)] + [4] * (layers > 1)
    assert {(each.qkv, each.o, each.down) for each in three.layers} == {(4, 4, 4)}


@pytest.mark.parametrize("active", [0, 1, 40, 96])
@pytest.mark.parametrize("rows", [1, 5])
def test_pruned_matmul(rows: int, active: int) -> None:
    rng, k, n = np.random.default_rng(2), 96, 64
    coded, x = Coded.random(rng, k, n, random_codebook(rng)), rng.standard_normal((1, rows, k)).astype(np.float32)
    weights = {name.removeprefix("w."): part for name, part in coded.tensors("w").items()} | {
        "codebook": coded.codebook
    }
    body = bodies.pruned_matmul(THREE)
    assert body.input[2:] == ["low", "high", "block_scale", "output_scale", "codebook"]
    attributes = {"K": k, "N": n, "bits": THREE}
    feed = {"x": x, "active": np.array([active])}
    (y,) = run_operator(body, feed, weights, attributes, native=False)
    assert_close(y, reference.nested_matmul(reference.largest(x, active or k), coded, THREE), BODY)


@pytest.mark.parametrize(("up_bits", "down_bits"), [(3, 3), (3, 4), (4, 3), (8, 3), (3, 6)])
def test_pruned_mlp(up_bits: int, down_bits: int) -> None:
    """Inputs of level 3 stand where those of the base plane do; residual planes of the other matrix come after both."""
    rng, hidden, inner = np.random.default_rng(4), 64, 96
    codebook = random_codebook(rng)
    sizes = {"up": (hidden, 2 * inner), "down": (inner, hidden)}
    bits = {"up": up_bits, "down": down_bits}
    made: dict[str, Any] = {
        side: Coded.random(rng, *sizes[side], codebook) if own == THREE else Nested.random(rng, *sizes[side])
        for side, own in bits.items()
    }
    tensors = {"up_codebook": codebook, "down_codebook": codebook}
    for side, matrix in made.items():
        parts = matrix.tensors(side) if bits[side] == THREE else matrix.tensors(side, channel_major=True)
        tensors |= {name.replace(".", "_"): part for name, part in parts.items()}
    most = max(bits.values())
    own = {f"{side}_bits": level for side, level in bits.items() if level < most}
    body = bodies.pruned_mlp(
        most, **own, hidden=hidden, intermediate=inner, gated=True, activation="silu", has_bias=False
    )
    x = rng.standard_normal((1, 3, hidden)).astype(np.float32)
    feed = {"x": x, "active_up": np.array([48]), "active_down": np.array([0])}
    weights = {name: tensors[name] for name in body.input if name not in feed}
    attributes = {"K": hidden, "I": inner, "bits": most, **own, "gated": 1, "activation": "silu", "has_bias": 0}
    (y,) = run_operator(body, feed, weights, attributes, native=False)
    expected = reference.pruned_mlp(
        x, made["up"], made["down"], (up_bits, down_bits), gated=True, act="silu", active_up=48, active_down=inner
    )
    assert_close(y, expected, 4 * BODY)


@pytest.mark.parametrize("layers", [None, THREE_BIT_LAYERS], ids=["all", "some"])
@pytest.mark.parametrize("family", CONFIGS)
def test_graphs_of_function_bodies(family: str, layers: tuple[LayerBits, ...] | None, tmp_path: Path) -> None:
    """The bound is wide for pruned channels: one flipped choice of a channel changes a token's logits."""
    made = RandomDecoder.write(describe(family), tmp_path, three_bits=True, three_bit_layers=layers)
    bundle = Bundle.open(made.write_bundle(tmp_path, [(1.0, THREE), (0.5, THREE)]))
    engine = Engine(bundle, provider="cpu", native_ops=False)
    tokens = np.random.default_rng(7).integers(0, 90, 40).tolist()
    for channel_density, bound in ((1.0, WHOLE_GRAPH), (0.5, PRUNED_GRAPH)):
        engine.reset()
        expected, _ = made.logits(tokens, channel_density, THREE)
        got = engine.forward(tokens, Action(1.0, channel_density, THREE), num_logits=len(tokens)).logits
        assert np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)) <= bound, channel_density


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("three") / "tiny", bits=(8, 4, 3), three_bit_layers=THREE_BIT_LAYERS)


@pytest.fixture
def raw(tiny: Path) -> dict[str, Any]:
    return dict(json.loads((tiny / CONFIG_NAME).read_text()))


def test_a_config_round_trips(raw: dict[str, Any]) -> None:
    assert parse_config(raw, Path("x")).to_json_dict() == raw


def test_a_step_is_charged_the_rows_that_it_reads(tiny: Path) -> None:
    config = Bundle.open(tiny).config
    sizes = {name: entry.bytes for name, entry in config.tensors.items()}
    for key in ("s100-q3", "s050-q3"):
        variant = config.variants[key]
        head = [f"embed.{part}" for part in ("base", "scale", "zero")]
        total = sum(sizes[name] for name in head) + sizes["codebook"]
        total += sum(size for name, size in sizes.items() if name.endswith("norm.weight"))
        for layer, layer_bits in enumerate(variant.precision.layers or ()):
            for matrix, bits in layer_bits._asdict().items():
                at = f"layers.{layer}.{matrix}"
                active = getattr(variant, f"active_{matrix}")[layer]
                whole = ("block_scale", "output_scale") if bits == THREE else ("scale", "zero")
                rows = ("low", "high") if bits == THREE else ("base",)
                total += sum(sizes[f"{at}.{part}"] for part in whole)
                total += sum(sizes[f"{at}.{part}"] * active // config.tensors[f"{at}.{part}"].shape[0] for part in rows)
        assert variant.weight_bytes == total


@pytest.mark.parametrize("row", [[3, 3, 3, 6], [3, 3, 3, True], [3, 3, 3]])
def test_layer_bits_of_three_bits_are_3_or_4(row: list[Any], raw: dict[str, Any]) -> None:
    raw["variants"]["s100-q3"]["layer_bits"][1] = row
    with pytest.raises(
        BundleError, match=r"layer_bits: got .* expected a list of lists of 4 numbers of bits \(3 or 4\)"
    ):
        parse_config(raw, Path("x"))


def test_damaged_tensors_are_found(tiny: Path, tmp_path: Path) -> None:
    def damaged(edit: Any) -> Path:
        folder = Path(shutil.copytree(tiny, tmp_path / "damaged", dirs_exist_ok=True))
        document = json.loads((folder / CONFIG_NAME).read_text())
        edit(document["weights"]["tensors"])
        (folder / CONFIG_NAME).write_text(json.dumps(document))
        return folder

    def codebook(tensors: dict[str, Any]) -> None:
        tensors["codebook"]["shape"] = [8, 4]

    def block_scale(tensors: dict[str, Any]) -> None:
        tensors["layers.0.qkv.block_scale"]["shape"].reverse()

    def missing(tensors: dict[str, Any]) -> None:
        del tensors["layers.1.up.high"]

    with pytest.raises(BundleError, match=r"weights\.tensors\.codebook: got int8 \[8, 4\], expected int8 \[4, 8\]"):
        Bundle.open(damaged(codebook))
    with pytest.raises(BundleError, match=r"layers\.0\.qkv\.block_scale\.shape"):
        Bundle.open(damaged(block_scale))
    with pytest.raises(BundleError, match=r"layers\.1\.up\.high"):
        Engine(Bundle.open(damaged(missing)), provider="cpu", native_ops=False).forward([1], Action(1.0, 1.0, THREE))


def test_verify_finds_output_scales_that_are_not_finite(tiny: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny, tmp_path / "copy"))
    config = Bundle.open(folder).config
    entry = config.tensors["layers.1.down.output_scale"]
    with (folder / config.weights_file).open("r+b") as file:
        file.seek(entry.offset)
        file.write(np.array([np.inf], np.float16).tobytes())
    seal(folder, config)
    with pytest.raises(BundleError, match=r"layers\.1\.down\.output_scale: got inf at element 0"):
        verify_bundle(folder)
