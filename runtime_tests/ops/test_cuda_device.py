"""The CUDA operators on a GPU, by the tests of the CPU's operators, through ONNX Runtime's CUDA provider.

All of it is skipped where no CUDA device answers. test_cuda_emulation.py runs the same kernels on the host.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from helpers.operator_tests import copy_of
from sol_rt.ops import library_path

import onnxruntime as ort

LIBRARY = library_path("cuda")
PROVIDER = "CUDAExecutionProvider"


def why_not() -> str | None:
    """Names the part that is missing to run on a GPU; None if nothing is."""
    if LIBRARY is None:
        return "the CUDA operators are not built"
    if PROVIDER not in ort.get_available_providers():
        return "this ONNX Runtime has no CUDA provider: onnxruntime-gpu is not installed"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver is here"
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "no CUDA device answers"
    return None


REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))


class CudaSession(ort.InferenceSession):
    """A session whose operators run on the GPU, whatever providers are asked for."""

    def __init__(self, model: str | bytes, options: ort.SessionOptions, **_: Any) -> None:
        options.use_per_session_threads = False  # once there is a pool for all, no session may have its own
        super().__init__(model, options, providers=[(PROVIDER, {"use_tf32": "0"}), "CPUExecutionProvider"])


def _on_gpu(name: str) -> ModuleType:
    """The tests of the CPU's operators as a module of its own, whose library and sessions are CUDA's."""
    module = copy_of(name, "gpu")
    module.LIBRARY = LIBRARY  # type: ignore[attr-defined]
    module.ort = _Runtime()  # type: ignore[attr-defined]
    return module


class _Runtime:
    """onnxruntime with sessions on the GPU."""

    InferenceSession = CudaSession

    def __getattr__(self, name: str) -> Any:
        return getattr(ort, name)


matmul, attention, layer = (_on_gpu(f"test_ops_{name}") for name in ("matmul", "attention", "layer"))
codebook = copy_of("test_ops_codebook", "gpu")
vars(codebook).update(run=matmul.run, open_session=matmul.open_session, run_layer=layer.run)

test_matmul = matmul.test_matmul_matches_the_reference
test_matmul_keeps_leading_axes = matmul.test_matmul_keeps_leading_axes
test_matmul_codes_of_16_bits_are_exact = matmul.test_codes_of_16_bits_are_exact
test_matmul_zeros_and_extremes = matmul.test_blocks_of_zeros_and_extremes
test_matmul_nan_is_not_hidden = matmul.test_nan_is_not_hidden
test_matmul_gather = matmul.test_gather_returns_rows_of_the_matrix
test_mlp = matmul.test_mlp_matches_the_reference
test_mlp_keeps_exactly_the_largest = matmul.test_pruning_keeps_exactly_the_largest
test_mlp_ties_keep_the_lower_index = matmul.test_ties_keep_the_lower_index
test_mlp_parts_of_the_channels_add_up = matmul.test_parts_of_the_channels_add_up
test_codebook = codebook.test_matmul_matches_the_reference
test_codebook_matrices = codebook.test_fixed_matrices
test_codebook_sums_are_exact = codebook.test_fixed_sums_are_exact
test_codebook_nan_is_not_hidden = codebook.test_fixed_nan_is_not_hidden
test_codebook_mlps = codebook.test_fixed_mlps
test_codebook_layers = codebook.test_fixed_layers
test_attention_of_any_shape = attention.test_any_shape
test_attention_fixed = attention.test_fixed
test_attention_nan_is_not_hidden = attention.test_nan_is_not_hidden
test_attention_rewinding = attention.test_rewinding_into_a_page
test_attention_among_equal_tokens = attention.test_among_equal_tokens_the_lower_ones_are_kept
test_attention_needle = attention.test_a_needle_is_found_with_one_page
test_layer = layer.test_kernel_matches_the_reference


@pytest.mark.parametrize("case", layer.FIXED)
def test_layer_fixed(case: Any) -> None:
    layer.check(case, layer.run(case.model, case.feed), case.reference(), layer.BOUND[case.bits])


def test_one_captured_step_serves_any_length_and_count() -> None:
    """A captured graph is replayed with another past_length and kv_pages: they are read on the device."""
    dims = attention.Dims(capacity=1024)
    first = attention.Case(dims, 700, 1, 3)
    inputs = attention.make_inputs(first)
    options = ort.SessionOptions()
    options.register_custom_ops_library(str(LIBRARY))
    options.use_per_session_threads = False
    session = ort.InferenceSession(
        attention.model_of(dims).SerializeToString(), options, providers=[(PROVIDER, {"enable_cuda_graph": "1"})]
    )
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array, "cuda", 0) for name, array in inputs.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    y = ort.OrtValue.ortvalue_from_shape_and_type((1, 1, dims.heads * dims.head_dim), np.float32, "cuda", 0)
    binding.bind_ortvalue_output("y", y)
    for name in dims.cache:
        binding.bind_ortvalue_output(f"present_{name}", values[f"past_{name}"])
    for past, pages in ((700, 3), (701, 3), (702, 200), (300, 0), (1023, 40)):
        case = attention.Case(dims, past, 1, pages, seed=past)
        feeds = attention.make_inputs(case)
        for name, array in feeds.items():
            values[name].update_inplace(array)
        session.run_with_iobinding(binding)
        outputs = {"y": y.numpy()} | {f"present_{name}": values[f"past_{name}"].numpy() for name in dims.cache}
        attention.check(case, feeds, outputs)


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_sanitizer_finds_nothing(tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("no compute-sanitizer here")
    if "SOL_RT_SANITIZED" in os.environ:
        pytest.skip("this is the sanitizer's own run")
    selected = "test_attention_fixed or test_layer_fixed or test_mlp_parts or test_matmul_codes"
    command = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
    command += [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", selected]
    done = subprocess.run(
        command, env=os.environ | {"SOL_RT_SANITIZED": tool}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_greedy_tokens_are_the_cpus(tmp_path: Path) -> None:
    """Every variant of a bundle, attending to all tokens and to few."""
    from helpers.greedy import assert_same_choices, greedy
    from helpers.random_decoder import RandomDecoder, describe
    from sol_rt.bundle.actions import Action
    from sol_rt.export.gpu import add_gpu_graphs
    from sol_rt.generate.native.engine import Engine

    decoder = RandomDecoder.write(describe("llama"), tmp_path)
    bundle = add_gpu_graphs(decoder.write_bundle(tmp_path, [(1.0, 8), (1.0, 6), (1.0, 4), (0.5, 8)]))
    prompt = list(range(20, 80))
    on_gpu, on_cpu = Engine(bundle, provider="cuda"), Engine(bundle, provider="cpu")
    for kv_density in (1.0, 0.3):
        actions = {
            key: Action(kv_density, variant.channel_density, variant.bits)
            for key, variant in bundle.config.variants.items()
        }
        got, expected = (
            {key: greedy(engine, prompt, action, 32) for key, action in actions.items()} for engine in (on_gpu, on_cpu)
        )
        assert_same_choices(got, expected)
