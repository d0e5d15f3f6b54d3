"""The CUDA operators' kernels on the host, through ONNX Runtime, by the tests of the CPU's operators.

They compare with float64 references. The host's compiler builds the kernels as they
are; native/cuda_emulation.h stands in for the device.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from helpers.emulated_build import COMPILER, INCLUDE, build
from helpers.greedy import assert_same_choices, greedy
from helpers.main_memory import MainMemory
from helpers.operator_tests import copy_of
from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine import providers
from sol_rt.engine.distribution import Distribution
from sol_rt.engine.gpu import cuda
from sol_rt.engine.hardware import Gpu
from sol_rt.engine.providers import Provider
from sol_rt.errors import ProviderError
from sol_rt.generate.native.engine import Engine
from sol_rt.ops import library_path

import onnxruntime as ort

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        COMPILER is None or INCLUDE is None, reason="the emulation needs a C++ compiler and ONNX Runtime's headers"
    ),
]


matmul, attention, layer = (copy_of(f"test_ops_{name}", "cuda") for name in ("matmul", "attention", "layer"))
codebook = copy_of("test_ops_codebook", "cuda")
vars(codebook).update(run=matmul.run, open_session=matmul.open_session, run_layer=layer.run)


@pytest.fixture(scope="module", autouse=True)
def _emulated(tmp_path_factory: pytest.TempPathFactory) -> None:
    given_one = os.environ.get("SOL_RT_EMULATED_LIBRARY")
    races = "SOL_RT_EMULATION_RACES" in os.environ
    library = Path(given_one) if given_one else build(tmp_path_factory.mktemp("emulated"), races=races)
    for module in (matmul, attention, layer):
        module.LIBRARY = library  # type: ignore[attr-defined]


test_matmul = matmul.test_matmul_matches_the_reference
test_matmul_is_near_the_unquantized_product = matmul.test_matmul_is_near_the_unquantized_product
test_matmul_keeps_leading_axes = matmul.test_matmul_keeps_leading_axes
test_codes_of_16_bits_are_exact = matmul.test_codes_of_16_bits_are_exact
test_small_channels_beside_large_ones_count_at_8_bits = matmul.test_small_channels_beside_large_ones_count_at_8_bits
test_blocks_of_zeros_and_extremes = matmul.test_blocks_of_zeros_and_extremes
test_nan_is_not_hidden = matmul.test_nan_is_not_hidden
test_gather = matmul.test_gather_returns_rows_of_the_matrix
test_mlp = matmul.test_mlp_matches_the_reference
test_pruning_keeps_exactly_the_largest = matmul.test_pruning_keeps_exactly_the_largest
test_ties_keep_the_lower_index = matmul.test_ties_keep_the_lower_index
test_a_count_of_zero_prunes_nothing = matmul.test_a_count_of_zero_prunes_nothing
test_mlp_without_pruning_equals_keeping_all = matmul.test_mlp_without_pruning_equals_keeping_all
test_parts_of_the_channels_add_up = matmul.test_parts_of_the_channels_add_up
test_damaged_models_are_refused = matmul.test_damaged_models_are_refused
test_damaged_mlps_are_refused = matmul.test_damaged_mlps_are_refused
test_a_wrong_input_length_is_an_error_not_a_crash = matmul.test_a_wrong_input_length_is_an_error_not_a_crash
test_an_old_runtime_is_told_so = matmul.test_an_old_runtime_is_told_so

test_codebook = codebook.test_matmul_matches_the_reference
test_codebook_matrices = codebook.test_fixed_matrices
test_codebook_sums_are_exact = codebook.test_fixed_sums_are_exact
test_codebook_keeps_leading_axes = codebook.test_matmul_keeps_leading_axes
test_codebook_nan_is_not_hidden = codebook.test_fixed_nan_is_not_hidden
test_codebook_zeros = codebook.test_blocks_of_zeros_give_nothing
test_codebook_mlps = codebook.test_fixed_mlps
test_codebook_count_of_zero = codebook.test_a_count_of_zero_prunes_nothing
test_codebook_layers = codebook.test_fixed_layers
test_damaged_codebooks_are_refused = codebook.test_damaged_matrices_are_refused

test_any_attention = attention.test_any_shape
test_fixed_attention = attention.test_fixed
test_prompt_in_chunks = attention.test_prompt_in_chunks_equals_prompt_at_once_and_steps
test_rewinding_into_a_page = attention.test_rewinding_into_a_page
test_among_equal_tokens = attention.test_among_equal_tokens_the_lower_ones_are_kept
test_a_needle_is_found_with_one_page = attention.test_a_needle_is_found_with_one_page
test_huge_logits_stay_finite = attention.test_huge_logits_stay_finite
test_scales_of_all_sizes = attention.test_scales_of_all_sizes
test_a_row_too_large_for_its_scale = attention.test_a_row_too_large_for_its_scale_gives_no_finite_result
test_bad_attribute = attention.test_bad_attribute_is_refused_at_load
test_a_missing_attribute = attention.test_a_missing_attribute_is_named_at_load
test_an_int8_cache_without_its_scales = attention.test_an_int8_cache_without_its_scales_is_refused_at_load
test_nan_in_attention = attention.test_nan_is_not_hidden


@pytest.mark.parametrize("int8", [False, True], ids=["float16", "int8"])
def test_long_context(int8: bool) -> None:
    """Many parts and chunks, whose blocks come in another order every time: no bit differs."""
    dims = attention.Dims(capacity=4096, int8=int8)
    for case in (
        attention.Case(dims, 4000, 1, 2**40),
        attention.Case(dims, 4000, 1, 240, seed=2),
        attention.Case(dims, 2900, 9, 0),
    ):
        inputs = attention.make_inputs(case)
        outputs = attention.run(case, inputs)
        attention.check(case, inputs, outputs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SOL_CUDA_EMULATION_ORDER", "shuffled")
            attention.assert_same(outputs, attention.run(case, inputs))


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize(
    ("k", "n", "rows"), [(1056, 300, 1), (2112, 40, 1), (1056, 300, 3), (544, 130, 17), (32, 20, 513)]
)
def test_many_channels_are_shared_by_blocks(bits: int, k: int, n: int, rows: int) -> None:
    """And many rows come in parts, the last of one row."""
    rng = np.random.default_rng(bits)
    w = matmul.Nested.random(rng, k, n, bits)
    x = rng.normal(size=(rows, k)).astype(np.float32)
    matmul.close(matmul.run(matmul.matmul_model(w), x), matmul.quantized_product(x, w))


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize(("k", "inner"), [(544, 1056), (32, 9760)])
def test_pruned_rows_of_many_channels(bits: int, rows: int, k: int, inner: int) -> None:
    """Several blocks for one row's codes, and rows that shared memory does not hold."""
    rng = np.random.default_rng(bits)
    mlp = matmul.Mlp.random(rng, k, inner, bits, active_up=k // 2, active_down=inner // 3, bias=True)
    x = rng.normal(size=(rows, k)).astype(np.float32)
    hidden = mlp.hidden(x)
    magnitudes = np.sort(np.abs(hidden), axis=1)[:, ::-1]
    clear = magnitudes[:, mlp.active_down - 1] - magnitudes[:, mlp.active_down] > 1e-6 * magnitudes[:, 0]
    assert clear.any()
    got, expected = matmul.run(mlp.model(), x), mlp.output(hidden)
    matmul.close(got[clear], expected[clear], 2e-4 if bits == 8 else 3e-2)


@pytest.mark.parametrize("case", [layer.FIXED[3], codebook.LAYERS[0]], ids=["8", "3"])
def test_weights_may_be_inputs_of_the_graph(case: Any) -> None:
    """A host with several graphs binds one copy of the weights to all of them, by address."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    weights = list(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.input.extend(helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(layer.LIBRARY))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    arrays = [np.frombuffer(w.raw_data, np.uint8).copy() for w in weights]
    for w, array in zip(weights, arrays, strict=True):
        binding.bind_input(w.name, "cpu", 0, w.data_type, list(w.dims), array.ctypes.data)
    for name, array in case.feed.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name)
    session.run_with_iobinding(binding)
    expected = layer.run(case.model, case.feed)
    for got, wanted in zip(binding.copy_outputs_to_cpu(), expected, strict=True):
        assert np.array_equal(got, wanted)


@pytest.mark.parametrize(
    ("name", "count"),
    [("past_length", 256), ("past_length", -1), ("kv_pages", -1), ("active_qkv", -1), ("active_down", 97)],
)
@pytest.mark.parametrize("case", [layer.FIXED[1], layer.FIXED[3]], ids=["step", "batch"])
def test_counts_out_of_range_give_nan(case: Any, name: str, count: int) -> None:
    """Counts are read on the device, where nothing can be refused; a wrong length leaves the cache as it is."""
    feed = dict(case.feed)
    counts = feed[name].copy()
    counts[case.layer if counts.size > 1 else 0] = count
    y, *cache = layer.run(case.model, feed | {name: counts})
    assert np.isnan(y).all()
    if name == "past_length":
        for part, array in zip(case.cache, cache, strict=True):
            assert np.array_equal(array, feed[f"past_{part}"])


class _Emulated(Provider):
    """The GPU's host side, with kernels that run on the host and its memory in the place of a GPU's."""

    def _session(self, model: Any, options: ort.SessionOptions, **_: Any) -> ort.InferenceSession:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def memory(self) -> MainMemory:
        return MainMemory()

    @property
    def can_capture(self) -> bool:
        return False


@pytest.mark.parametrize("family", ["llama", "phi"])
def test_greedy_tokens_are_the_cpus(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole model on the GPU's host side, driven by the core: weights as inputs, one session for all variants of a
    width, a cache that grows, with and without pruning and selection of tokens.
    """
    bundle = Bundle.open(write_bundle(tmp_path / "tiny", family, bits=(8, MIXED, 4), gpu=True))
    on_cpu = Engine(bundle, provider="cpu")
    emulated = _Emulated("cuda", on_cpu.threads, layer.LIBRARY, gpu=Gpu("emulated"))
    monkeypatch.setattr(providers, "choose", lambda *_, **__: emulated)
    engine = Engine(bundle, provider="cuda")
    assert engine.gpu is not None
    for kv_density in (1.0, 0.3):
        got, expected = (
            {
                key: greedy(one, list(range(20, 72)), Action(kv_density, variant.channel_density, variant.bits), 14)
                for key, variant in bundle.config.variants.items()
                if kv_density == 1.0 or variant.channel_density == 1.0
            }
            for one in (engine, on_cpu)
        )
        unpruned = [key for key, variant in bundle.config.variants.items() if variant.channel_density == 1.0]
        assert_same_choices({key: got[key] for key in unpruned}, {key: expected[key] for key in unpruned})
    assert engine.gpu.cache.capacity > 64
    assert len(engine.gpu.graphs._opened) == 6  # steps and batches of three widths
    output = engine.forward([5], bundle.config.dense)
    assert output.distribution.top == Distribution(output.logits[0]).top


def test_the_probe_runs_the_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider is chosen only after its own operators agree with the CPU's."""
    if library_path() is None:
        pytest.skip("the CPU's operators are not built")
    monkeypatch.setitem(providers._GPUS, "cpu", cuda)
    provider = providers.Provider("cpu", providers.start_pool(None), layer.LIBRARY)
    providers.probe(provider)
    run = providers._probe_run
    monkeypatch.setattr(providers, "_probe_run", lambda one, *rest: run(one, *rest) + 0.01 * (one is provider))
    with pytest.raises(ProviderError, match=r"numbers that differ from the CPU's by 0\.01"):
        providers._compare(provider, providers._PROBE_NATIVE, "native operators", library_path())


@pytest.mark.parametrize("bits", [4, 6, 8])
def test_ids_out_of_range_give_nan(bits: int) -> None:
    w = matmul.Nested.random(np.random.default_rng(4), 64, 8, bits)
    tensors = list(w.tensors("w.", channel_major=False).values())
    model = matmul.model_of("NestedGather", [1, "S"], onnx.TensorProto.INT64, tensors, K=64, N=8, bits=bits)
    got = matmul.run(model, np.array([[0, -1, 8, 7]]))
    assert np.isnan(got[0, 1:3]).all()
    assert np.isfinite(got[0, [0, 3]]).all()


test_layer = layer.test_kernel_matches_the_reference
test_layer_of_operators = layer.test_kernel_matches_the_operators_it_is_made_of
test_fixed_layers = layer.test_fixed_layers
test_append_in_place = layer.test_append_in_place
test_an_int8_cache_without_scales_is_refused = layer.test_an_int8_cache_without_scales_is_refused
test_damaged_layers = layer.test_damaged_layers_are_refused
test_contradicting_attributes = layer.test_attributes_that_contradict_are_refused
