"""Graphs of every decoder family: valid ONNX, docs/reference/bundle-details.md section 1, the decoder's arithmetic."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from helpers.random_decoder import CONFIGS, STATES, TRAITS, WEIGHTS, RandomDecoder, describe
from helpers.reference import Array
from sol_rt.bundle.bits import MIXED
from sol_rt.bundle.config import TensorEntry, Variant
from sol_rt.export.graphs.graph import LayerShapes, active_counts
from sol_rt.export.sources.decoder import Decoder

import onnxruntime as ort

COUNTS = {
    "active_up": "active_up",
    "active_down": "active_down",
    "active_qkv": "active_qkv",
    "active_o": "active_o",
}
"""Of a variant, by the graph's input."""
VARIANTS = ((1.0, 8), (1.0, MIXED), (1.0, 4), (0.75, 6), (0.5, 4), (0.25, 8))
TOKENS = [int(token) for token in np.random.default_rng(5).integers(0, 90, 40)]


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RandomDecoder]:
    folder = tmp_path_factory.mktemp(request.param)
    return folder, RandomDecoder.write(describe(request.param), folder)


def _signature(values: list[onnx.ValueInfoProto]) -> dict[str, tuple[int, list[int | str]]]:
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


@pytest.mark.parametrize(("channel_density", "bits"), VARIANTS)
def test_graph_is_valid_and_small(made: tuple[Path, RandomDecoder], channel_density: float, bits: int) -> None:
    folder, decoder = made
    path = decoder.write_graph(folder, channel_density, bits)
    onnx.checker.check_model(str(path), full_check=True)
    assert path.stat().st_size < (72 if bits == MIXED else 56) << 10  # two bodies of some operators
    model = onnx.load(str(path), load_external_data=False)
    assert model.ir_version == 11
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": 23, "com.microsoft": 1, "sol": 1}
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    called = {("sol", node.op_type, node.overload) for node in nodes if node.domain == "sol"}
    assert {(function.domain, function.name, function.overload) for function in model.functions} == called
    assert {name for _, name, overload in called if overload} == ({"DecoderLayer"} if bits == MIXED else set())


