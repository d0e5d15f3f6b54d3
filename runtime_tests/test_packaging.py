"""The wheel: what is in it, and that it runs alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def checked(*command: str | Path, **settings: object) -> str:
    """Runs a command and returns its stdout; a failure shows what it printed."""
    run = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **settings)  # type: ignore[call-overload]
    assert run.returncode == 0, run.stdout + run.stderr
    return str(run.stdout)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the working tree; its native library comes out of the build folder where that is up to date."""
    pytest.importorskip("scikit_build_core", reason="the build back end comes with the extra dev")
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no cmake or no C++ compiler: nothing can be built here")
    folder = tmp_path_factory.mktemp("wheel")
    checked(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_one_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"sol_rt"}
    for wanted in (
        "sol_rt/py.typed",
        "sol_rt/cli/app.py",
        "sol_rt/export/__init__.py",
        "sol_rt/train/__init__.py",
        "sol_rt/train/configs/default.yaml",
        "sol_rt/models/smollm2-135m.json",
        "sol_rt/ops/libsol_ops_cpu.so",
    ):
        assert wanted in names
    assert [name for name in names if name.endswith((".cc", ".h", ".txt", ".pyc"))] == [
        name for name in names if name.endswith("dist-info/entry_points.txt")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("cuda", ["OFF", "AUTO"])
def test_libraries_are_built_with_and_without_cuda(cuda: str, tmp_path: Path) -> None:
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("no cmake or no C++ compiler: nothing can be built here")
    command = ["cmake", "-S", str(ROOT), "-B", str(tmp_path), f"-DSOL_CUDA={cuda}"]
    configured = subprocess.run(command, capture_output=True, text=True, check=False)
    assert configured.returncode == 0, configured.stderr
    left_out = "so they are left out" in configured.stdout + configured.stderr
    targets = checked("cmake", "--build", tmp_path, "--target", "help")
    assert "sol_ops_cpu" in targets
    assert ("sol_ops_cuda" in targets) is (cuda == "AUTO" and not left_out)


@pytest.mark.slow
def test_an_installed_wheel_generates_without_torch(wheel: Path, llama_bundle: Path, tmp_path: Path) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    checked(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    install = subprocess.run(
        [*PIP, "--python", str(python), "install", "-q", str(wheel)], capture_output=True, text=True, check=False
    )
    if install.returncode:
        pytest.skip(f"the runtime's dependencies can't be fetched: {install.stderr.strip().splitlines()[-1]}")

    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SOL_RT_", "PYTHON"))}
    environment["SOL_RT_HOME"] = str(tmp_path / "home")
    places = {"cwd": tmp_path, "env": environment}
    absent = (
        "import importlib.util as u; print([n for n in ('torch', 'transformers', 'onnx', 'gguf') if u.find_spec(n)])"
    )
    assert checked(python, "-c", absent, **places).strip() == "[]"
    where = checked(python, "-c", "import sol_rt; print(sol_rt.__file__)", **places)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")

    command = (
        python.with_name("sol-rt"),
        "generate",
        "-m",
        llama_bundle,
        "-p",
        "Once upon a time",
        "-n",
        "12",
        "--json",
    )
    result = json.loads(checked(*command, "--budget", "0.7", "--temperature", "0", **places))
    assert len(result["tokens"]) == 12
    assert sum(result["actions"].values()) == 11
