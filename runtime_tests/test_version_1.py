"""Bundles of format version 1, whose layers all keep the same, run as those of today with equal counts do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from tiny_bundle import seal, write_bundle

from sol_rt.actions import Action
from sol_rt.bundle import Bundle
from sol_rt.config import CONFIG_NAME, SolConfig
from sol_rt.engine import Engine
from sol_rt.errors import UsageError
from sol_rt.ops import library_path
from sol_rt.verify import verify_bundle

COUNTS = ([40, 40], [50, 50])
CHEAP = Action(30, 50, 4)
TOKENS = [int(token) for token in np.random.default_rng(2).integers(0, 90, 120)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("now") / "tiny", bits=(8, 4))


@pytest.fixture(scope="module")
def old_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("old") / "tiny"))
    for path in folder.glob("model.*.onnx"):
        path.write_bytes(_of_version_1(onnx.load(str(path), load_external_data=False)).SerializeToString())
    raw = json.loads((folder / CONFIG_NAME).read_text())
    raw["format_version"] = 1
    del raw["kv"]["dense_layers"]
    for variant in raw["variants"].values():
        del variant["head_bits"]
        cheap = variant["prune"] == 50
        variant["keep_in"], variant["keep_mid"] = (COUNTS[0][0], COUNTS[1][0]) if cheap else (64, 96)
    seal(folder, SolConfig.from_json_dict(raw, folder / CONFIG_NAME))
    return folder


def _of_version_1(model: onnx.ModelProto) -> onnx.ModelProto:
    """One count an input, no attribute `layer`, and bodies that take the counts as they come."""
    for value in model.graph.input:
        if value.name in ("attn_keep", "mlp_keep_in", "mlp_keep_mid"):
            value.type.tensor_type.shape.dim[0].dim_value = 1
    for node in model.graph.node:
        kept = [attribute for attribute in node.attribute if attribute.name != "layer"]
        del node.attribute[:]
        node.attribute.extend(kept)
    (body,) = (function for function in model.functions if function.name == "DecoderLayer")
    body.attribute.remove("layer")
    counts = ("attn_keep", "keep_in", "keep_mid")
    gathers = {node.output[0]: node for node in body.node if node.op_type == "Gather" and node.input[0] in counts}
    assert sorted(node.input[0] for node in gathers.values()) == sorted(counts)
    indices = {node.input[1] for node in gathers.values()}
    reshapes = [node for node in body.node if node.output[0] in indices]
    sources = {node.input[0] for node in reshapes}
    gone = [*gathers.values(), *reshapes, *(node for node in body.node if node.output[0] in sources)]
    nodes = [node for node in body.node if node not in gone]
    for node in nodes:
        for place, name in enumerate(node.input):
            if name in gathers:
                node.input[place] = gathers[name].input[0]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del body.node[:]
    body.node.extend(copies)
    return model


@pytest.mark.parametrize("native", [True, False])
def test_it_runs_as_before(bundle: Path, old_bundle: Path, native: bool) -> None:
    if native and library_path() is None:
        pytest.skip("the native operators are not built")
    old, new = (Engine(Bundle.open(path), provider="cpu", native_ops=native) for path in (old_bundle, bundle))
    new.keep_channels("s050-q4", *COUNTS)
    for engine in (old, new):
        engine.forward(TOKENS[:100], engine.bundle.config.dense)
    for token in TOKENS[100:]:
        assert np.array_equal(old.forward([token], CHEAP).logits, new.forward([token], CHEAP).logits)


def test_its_config_comes_back_as_it_was(old_bundle: Path) -> None:
    raw = json.loads((old_bundle / CONFIG_NAME).read_text())
    config = SolConfig.from_json(old_bundle / CONFIG_NAME)
    assert config.to_json_dict() == raw
    assert config.variants["s050-q4"].keep_in == (40, 40)
    assert config.variants["s050-q4"].head_bits == 4
    assert verify_bundle(old_bundle).files == len(raw["files"])


def test_it_holds_no_counts_by_layer(old_bundle: Path) -> None:
    engine = Engine(Bundle.open(old_bundle), provider="cpu")
    engine.keep_channels("s050-q4", [30, 30], [40, 40])
    with pytest.raises(UsageError, match=r"keep_in: .*version 1 .*export it again"):
        engine.keep_channels("s050-q4", [30, 31], [40, 40])
