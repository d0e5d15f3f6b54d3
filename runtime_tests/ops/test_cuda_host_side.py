"""The CUDA provider of ONNX Runtime's GPU build and sol_rt's CUDA operators on a machine without a GPU.

The wheel is the real one; CUDA's libraries under it are native/cuda_stand_in.cc, whose device memory is the host's. So
this shows what the host does: which sessions are made and captured, what is copied, waited for, taken and given back,
and what happens where memory is short, a library is missing or the GPU is lost at some call. It shows no number and no
time: kernels compute nothing, and checks of numbers are lifted. Nor does it show what only a driver knows: whether its
code runs on a GPU, the order of work in streams, what else it refuses in a capture.

It runs where SOL_RT_CUDA_WHEEL names a folder with an unpacked onnxruntime-gpu wheel for CUDA 13, and nvcc is here.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from helpers.emulated_build import COMPILER, INCLUDE, NATIVE, OPS, SOURCES
from helpers.places import TESTS
from helpers.random_decoder import hf_config
from helpers.tiny_bundle import write_bundle
from sol_rt.export.sources.decoder import from_hf_config

WHEEL = Path(os.environ.get("SOL_RT_CUDA_WHEEL", "none"))
IN_WHEEL = ("libonnxruntime_providers_cuda.so", f"onnxruntime_pybind11_state{sysconfig.get_config_var('EXT_SUFFIX')}")
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin:/opt/cuda/bin")
SCRIPT = TESTS / "helpers" / "cuda_host_run.py"
STAND_IN = "libcuda_stand_in.so"
CUBLAS_LT = "libcublasLt.so.13"
NAMES = ("libcuda.so.1", "libcudart.so.13", "libcublas.so.13", CUBLAS_LT, "libcurand.so.10", "libnvidia-ml.so.1")
OPERATORS = "libsol_ops_cuda_shared.so"
WHERE = "provider cuda: Stand-in"


def _why_not() -> str | None:
    if not all((WHEEL / "onnxruntime" / "capi" / name).is_file() for name in IN_WHEEL):
        return "SOL_RT_CUDA_WHEEL names no folder with an unpacked onnxruntime-gpu wheel for this Python"
    if NVCC is None or COMPILER is None or INCLUDE is None:
        return "it needs nvcc, a C++ compiler and ONNX Runtime's headers"
    version = subprocess.run([NVCC, "--version"], capture_output=True, text=True, check=False).stdout
    return None if "release 13." in version else "it needs the headers of CUDA 13"


REASON = _why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


def _checked(*command: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in under the names of CUDA's libraries, and operators that take CUDA's runtime from it."""
    folder = tmp_path_factory.mktemp("cuda")
    flags = ["-std=c++17", "-O1", "-Xcompiler", "-fPIC"]
    _checked(NVCC, *flags, "-shared", "-cudart", "none", NATIVE / "cuda_stand_in.cc", "-o", folder / STAND_IN)
    for name in NAMES:
        (folder / name).symlink_to(STAND_IN)
    # no code for a device is run: it is made as fast as can be
    flags += ["-Xcicc", "-O0", "-gencode", "arch=compute_80,code=compute_80", f"-I{OPS}"]
    flags += ["-isystem", str(INCLUDE), '-DSOL_PROVIDER="CUDAExecutionProvider"']
    objects = [folder / f"{source.name}.o" for source in SOURCES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda source, built: _checked(NVCC, *flags, "-c", source, "-o", built), SOURCES, objects))
    link = ["-shared", "-Wl,--no-undefined", "-Wl,-z,nodelete", f"-L{folder}", "-o", folder / OPERATORS]
    _checked(COMPILER, *link, *objects, "-l:libcudart.so.13")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny", gpu=True)


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 MB of weights, beside which small tensors count little."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    decoder = from_hf_config({**hf_config("llama"), **sizes})
    return write_bundle(tmp_path_factory.mktemp("larger") / "larger", decoder=decoder, gpu=True)


