"""The library of the CUDA operators, which needs no GPU for it: what it links and shows, and that it loads."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from test_ops_matmul import Nested, matmul_model

from sol_rt.engine import providers
from sol_rt.engine.gpu import cuda
from sol_rt.errors import ProviderError
from sol_rt.ops import library_path

import onnxruntime as ort

LIBRARY = library_path("cuda")
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="the CUDA operators are not built: no nvcc, or SOL_CUDA=OFF")


def read(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"no {command[0]} here")
    return subprocess.run([*command, str(LIBRARY)], capture_output=True, text=True, check=True).stdout


def test_the_library_links_no_library_of_cuda() -> None:
    needed = [line.split("[")[1].rstrip("]") for line in read("readelf", "-d").splitlines() if "(NEEDED)" in line]
    assert needed
    system = ("libc.", "libm.", "libdl.", "librt.", "libpthread.", "ld-linux")
    assert [name for name in needed if not name.startswith(system)] == []


def test_the_library_exports_its_entry_point_alone() -> None:
    """Symbols of the C++ library that are one for the whole process aside."""
    shown = [line.split()[-2:] for line in read("nm", "-D", "--defined-only").splitlines()]
    assert [name for kind, name in shown if kind in "TDBR"] == ["RegisterCustomOps"]


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: a crash must not end the tests."""
    return subprocess.run(
        [sys.executable, "-c", program, str(LIBRARY), *arguments], capture_output=True, text=True, check=False
    )


def test_a_session_without_its_operators_works_beside_it(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    path = tmp_path / "neg.onnx"
    path.write_bytes(model.SerializeToString())
    done = run(
        "import sys, numpy as np, onnxruntime as ort\n"
        "options = ort.SessionOptions()\n"
        "options.register_custom_ops_library(sys.argv[1])\n"
        "session = ort.InferenceSession(sys.argv[2], options, providers=['CPUExecutionProvider'])\n"
        "print(session.run(None, {'x': np.ones(2, np.float32)})[0].tolist())",
        str(path),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[-1.0, -1.0]"


def test_a_session_on_the_cpu_refuses_its_operators() -> None:
    """The operators have kernels for CUDA alone, and ONNX Runtime says so instead of running something else."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(str(LIBRARY))
    model = matmul_model(Nested.random(np.random.default_rng(0), 64, 40, 4)).SerializeToString()
    with pytest.raises(Exception, match="implementation for NestedMatMul"):
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def test_operators_that_cannot_run_are_found_before_a_provider_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a library built for another GPU: here there is none."""
    monkeypatch.setitem(providers._GPUS, "cpu", cuda)
    provider = providers.Provider("cpu", providers.start_pool(None), LIBRARY)
    with pytest.raises(ProviderError, match=r"native operators: .*; use --provider cpu$") as caught:
        providers.probe(provider)
    assert "\n" not in str(caught.value)