def test_inputs_and_outputs_are_the_contract(made: tuple[Path, RandomDecoder]) -> None:
    folder, decoder = made
    graph = onnx.load(str(decoder.write_graph(folder, 0.5, 4)), load_external_data=False).graph
    shape = decoder.decoder
    half, whole, real = TensorProto.FLOAT16, TensorProto.INT64, TensorProto.FLOAT
    inputs: dict[str, tuple[int, list[int | str]]] = {"input_ids": (whole, [1, "S"])}
    inputs |= {name: (whole, [1]) for name in ("past_length", "num_logits")}
    inputs |= {"kv_pages": (whole, ["sparse_kv_layers"]), **dict.fromkeys(COUNTS, (whole, ["sparse_channel_layers"]))}
    inputs["total_length"] = (TensorProto.INT32, [1])
    outputs: dict[str, tuple[int, list[int | str]]] = {
        "logits": (real, ["M", shape.vocab_size]),
        "hidden_states": (real, ["M", shape.hidden_size]),
    }
    for layer in range(shape.num_layers):
        for part in ("key", "value"):
            cache = (half, [1, shape.num_kv_heads, "C", shape.head_dim])
            inputs[f"past_key_values.{layer}.{part}"] = outputs[f"present.{layer}.{part}"] = cache
        codes = (TensorProto.UINT8, [1, shape.num_kv_heads, "C", shape.head_dim // 2])
        for part, kind in (("codes", codes), ("range", (half, [1, shape.num_kv_heads, "C", 2]))):
            inputs[f"past_key_{part}.{layer}"] = outputs[f"present_key_{part}.{layer}"] = kind
    assert _signature(graph.input) == inputs
    assert _signature(graph.output) == outputs


@pytest.mark.parametrize(("channel_density", "bits"), VARIANTS)
def test_weights_are_references_into_the_blob(
    made: tuple[Path, RandomDecoder], channel_density: float, bits: int
) -> None:
    folder, decoder = made
    graph = onnx.load(str(decoder.write_graph(folder, channel_density, bits)), load_external_data=False).graph
    for tensor in graph.initializer:
        entry = decoder.tensors[tensor.name]
        place = {item.key: item.value for item in tensor.external_data}
        assert place == {"location": WEIGHTS, "offset": str(entry.offset), "length": str(entry.bytes)}
        assert tuple(tensor.dims) == entry.shape
    names = {tensor.name for tensor in graph.initializer}
    read = {name for name in decoder.tensors if not name.startswith("embed.")}
    # a variant reads the planes of its bits, and a row of the embedding at the widest
    four, six = r"0\.(o|up)|1\.(qkv|down)", r"0\.down|1\.o"
    mixed = rf"^layers\.({four})\.plane[12]$|^layers\.({six})\.plane2$|^head\.plane2$"
    skipped = {4: r"\.plane[12]$", MIXED: mixed, 6: r"\.plane2$", 8: "^$"}[bits]
    assert {name for name in names if not name.startswith("embed.")} == {
        name for name in read if not re.search(skipped, name)
    }
    assert {name for name in names if name.startswith("embed.")} == {
        f"embed.{part}" for part in ("base", "scale", "zero", "plane1", "plane2")
    }


def _run(
    path: Path, decoder: Decoder, tokens: list[int], wanted: int, variant: Variant | None = None
) -> tuple[Array, Array]:
    every = np.zeros(decoder.num_layers, np.int64)
    feed: dict[str, Array] = {"input_ids": np.array([tokens]), "num_logits": np.array([wanted])}
    feed |= {"past_length": np.array([0]), "kv_pages": every, "total_length": np.array([len(tokens)], np.int32)}
    feed |= {name: every if variant is None else np.array(getattr(variant, count)) for name, count in COUNTS.items()}
    for layer in range(decoder.num_layers):
        if decoder.kind(layer) == "conv":
            feed[f"past_conv.{layer}"] = np.zeros((1, decoder.hidden_size, decoder.conv_size - 1), np.float32)
            continue
        for part in ("key", "value"):
            feed[f"past_key_values.{layer}.{part}"] = np.zeros(
                (1, decoder.num_kv_heads, 64, decoder.head_dim), np.float16
            )
        # bodies pass codes through, of whatever capacity
        feed[f"past_key_codes.{layer}"] = np.zeros((1, decoder.num_kv_heads, 4, decoder.head_dim // 2), np.uint8)
        feed[f"past_key_range.{layer}"] = np.zeros((1, decoder.num_kv_heads, 4, 2), np.float16)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if "q8" in path.name or "qmix" in path.name:  # see docs/reference/bundle-details.md, section 3
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    logits, hidden = session.run(["logits", "hidden_states"], feed)
    return logits, hidden


@pytest.mark.parametrize("lm_head_bits", [6, 8])
def test_the_output_matrix_at_a_width_of_its_own(made: tuple[Path, RandomDecoder], lm_head_bits: int) -> None:
    folder, narrow = made
    decoder = replace(narrow, lm_head_bits={4: lm_head_bits})
    path = decoder.write_graph(folder, 1.0, 4)
    onnx.checker.check_model(str(path), full_check=True)
    got = _run(path, decoder.decoder, TOKENS, len(TOKENS))
    expected, other = (each.logits(TOKENS, 1.0, 4) for each in (decoder, narrow))
    error, difference = (np.sqrt(np.mean((got[0] - logits[0]) ** 2)) for logits in (expected, other))
    assert error <= 0.03 * np.sqrt(np.mean(expected[0] ** 2)) < difference


@pytest.mark.parametrize(("channel_density", "bits"), VARIANTS)
def test_graph_computes_the_decoder(made: tuple[Path, RandomDecoder], channel_density: float, bits: int) -> None:
    """Root mean square error within 3% of the values', for bodies round activations otherwise than kernels do; 20%
    where that flips choices of channels, in a random network of two narrow layers; 0.3% with 8 bits and nothing pruned,
    where attention's float16 is all that is left.
    """
    folder, decoder = made
    variant = decoder.variant(channel_density, bits)
    path = decoder.write_graph(folder, channel_density, bits)
    got = _run(path, decoder.decoder, TOKENS, len(TOKENS), variant)
    bound = 0.2 if channel_density < 1.0 else 0.003 if bits == 8 else 0.03
    unpruned = decoder.logits(TOKENS, 1.0, bits)
    for value, expected, whole in zip(got, decoder.logits(TOKENS, channel_density, bits), unpruned, strict=True):
        assert np.sqrt(np.mean((value - expected) ** 2)) <= bound * np.sqrt(np.mean(expected**2))
        error, pruning = (np.median(np.sqrt(np.mean((found - expected) ** 2, -1))) for found in (value, whole))
        assert channel_density == 1.0 or error < pruning / 2


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(TRAITS | STATES))
@pytest.mark.parametrize("bits", [8, MIXED, 4])
def test_graph_of_another_family_computes_the_decoder(family: str, bits: int, tmp_path: Path) -> None:
    """Unpruned, with the bounds above. Those of models with norms after attention and MLP pass a flip on in full."""
    test_graph_computes_the_decoder((tmp_path, RandomDecoder.write(describe(family), tmp_path)), 1.0, bits)


@pytest.mark.parametrize("bits", [8, MIXED])
def test_a_state_stands_beside_the_cache(bits: int, tmp_path: Path) -> None:
    decoder = RandomDecoder.write(describe("lfm2"), tmp_path)
    path = decoder.write_graph(tmp_path, 1.0, bits)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path), load_external_data=False)
    state = (TensorProto.FLOAT, [1, 64, 3])
    for values, side in ((model.graph.input, "past"), (model.graph.output, "present")):
        of_layers = {
            name: kind for name, kind in _signature(values).items() if name.startswith((f"{side}_", "present."))
        }
        of_layers.pop("past_length", None)
        assert of_layers.pop(f"{side}_conv.0") == state
        assert {name.split(".")[1] for name in of_layers} == {"1"}
    nodes = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    called = {("sol", node.op_type, node.overload) for node in nodes if node.domain == "sol"}
    assert {(function.domain, function.name, function.overload) for function in model.functions} == called


def test_last_positions_are_the_tail_of_all(made: tuple[Path, RandomDecoder]) -> None:
    folder, decoder = made
    path = decoder.write_graph(folder, 1.0, 8)
    every = _run(path, decoder.decoder, TOKENS, len(TOKENS))
    for wanted in (1, 7):
        for value, whole in zip(_run(path, decoder.decoder, TOKENS, wanted), every, strict=True):
            assert value.shape == (wanted, whole.shape[1])
            np.testing.assert_allclose(value, whole[-wanted:], rtol=1e-5, atol=1e-5)


_CHOOSERS = {"If", "TopK", "Softmax", "ScatterElements", "CumSum"}


def _optimized(path: Path, choosing: int, pruning: int) -> onnx.GraphProto:
    """Graph that ONNX Runtime makes when a session chooses tokens in `choosing` layers and channels in `pruning`
    layers.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path.with_suffix(".optimized.onnx"))
    options.add_free_dimension_override_by_name("S", 1)
    options.add_free_dimension_override_by_name("sparse_kv_layers", choosing)
    options.add_free_dimension_override_by_name("sparse_channel_layers", pruning)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath).graph


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_a_session_that_chooses_nothing_reads_the_planes_of_its_width_and_no_more(
    made: tuple[Path, RandomDecoder], bits: int
) -> None:
    folder, decoder = made
    graph = _optimized(decoder.write_graph(folder, 1.0, bits), 0, 0)
    layers = decoder.decoder.num_layers
    operators = [node.op_type for node in graph.node]
    assert not _CHOOSERS & set(operators)
    assert operators.count("GroupQueryAttention") == layers
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert len(products) == (4 * layers + 1) * (1 + (bits - 4) // 2)
    assert not {"DequantizeLinear", "MatMul"} & set(operators)
    sizes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    matrices = [name for name in decoder.matrices if decoder.decoder.tied or name != "embed"]
    weights = sum(decoder.matrices[name].q.size for name in matrices)
    assert sum(np.prod(sizes[node.input[1]]) for node in products) == weights * bits // 8
    # beside them a float of scale a plane and one of offset for every 32 weights; level 6 makes its offset of the scale
    assert sum(np.prod(sizes[node.input[2]]) for node in products) == weights // 32 * (1 + (bits - 4) // 2)
    gemms = [node for node in graph.node if node.op_type == "Gemm"]
    assert sum(np.prod(sizes[node.input[1]]) for node in gemms) == weights // 32 * (2 if bits == 6 else 1)


def test_a_layer_that_chooses_nothing_has_few_nodes(made: tuple[Path, RandomDecoder]) -> None:
    """Nodes that move data: on a GPU each is a dispatch or more, and most of a step's time on a small model."""
    folder, decoder = made
    views = {"Reshape", "Shape", "Unsqueeze", "Squeeze", "Constant", "Identity"}

    def moving(choosing: int, pruning: int) -> int:
        graph = _optimized(decoder.write_graph(folder, 1.0, 4), choosing, pruning)
        return sum(node.op_type not in views for node in graph.node)

    layers, beside = decoder.decoder.num_layers, 40
    dense = moving(0, 0)
    assert dense <= 28 * layers + beside
    assert moving(layers, 0) > dense + 20 * layers
    assert moving(0, layers) > dense + 20 * layers


SHAPES = [
    LayerShapes((576, 3072), (1536, 576), (576, 960), (576, 576)),  # gated, two queries a key
    LayerShapes((1536, 17920), (8960, 1536), (1536, 2048), (1536, 1536)),
    LayerShapes((2560, 10240), (10240, 2560), (2560, 7680), (2560, 2560)),  # neither
]


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("percent", [100, 99, 90, 75, 60, 50, 40, 25, 10, 1])
def test_active_counts_read_the_share(percent: int, shapes: LayerShapes) -> None:
    counts = active_counts(percent / 100, shapes)
    matrices = (shapes.up, shapes.down, shapes.qkv, shapes.o)
    for count, (channels, _) in zip(counts, matrices, strict=True):
        assert 1 <= count <= channels
        assert percent < 100 or count == channels
    reads = sum(count * outputs for count, (_, outputs) in zip(counts, matrices, strict=True))
    share = reads / sum(channels * outputs for channels, outputs in matrices)
    assert percent / 100 <= share < percent / 100 + 0.002


@pytest.mark.parametrize("shapes", SHAPES)
def test_a_lower_density_never_has_more_channels(shapes: LayerShapes) -> None:
    levels = [active_counts(percent / 100, shapes) for percent in range(100, 0, -1)]
    for more, fewer in itertools.pairwise(levels):
        assert all(a >= b for a, b in zip(more, fewer, strict=True))


def test_attention_of_few_weights_keeps_more_channels() -> None:
    for shapes, factor in zip(SHAPES, (1.0, 0.47, 1.0), strict=True):  # attention has a quarter, an eighth, a third
        _, _, qkv, o = active_counts(0.75, shapes)
        found = (qkv / shapes.qkv[0], o / shapes.o[0])
        assert found == pytest.approx((1 - factor * 0.2, 1 - factor * 0.36), abs=0.002)


def _all_bytes(tensors: dict[str, TensorEntry], *parts: str) -> int:
    return sum(entry.bytes for name, entry in tensors.items() if name.startswith("layers.") and name.endswith(parts))


def test_weight_bytes_count_what_a_step_reads(made: tuple[Path, RandomDecoder]) -> None:
    _, decoder = made
    shape, tensors = decoder.decoder, decoder.tensors
    variant = decoder.variant(0.5, 4)
    matrix = (".base", ".scale", ".zero")
    expected = _all_bytes(tensors, ".qkv.scale", ".o.scale", ".up.scale", ".down.scale", ".zero")
    expected += _all_bytes(tensors, ".weight", ".bias")
    expected += sum(variant.active_up) * shape.up_size // 2 + sum(variant.active_down) * shape.hidden_size // 2
    expected += sum(variant.active_qkv) * shape.qkv_size // 2 + sum(variant.active_o) * shape.hidden_size // 2
    head = "embed" if shape.tied else "head"
    expected += sum(tensors[head + part].bytes for part in matrix)
    expected += sum(tensors[name].bytes for name in tensors if name.startswith(("final_norm", "head.bias")))
    if not shape.tied:
        blocks = shape.hidden_size // 32
        expected += blocks * (16 + 8 + 8 + 2 + 1)  # one row of the embedding, all planes
    assert variant.weight_bytes == expected
    wide = replace(decoder, lm_head_bits={4: 8}).variant(0.5, 4)
    assert wide.weight_bytes == expected + sum(tensors[f"{head}.plane{index}"].bytes for index in (1, 2))
    assert (
        decoder.variant(1.0, 8).weight_bytes
        > decoder.variant(1.0, 6).weight_bytes
        > decoder.variant(0.75, 6).weight_bytes
    )