def run(libraries: Path, scenario: str, bundle: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A scenario of cuda_host_run.py, with the wheel in the place of the stock one."""
    environment = {name: value for name, value in os.environ.items() if name != "SOL_RT_CAPTURE"}
    environment["SOL_RT_HOME"] = str(bundle.parent / "home")
    for name, first in {"LD_LIBRARY_PATH": libraries, "PYTHONPATH": WHEEL.resolve()}.items():
        environment[name] = os.pathsep.join(filter(None, [str(first), environment.get(name)]))
    command = [sys.executable, SCRIPT, scenario, libraries.resolve() / OPERATORS, bundle, *arguments]
    return subprocess.run(
        list(map(str, command)), env=environment, cwd=bundle, capture_output=True, text=True, timeout=300, check=False
    )


def result(libraries: Path, scenario: str, bundle: Path, *arguments: str) -> dict[str, Any]:
    done = run(libraries, scenario, bundle, *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    found = dict(json.loads(done.stdout))
    assert found.pop("runtime") == str(WHEEL.resolve() / "onnxruntime")
    assert found.pop("illegal in a capture") == ""
    assert "nodes run on the CPU" not in done.stderr
    return {**found, "told": done.stderr}


@pytest.mark.parametrize(("family", "kv"), [("llama", "float16"), ("phi", "int8"), ("qwen2", "float16")])
def test_every_variant_is_captured_and_a_step_is_one_graph(
    libraries: Path, tmp_path: Path, family: str, kv: str
) -> None:
    found = result(libraries, "steps", write_bundle(tmp_path / "tiny", family, kv=kv, gpu=True))
    assert found["native"]
    assert found["captured"] == {f"model.q{bits}.onnx": True for bits in (8, 6, 4)}
    assert found["captures"] == 2 * 2 * 3  # of each graph, compared and then for good, again after the cache has grown
    assert found["captured kernels"] >= 11 * 2 * found["captures"]  # at least 11 of each of two layers
    assert len(found["costs"]) == 2 * 12
    step = {"copies to it": 1, "graphs": 1, "copies back": 1, "copies there": 0, "kernels": 0}
    for action, cost in found["costs"].items():
        assert cost.pop("waits") <= 2, action  # one a copy: the runtime waits for no graph
        assert cost == step, action


def test_memory_is_the_weights_and_is_given_back(libraries: Path, larger: Path) -> None:
    found = result(libraries, "memory", larger)
    assert found["before"] == 0
    assert found["weights"] > 8e6
    assert found["weights"] < found["loaded"] <= found["most"] < 1.02 * found["weights"]
    assert found["all weights"] == found["weights"]
    assert found["grown cache"] > 0
    assert found["in use"] >= found["weights"] + found["grown cache"]
    assert found["after"] == 0


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_short_memory_names_what_is_needed_and_free(libraries: Path, larger: Path, share: float) -> None:
    weights = result(libraries, "memory", larger)["weights"]
    limit = int(share * weights)
    found = result(libraries, "short", larger, str(limit))
    kind, text = found["named"]
    assert kind == "ProviderError"
    sizes = re.search(r"needs ([\d.]+) MB of GPU memory, ([\d.]+) MB is free", text)
    assert text.startswith(WHERE)
    assert sizes is not None
    assert [float(size) for size in sizes.groups()] == pytest.approx([weights / 1e6, limit / 1e6], abs=0.2)
    assert found["told"] == f"sol-rt: {text} (continuing on the next provider)\n"
    assert found["auto"] == "cpu"
    assert found["used"] == 0


@pytest.mark.parametrize("place", ["prompt", "variant", "capture", "step", "results", "growth"])
def test_a_lost_gpu_is_an_error_and_the_process_lives_on(libraries: Path, bundle: Path, place: str) -> None:
    found = result(libraries, "lost", bundle, place)
    at_once, again, new = found["errors"]
    opens = place in ("variant", "capture")  # sessions that cannot be made are reported as such, whatever the cause
    assert at_once[0] in (("DeviceError", "ProviderError") if opens else ("DeviceError",))
    assert (again[0], new[0]) == ("DeviceError", "DeviceError")
    for _, text in found["errors"]:
        assert text.startswith("provider cuda: ")
        assert "700: the GPU is lost" in text
        assert text.endswith("use --provider cpu")
        assert "\n" not in text
    assert found["length"] == (0 if place == "growth" else 1)
    assert found["then"] == "cpu"


@pytest.mark.parametrize("place", ["prompt", "step", "results"])
def test_the_command_line_ends_with_one_line_where_the_gpu_is_lost(libraries: Path, bundle: Path, place: str) -> None:
    done = run(libraries, "command", bundle, place)
    assert done.returncode == 1
    errors = [line for line in done.stderr.splitlines() if not line.startswith(("device: ", "not measured "))]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith(f"sol-rt: error: {WHERE} failed: ")
    assert "700: the GPU is lost" in errors[0]
    assert len(done.stdout.split()) == (0 if place == "prompt" else 3)
    assert done.stdout == "" or done.stdout.endswith("\n")


def test_a_library_that_is_missing_is_named(libraries: Path, bundle: Path, tmp_path: Path) -> None:
    for file in libraries.glob("lib*"):
        if file.name != CUBLAS_LT:
            shutil.copy(file, tmp_path / file.name, follow_symlinks=False)
    kind, text = result(tmp_path, "opened", bundle)["error"]
    assert kind == "ProviderError"
    assert CUBLAS_LT in text
    assert "onnxruntime-gpu" in text


def test_the_provider_is_found_to_work_with_all_libraries(libraries: Path, bundle: Path) -> None:
    assert result(libraries, "opened", bundle)["error"] is None
