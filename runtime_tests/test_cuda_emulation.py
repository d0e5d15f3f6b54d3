"""The CUDA operators' kernels on the host, through ONNX Runtime, by the tests of the CPU's operators.

They compare with float64 references. The host's compiler builds the kernels as they
are; native/cuda_emulation.h stands in for the device.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).resolve().parent
OPS = TESTS.parent / "sol_rt" / "ops"
COMPILER = shutil.which("c++")
HEADERS = [Path("/usr/include/onnxruntime"), Path("/usr/include/onnxruntime/core/session")]
INCLUDE = next((path for path in HEADERS if (path / "onnxruntime_c_api.h").is_file()), None)

pytestmark = pytest.mark.skipif(
    COMPILER is None or INCLUDE is None, reason="the emulation needs a C++ compiler and ONNX Runtime's headers"
)


def _copy_of(name: str) -> ModuleType:
    """The tests of the CPU's operators as a module of its own, whose library is the emulated one."""
    spec = importlib.util.spec_from_file_location(f"cuda_{name}", TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


matmul, attention, layer = (_copy_of(f"test_ops_{name}") for name in ("matmul", "attention", "layer"))


def build(folder: Path) -> Path:
    """The library of the CUDA operators for the CPU provider, kernels emulated."""
    assert COMPILER is not None
    flags = ["-std=c++17", "-O2", "-fPIC", "-w", "-DSOL_CUDA_EMULATION", f"-I{TESTS / 'native'}", f"-I{OPS / 'cuda'}"]
    flags += ["-isystem", str(INCLUDE), *os.environ.get("SOL_RT_EMULATION_FLAGS", "").split()]
    sources = sorted([*(OPS / "cuda").glob("*.cu"), *(OPS / "cuda").glob("*.cc"), OPS / "register.cc"])

    def compile_one(source: Path) -> Path:
        built = folder / f"{source.name}.o"
        command = [COMPILER, *flags, "-x", "c++", "-c", str(source), "-o", str(built)]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        return built

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    library = folder / "libsol_ops_cuda_emulated.so"
    sanitizer = [flag for flag in flags if flag.startswith("-fsanitize")]
    subprocess.run(
        [COMPILER, "-shared", "-Wl,--no-undefined", *sanitizer, "-o", str(library), *map(str, objects)], check=True
    )
    return library


@pytest.fixture(scope="module", autouse=True)
def _emulated(tmp_path_factory: pytest.TempPathFactory) -> None:
    given_one = os.environ.get("SOL_RT_EMULATED_LIBRARY")
    library = Path(given_one) if given_one else build(tmp_path_factory.mktemp("emulated"))
    for module in (matmul, attention, layer):
        module.LIBRARY = library  # type: ignore[attr-defined]


test_matmul = matmul.test_matmul_matches_the_reference
test_matmul_is_near_the_unquantized_product = matmul.test_matmul_is_near_the_unquantized_product
test_matmul_keeps_leading_axes = matmul.test_matmul_keeps_leading_axes
test_codes_of_16_bits_are_exact = matmul.test_codes_of_16_bits_are_exact
test_small_beside_large_counts_at_8_bits = matmul.test_small_beside_large_counts_at_8_bits
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


test_layer = layer.test_kernel_matches_the_reference
test_layer_of_operators = layer.test_kernel_matches_the_operators_it_is_made_of
test_fixed_layers = layer.test_fixed_layers
test_append_in_place = layer.test_append_in_place
test_an_int8_cache_without_scales_is_refused = layer.test_an_int8_cache_without_scales_is_refused
test_damaged_layers = layer.test_damaged_layers_are_refused
