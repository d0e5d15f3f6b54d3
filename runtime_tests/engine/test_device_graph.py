"""Graphs made ready for a GPU, run on the CPU: the numbers of the bundle's own, and weights that all of them share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from helpers.made_configs import made_config
from helpers.main_memory import MainMemory, OnMainMemory, cpu_session
from helpers.random_decoder import CONFIGS, THREE_BIT_LAYERS
from helpers.reference import Nested
from helpers.saved_session import saved
from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED, THREE
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.cache_layout import CacheLayout
from sol_rt.bundle.config import KvLayout, Variant
from sol_rt.bundle.graph_file import external_tensors
from sol_rt.bundle.weights import SharedWeights
from sol_rt.engine import providers
from sol_rt.engine.gpu.device_cache import DeviceCache
from sol_rt.engine.gpu.device_inputs import DeviceInputs
from sol_rt.engine.gpu.device_sessions import OpenGraph
from sol_rt.engine.gpu.device_weights import DeviceWeights
from sol_rt.engine.gpu.gpu_engine import GpuEngine
from sol_rt.engine.gpu.gpu_graphs import repacked
from sol_rt.engine.hardware import Gpu
from sol_rt.engine.signature import CHANNEL_INPUTS, SPARSE_DIMS
from sol_rt.errors import DeviceError, ProviderError
from sol_rt.export.graphs.gpu_graph import GpuGraph, gather_capacity, gpu_graph
from sol_rt.generate.native.engine import Engine

import onnxruntime as ort

PROMPT = list(range(20, 50))
TOKENS = range(7, 86, 6)
ROUNDED = {THREE: 0.04, 4: 0.03, MIXED: 0.01, 6: 0.03, 8: 0.003}
"""Relative error of the logits: on the CPU MatMulNBits rounds activations only where the weights are constants."""
_NORMS = "RMSNormalization", "LayerNormalization"


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder, bits = tmp_path_factory.mktemp("device") / "tiny", (8, 6, MIXED, 4, THREE)
    return Bundle.open(write_bundle(folder, request.param, bits=bits, three_bit_layers=THREE_BIT_LAYERS))


def _counts(bundle: Bundle, variant: Variant) -> dict[str, np.ndarray]:
    """Active channels of a variant; nothing where all are."""
    channels = bundle.config.model.channels.items()
    counts = np.array([np.array(getattr(variant, name)) % most for name, most in channels], np.int64)
    return dict(zip(CHANNEL_INPUTS, counts if counts.any() else counts[:, :0], strict=True))


def _graph(
    bundle: Bundle, variant: Variant, *, kv_density: float = 1.0, one_token: bool = True, float32: bool = False
) -> GpuGraph:
    constants = _counts(bundle, variant)
    if kv_density == 1.0:
        constants["kv_pages"] = np.zeros(0, np.int64)
    if one_token:
        constants["num_logits"] = np.ones(1, np.int64)
    return gpu_graph(
        bundle.read(variant.file),
        inline=True,
        bits=variant.precision.widest,
        kv=bundle.config.kv,
        constants=constants,
        dims=dict.fromkeys(SPARSE_DIMS, bundle.config.model.num_layers),
        one_token=one_token,
        float32=float32,
        kv_density=kv_density,
    )


@pytest.mark.parametrize(
    ("kv_density", "floats"),
    [
        (1.0, "float32"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in ((1.0, "float16"), (0.3, "float16"), (0.3, "float32"))
        ),
    ],
)
def test_a_step_gives_what_the_bundles_graph_gives(bundle: Bundle, kv_density: float, floats: str) -> None:
    """Pruned ones as nearly as a random network of two narrow layers allows: rounding chooses other channels there."""
    engine = Engine(bundle, provider="cpu", native_ops=False)
    weights = DeviceWeights(SharedWeights(bundle), MainMemory())

    def step(token: int, action: Action) -> list[np.ndarray]:
        engine.truncate(len(PROMPT))
        output = engine.forward([token], action)
        return [output.logits.copy(), output.hidden.copy()]

    for variant in bundle.config.variants.values():
        action = Action(kv_density, variant.channel_density, variant.bits)
        graph = _graph(bundle, variant, kv_density=kv_density, float32=floats == "float32")
        weights.place(graph.values)
        session = cpu_session(graph.model)
        binding = session.io_binding()
        weights.bind(binding, graph.values)
        engine.reset()
        engine.forward(PROMPT, bundle.config.dense)
        room = bundle.config.kv.capacity_for(len(PROMPT) + 1) - len(PROMPT)
        for past, held in saved(engine)[0].items():
            content = np.pad(held, [(0, 0), (0, 0), (0, room), *[(0, 0)] * (held.ndim - 3)])
            binding.bind_cpu_input(past, content.astype(content.dtype if content.dtype == np.uint8 else floats))

        pages = np.full(bundle.config.model.num_layers, action.pages(len(PROMPT), 4))
        pruned = variant.channel_density < 1.0
        errors, pruning = [], []
        for token in TOKENS if pruned else TOKENS[:1]:
            got = _run_step(session, binding, token, pages)
            expected = step(token, action)
            errors.append([_error(*pair) for pair in zip(got, expected, strict=True)])
            unpruned = step(token, replace(action, channel_density=1.0)) if pruned else expected
            pruning.append([_error(*pair) for pair in zip(unpruned, expected, strict=True)])
        bound = np.median(pruning, axis=0) / 2 if pruned else ROUNDED[variant.bits]
        assert (np.median(errors, axis=0) <= bound).all(), (action.tag, errors)


def _run_step(session: ort.InferenceSession, binding: ort.IOBinding, token: int, pages: np.ndarray) -> list[np.ndarray]:
    """Logits and hidden state of a token after the prompt, whose cache is bound."""
    small = {
        "input_ids": np.array([[token]]),
        "past_length": np.array([len(PROMPT)]),
        "total_length": np.array([len(PROMPT) + 1], np.int32),
        "kv_pages": pages,
    }
    for name in {node.name for node in session.get_inputs()} & small.keys():
        binding.bind_cpu_input(name, small[name])
    for node in session.get_outputs():
        binding.bind_output(node.name)
    session.run_with_iobinding(binding)
    got = dict(zip((node.name for node in session.get_outputs()), binding.copy_outputs_to_cpu(), strict=True))
    return [got["logits"], got["hidden_states"]]


def _error(got: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square, relative."""
    return float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))


def test_all_graphs_share_what_the_widest_one_holds(bundle: Bundle) -> None:
    variants = [
        each for each in bundle.config.variants.values() if each.bits != THREE
    ]  # 3 bits have weights of their own
    values = {
        variant.key: {value.name: value.bytes for value in _graph(bundle, variant, one_token=False).values}
        for variant in variants
    }
    widest = sum(values[bundle.config.dense.variant].values())
    together = sum({name: size for each in values.values() for name, size in each.items()}.values())
    assert together <= 1.05 * widest


@pytest.mark.parametrize(("kv_density", "dense_layers"), [(0.1, ()), (0.5, ()), (0.1, (1,))])
def test_a_layer_gathers_what_it_keeps_and_no_more(
    kv_density: float, dense_layers: tuple[int, ...], tmp_path: Path
) -> None:
    """A row of 64 tokens and 2 KV heads, of which a dense layer gathers all."""
    made = Bundle.open(write_bundle(tmp_path / "tiny", dense_layers=dense_layers))
    pairs, kv = 64 * 2, made.config.kv
    graph = onnx.load_from_string(_graph(made, made.config.variants["s100-q8"], kv_density=kv_density).model).graph
    sizes = [size for node in graph.node for size in _sorted_sizes(node)]
    assert sizes == [
        pairs if layer in dense_layers else gather_capacity(pairs, 2, kv_density, kv) for layer in range(2)
    ]
    assert gather_capacity(pairs, 2, kv_density, kv) == 2 * (-(-64 * round(100 * kv_density) // 100) + 4)


def _sorted_sizes(node: onnx.NodeProto) -> list[int]:
    """Output sizes of every TopK in a node's branches."""
    graphs = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    inner = [item for graph in graphs for item in graph.node]
    made = {item.output[0]: item for item in inner}
    sizes = [made[made[item.input[1]].input[0]].attribute[0].i for item in inner if item.op_type == "TopK"]
    return sizes + [size for item in inner for size in _sorted_sizes(item)]


@settings(max_examples=300, deadline=None)
@given(
    layout=st.sampled_from([(4, 4), (64, 64), (256, 256), (256, 64), (256, 16)]),
    kv_heads=st.sampled_from([1, 2, 3, 8, 32]),
    kv_density=st.integers(1, 99).map(lambda share: share / 100),
    context=st.integers(0, 1 << 13),
)
def test_there_is_room_for_what_a_row_keeps(
    layout: tuple[int, int], kv_heads: int, kv_density: float, context: int
) -> None:
    """`layout` is the step in which caches grow, and the tokens of a row."""
    step, row_tokens = layout
    old = context // 4
    rows = max(-(-4 * old // row_tokens), step // row_tokens)
    pages = Action(kv_density, 1.0, 8).pages(context, 4)
    kept = kv_heads * -(-4 * old // rows) if pages >= old else -(-4 * kv_heads * pages // rows)
    made = gather_capacity(row_tokens * kv_heads, kv_heads, kv_density, KvLayout(capacity_step=step))
    assert kept <= made <= row_tokens * kv_heads


def test_layers_share_what_they_compute_alike(bundle: Bundle, tmp_path: Path) -> None:
    """Tables of rotation are cast when weights are made and not at each step, and neither layer copies its cache. Where
    tokens are chosen, what depends on the position alone is computed once.
    """
    for kv_density in (1.0, 0.3):
        made = _graph(bundle, bundle.config.variants["s100-q8"], kv_density=kv_density)
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        ort.InferenceSession(made.model, options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath).graph
        operators = [node.op_type for node in graph.node]
        assert "Identity" not in {node.op_type for node in onnx.load_from_string(made.model).graph.node}
        assert operators.count("CumSum") == operators.count("TopK") / 2 == (kv_density < 1.0)
        weights = {value.name for value in made.values}
        assert not [node for node in graph.node if node.op_type == "Cast" and node.input[0] in weights]


def _rewritten(graph: onnx.GraphProto, tmp_path: Path, **constants: np.ndarray) -> onnx.ModelProto:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    content = model.SerializeToString()
    return onnx.load_from_string(gpu_graph(content, inline=True, bits=4, kv=KvLayout(), constants=constants).model)


def _run(model: onnx.ModelProto, **feed: np.ndarray) -> np.ndarray:
    return np.asarray(cpu_session(model.SerializeToString()).run(None, feed)[0])


def test_a_dim_without_a_name_is_asked_of_its_own_input(tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, 4]) for name in "ab"]
    nodes = [helper.make_node("Shape", ["b"], ["y"])]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", onnx.TensorProto.INT64, [2])])
    model = _rewritten(graph, tmp_path)
    found = _run(model, **{item.name: np.zeros((3, 4), np.float32) for item in model.graph.input})
    assert found.tolist() == [3, 4]


def test_constants_of_branches_within_branches_are_taken_out(tmp_path: Path) -> None:
    info = helper.make_tensor_value_info

    def plus(value: float, name: str) -> onnx.GraphProto:
        constant = helper.make_node("Constant", [], [f"{name}.c"], value=helper.make_tensor("", 1, [1], [value]))
        nodes = [constant, helper.make_node("Add", ["x", f"{name}.c"], [name])]
        return helper.make_graph(nodes, name, [], [info(name, 1, [1])])

    inner = helper.make_node("If", ["second"], ["inner"], then_branch=plus(1, "a"), else_branch=plus(2, "b"))
    then = helper.make_graph([inner], "then", [], [info("inner", 1, [1])])
    outer = helper.make_node("If", ["first"], ["y"], then_branch=then, else_branch=plus(1, "d"))
    inputs = [info("x", 1, [1]), info("first", onnx.TensorProto.BOOL, [1]), info("second", onnx.TensorProto.BOOL, [1])]
    model = _rewritten(helper.make_graph([outer], "g", inputs, [info("y", 1, [1])]), tmp_path)
    assert "Constant" not in str(model.graph)
    assert len(model.graph.initializer) == 2
    for first, second, added in ((True, True, 1), (True, False, 2), (False, True, 1)):
        feed = {"x": np.ones(1, np.float32), "first": np.array([first]), "second": np.array([second])}
        assert _run(model, **feed).item() == 1 + added


def test_a_branch_may_give_what_it_holds(tmp_path: Path) -> None:
    """The result is an initializer of the branch: no node makes it."""
    info = helper.make_tensor_value_info
    held = helper.make_tensor("held", 1, [1], [7.0])
    then = helper.make_graph([], "then", [], [info("held", 1, [1])], [held])
    other = helper.make_graph([helper.make_node("Identity", ["x"], ["same"])], "else", [], [info("same", 1, [1])])
    nodes = [helper.make_node("If", ["asked"], ["y"], then_branch=then, else_branch=other)]
    inputs = [info("x", 1, [1]), info("asked", onnx.TensorProto.BOOL, [1])]
    graph = helper.make_graph(nodes, "g", inputs, [info("y", 1, [1])])
    model = _rewritten(graph, tmp_path, asked=np.array([True]))
    assert _run(model, **{item.name: np.zeros(1, np.float32) for item in model.graph.input}).tolist() == [7.0]


@pytest.mark.slow
def test_no_weight_stays_in_a_graph(bundle: Bundle) -> None:
    for variant in bundle.config.variants.values():
        model = onnx.load_from_string(_graph(bundle, variant).model)
        assert max(tensor.ByteSize() for tensor in model.graph.initializer) < 1024
        assert not model.functions
        assert not {"If", "DequantizeLinear"} & {node.op_type for node in model.graph.node}


@pytest.mark.slow
def test_no_float16_is_left_where_there_is_none(bundle: Bundle) -> None:
    """Every tensor's type, as ONNX infers it of the operators that it knows and the graph says of the others."""
    for variant in bundle.config.variants.values():
        for kv_density in (1.0, 0.3):
            graph = _graph(bundle, variant, kv_density=kv_density, float32=True)
            model = onnx.load_from_string(graph.model)
            assert "float16" not in {value.dtype for value in graph.values}
            inferred = onnx.shape_inference.infer_shapes(model).graph
            infos = [*inferred.input, *inferred.output, *inferred.value_info]
            assert len(infos) > len(model.graph.node) / 2
            assert onnx.TensorProto.FLOAT16 not in {info.type.tensor_type.elem_type for info in infos}
            assert onnx.TensorProto.FLOAT16 not in {tensor.data_type for tensor in inferred.initializer}
            session = cpu_session(graph.model)
            assert not [node for node in (*session.get_inputs(), *session.get_outputs()) if "float16" in node.type]


@pytest.mark.slow
def test_a_kernel_writes_the_results(bundle: Bundle) -> None:
    """No Reshape does: it would copy, which WebGPU leaves out of what it captures."""
    for variant in bundle.config.variants.values():
        for one_token in (True, False):
            graph = onnx.load_from_string(_graph(bundle, variant, one_token=one_token).model).graph
            makers = {name: node.op_type for node in graph.node for name in node.output}
            assert {makers[name] for name in ("logits", "hidden_states")} <= {"Gemm", "Add", *_NORMS}


def test_a_graph_for_kernels_reads_weights_as_they_are_stored(bundle: Bundle) -> None:
    for variant in bundle.config.variants.values():
        content, constants = bundle.read(variant.file), {"num_logits": np.ones(1, np.int64)}
        graph = gpu_graph(content, inline=False, bits=variant.bits, kv=bundle.config.kv, constants=constants)
        stored = external_tensors(bundle.file(variant.file), content)
        assert {value.name for value in graph.values} == {tensor.name for tensor in stored}
        entries = bundle.config.tensors
        assert all(value.weights == (value.name,) and value.recipe is None for value in graph.values)
        assert all(value.bytes == entries[value.name].bytes for value in graph.values)
        operators = [node.op_type for node in onnx.load_from_string(graph.model).graph.node]
        assert operators.count("DecoderLayer") == bundle.config.model.num_layers


@given(st.integers(1, 3), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_a_base_is_repacked_block_by_block(blocks: int, pairs: int, seed: int) -> None:
    rows, columns = 32 * blocks, 2 * pairs
    nested = Nested.random(np.random.default_rng(seed), rows, columns)
    packed = nested.tensors("w", channel_major=True)["w.base"]
    wanted = nested.tensors("w", channel_major=False)["w.base"]  # [KB, N, 16]
    got = repacked(np.frombuffer(_bytes(packed), np.uint8), rows, columns)
    np.testing.assert_array_equal(got, np.asarray(wanted).transpose(1, 0, 2))


def _bytes(packed: Any) -> bytes:
    """The bytes of a channel-major base, however the tests hold it."""
    codes = np.asarray(packed).astype(np.uint8)
    return (codes.reshape(-1)[::2] | codes.reshape(-1)[1::2] << 4).tobytes() if codes.max() < 16 else codes.tobytes()


@pytest.fixture
def value() -> ort.OrtValue:
    return MainMemory().place(np.arange(2 * 3 * 4 * 5, dtype=np.float16).reshape(2, 3, 4, 5)[:1])


def test_a_tensor_grows_with_its_content_and_zeros(value: ort.OrtValue) -> None:
    grown = MainMemory().grown(value, (1, 3, 9, 5), "float16").numpy()
    np.testing.assert_array_equal(grown[:, :, :4], value.numpy())
    assert not grown[:, :, 4:].any()


def test_a_tensor_of_bytes_grows_too() -> None:
    value = MainMemory().place(np.full((1, 2, 3, 4), 7, np.uint8))
    grown = MainMemory().grown(value, (1, 2, 5, 4), "uint8").numpy()
    assert (grown[:, :, :3] == 7).all()
    assert not grown[:, :, 3:].any()


def test_wiping_zeroes_places_and_nothing_else(value: ort.OrtValue) -> None:
    before = value.numpy().copy()
    MainMemory().wipe(value, "float16", 1, 3)
    before[:, :, 1:3] = 0
    np.testing.assert_array_equal(value.numpy(), before)


def test_a_device_that_fails_is_one_typed_line(value: ort.OrtValue, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = MainMemory()

    def fail(*_: object) -> ort.InferenceSession:
        raise RuntimeError("device\nlost")

    monkeypatch.setattr(memory, "_make_session", fail)
    monkeypatch.setattr(ort.OrtValue, "update_inplace", fail)
    for use in (
        lambda: memory.grown(value, (1, 3, 9, 5), "float16"),
        lambda: memory.wipe(value, "float16", 1, 3),
        lambda: memory.place(np.zeros(3, np.float32)),
    ):
        with pytest.raises(DeviceError, match="provider cpu: main memory failed: device lost; run again"):
            use()


def test_an_error_of_ours_keeps_its_type(value: ort.OrtValue, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = MainMemory()

    def refuse(*_: object) -> ort.InferenceSession:
        raise ProviderError("no such operator")

    monkeypatch.setattr(memory, "_make_session", refuse)
    with pytest.raises(ProviderError, match=r"^no such operator$"):
        memory.grown(value, (1, 3, 9, 5), "float16")
    runner = GpuEngine.__new__(GpuEngine)
    runner._where = "a GPU"
    with pytest.raises(ProviderError, match=r"^no such operator$"), runner._errors(SimpleNamespace(file="g")):  # type: ignore[arg-type]
        refuse()
    with pytest.raises(DeviceError, match="a GPU failed: g: lost"), runner._errors(SimpleNamespace(file="g")):  # type: ignore[arg-type]
        raise RuntimeError("lost")


@pytest.mark.parametrize("kv", ["float16", "int8"])
def test_a_cache_is_float32_where_its_memory_has_no_float16(kv: str) -> None:
    model, layout = made_config().model, KvLayout(kv, capacity_step=64)
    narrow, wide = CacheLayout(model, layout), CacheLayout(model, layout, "float32")
    for before, after in zip(narrow.tensors(), wide.tensors(), strict=True):
        assert after == before._replace(dtype="float32" if before.dtype == "float16" else before.dtype)
    assert wide.bytes_at(64) > narrow.bytes_at(64) > 0
    cache = DeviceCache(wide, MainMemory())
    cache.resize(64, 0)
    assert all(value.element_type() != onnx.TensorProto.FLOAT16 for _, _, value in cache.bindings())


def test_a_cache_grows_where_there_is_room_for_what_is_added() -> None:
    model, layout = made_config().model, KvLayout("float16", capacity_step=64)
    memory = MainMemory()
    cache = DeviceCache(CacheLayout(model, layout), memory)
    cache.resize(64, 0)
    added = cache.layout.bytes_at(128) - cache.layout.bytes_at(64)
    memory._free_bytes = lambda: added - 1
    with pytest.raises(ProviderError, match="a KV cache of 128 tokens"):
        cache.resize(128, 64)
    memory._free_bytes = lambda: added
    cache.resize(128, 64)
    assert cache.capacity == 128


@pytest.mark.parametrize("codes", [True, False])
def test_key_codes_are_kept_where_something_reads_them(codes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model, layout, memory = made_config().model, KvLayout("float16", capacity_step=64), MainMemory()
    cache = DeviceCache(CacheLayout(model, layout), memory, codes=codes)
    cache.resize(64, 0)
    grown: list[str] = []
    grow = memory.grown
    monkeypatch.setattr(
        memory, "grown", lambda value, shape, dtype: (grown.append(dtype), grow(value, shape, dtype))[1]
    )
    cache.resize(128, 64)
    assert ("uint8" in grown) == codes
    for tensor, (past, _, value) in zip(cache.layout.tensors(), cache.bindings(), strict=True):
        assert (past, value.shape()) == (tensor.past, list(cache.layout.shape(tensor, 128)))


@pytest.fixture
def capturing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine with function bodies, whose steps of 8 and of 4 bits are graphs of their own."""
    bundle = Bundle.open(write_bundle(tmp_path / "tiny", bits=(8, 4), gpu=True))
    provider = OnMainMemory("cuda", providers.start_pool(None), gpu=Gpu("a GPU"))
    monkeypatch.setattr(providers, "choose", lambda *_, **__: provider)
    return Engine(bundle, provider="cuda")


def gpu(engine: Engine) -> GpuEngine:
    assert engine.gpu is not None
    return engine.gpu


def test_a_captured_graph_is_tried_again_though_another_one_was_refused(
    capturing: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, wrong = [], ["k100-s100-q4"]
    compare = OpenGraph._captures_right

    def trial(graph: OpenGraph, cache: DeviceCache, inputs: DeviceInputs) -> bool:
        trials.append((graph.file, cache.capacity))
        return compare(graph, cache, inputs) and graph.file not in wrong

    monkeypatch.setattr(OpenGraph, "_captures_right", trial)
    dense = capturing.bundle.config.dense
    capturing.forward([5], dense)
    capturing.forward([6], Action(1.0, 1.0, 4))
    assert (trials, gpu(capturing).graphs.captured) == ([("k100-s100-q8", 64), ("k100-s100-q4", 64)], 1)
    capturing.forward([7] * 64, dense)
    capturing.forward([8], dense)
    capturing.forward([8], Action(1.0, 1.0, 4))
    assert (trials[2:], gpu(capturing).graphs.captured) == ([("k100-s100-q8", 128)], 1)
    wrong.append("k100-s100-q8")
    capturing.forward([7] * 64, dense)
    capturing.forward([8], dense)
    assert gpu(capturing).graphs.captured == 1  # the capacity has not doubled
    capturing.forward([7] * 64, dense)
    capturing.forward([8], dense)
    assert (trials[3:], gpu(capturing).graphs.captured) == ([("k100-s100-q8", 256)], 0)


def test_a_trial_without_memory_refuses_nothing(capturing: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(_: DeviceCache) -> None:
        raise ProviderError("a GPU: a tensor needs 1.0 MB of GPU memory, 0.5 MB is free")

    dense = capturing.bundle.config.dense
    capturing.forward([7] * 70, dense)
    with monkeypatch.context() as patch:
        patch.setattr(DeviceCache, "scratch_bindings", short)
        capturing.forward([5], dense)
    assert gpu(capturing).graphs.captured == 0
    capturing.forward([5], dense)
    assert gpu(capturing).graphs.captured == 0  # only a new cache is tried
    capturing.forward([6], Action(1.0, 1.0, 4))
    assert gpu(capturing).graphs.captured == 1
    capturing.forward([7] * 64, dense)
    assert gpu(capturing).cache.capacity == 192
    capturing.forward([5], dense)
    assert gpu(capturing).graphs.captured == 2


def test_short_memory_is_an_error_with_both_sizes(bundle: Bundle) -> None:
    weights = DeviceWeights(SharedWeights(bundle), MainMemory(free_bytes=10_000))
    variant = bundle.config.variants[bundle.config.dense.variant]
    with pytest.raises(ProviderError, match=r"weights needs 0\.1 MB of GPU memory, 0\.0 MB is free") as caught:
        weights.place(_graph(bundle, variant).values)
    assert "\n" not in str(caught.value)
    assert weights.size_bytes == 0


def test_a_file_without_weights_of_its_own_has_none(tmp_path: Path) -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [onnx.helper.make_tensor_value_info("x", 1, [1])],
        [onnx.helper.make_tensor_value_info("y", 1, [1])],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    made = gpu_graph(model.SerializeToString(), inline=True, bits=4, kv=KvLayout())
    assert made.values == ()
    (y,) = cpu_session(made.model).run(None, {"x": np.ones(1, np.float32)})
    assert y == 1
