"""The wheel: what is in it, that it runs alone, and what is left of it without a compiler or headers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import fetch_headers
import pytest
import show_sbom
from packaging.requirements import Requirement

import sol_rt
from helpers.places import ROOT
from helpers.tools import find_tool

CMAKE = find_tool("cmake")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
ALONE = """
import runpy, sys
sys.meta_path = [finder for finder in sys.meta_path if finder.__module__.startswith("_frozen_importlib")]
sys.path.insert(0, sys.argv[1])
import sol_rt
assert sol_rt.__file__.startswith(sys.argv[1]), sol_rt.__file__
del sys.argv[:2]
if sys.argv[0].endswith(".py"):
    runpy.run_path(sys.argv[0], run_name="__main__")
from sol_rt.cli import main
sys.argv.insert(0, "sol-rt")
sys.exit(main())
"""
"""Runs `sol-rt` or a script on an unpacked wheel, whatever is installed beside it."""


def checked(*command: str | Path, **settings: object) -> str:
    """Runs a command and returns its stdout; a failure shows what it printed."""
    run = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **settings)  # type: ignore[call-overload]
    assert run.returncode == 0, run.stdout + run.stderr
    return str(run.stdout)


def alone(folder: Path, *command: str | Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Runs `sol-rt`, or a script, on the package in `folder`."""
    program = (sys.executable, "-c", ALONE, str(folder), *map(str, command))
    return subprocess.run(program, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, **settings)


def unpacked(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the working tree; its native library comes out of the build folder where that is up to date."""
    pytest.importorskip("scikit_build_core", reason="the build back end comes with the extra dev")
    if CMAKE is None or shutil.which("c++") is None:
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
        "sol_rt/models/smollm2-135m.calibration.json",
        "sol_rt/ops/libsol_ops_cpu.so",
        "sol_rt/export/actions/sample_text/verse.txt",
    ):
        assert wanted in names
    others = [name for name in names if name.endswith((".cc", ".h", ".map", ".txt", ".pyc"))]
    meant = ("dist-info/entry_points.txt", "/sample_text/")
    assert [name for name in others if not any(part in name for part in meant)] == []


@pytest.mark.slow
def test_the_wheel_says_what_is_compiled_into_it(wheel: Path) -> None:
    found = show_sbom.bill_of_materials(wheel)
    assert found is not None
    parts = {part["name"]: part for part in found["components"]}
    assert {"highway", "onnxruntime-c-api"} <= set(parts)
    for part in parts.values():
        assert re.fullmatch(r"\d+\.\d+(\.\d+)?", part["version"]), part
        assert part["licenses"][0]["expression"]
        assert part["purl"].endswith(f"@{part['version']}")
    assert found["metadata"]["component"]["version"] == sol_rt.__version__
    assert set(found["dependencies"][0]["dependsOn"]) == set(parts)
    assert "timestamp" not in json.dumps(found)
    assert str(ROOT) not in json.dumps(found)


@pytest.mark.slow
def test_the_bill_of_materials_is_what_cyclonedx_asks_for(wheel: Path) -> None:
    pytest.importorskip("cyclonedx", reason="the package cyclonedx-python-lib[json-validation] checks the document")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    document = json.dumps(show_sbom.bill_of_materials(wheel))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(document) is None


@pytest.mark.slow
def test_two_builds_in_two_folders_give_the_same_bytes(tmp_path: Path) -> None:
    """The sources lie in folders of different names, and those of the second one are its owner's alone.

    The softmax sums alone are compiled: the rest takes minutes. `make same-wheel` compiles all of it.
    """
    pytest.importorskip("scikit_build_core", reason="the build back end comes with the extra dev")
    if CMAKE is None or shutil.which("c++") is None:
        pytest.skip("no cmake or no C++ compiler: nothing can be built here")
    left_out = shutil.ignore_patterns(
        "benchmarks", "docs", "runtime_tests", "build", "dist", "*.so", "__pycache__", ".*"
    )
    one, other = tmp_path / "one" / "source", tmp_path / "another-folder" / "source"
    shutil.copytree(ROOT, one, ignore=left_out)
    listed = one / "core" / "ops" / "cpu" / "build.cmake"
    text = listed.read_text(encoding="utf-8")
    start = text.index("  attention/attention.cc")
    end = text.index(")\n", start)
    listed.write_text(text[:start] + "  host/softmax_sums.cc\n  simd/target.cc\n" + text[end:], encoding="utf-8")
    library = listed.with_name("CMakeLists.txt")  # it registers the operators that were left out
    given = library.read_text(encoding="utf-8")
    registered = "${SOL_OPS_SOURCE_DIR}/common/onnx/register.cc"
    assert registered in given
    library.write_text(given.replace(registered, ""), encoding="utf-8")
    shutil.copytree(one, other)
    for path in other.rglob("*"):
        path.chmod(path.stat().st_mode & 0o700)
    environment = {
        **os.environ, "SOL_NATIVE": "ON", "SOL_CUDA": "OFF", "SOL_CORE": "OFF", "SOURCE_DATE_EPOCH": "1790000000"
    }  # fmt: skip
    hashes = set()
    for source in (one, other):
        checked(*PIP, "wheel", "--no-deps", "--no-build-isolation", "-w", source.parent, source, env=environment)
        hashes.add(hashlib.sha256(next(source.parent.glob("*.whl")).read_bytes()).hexdigest())
    assert len(hashes) == 1


@pytest.mark.slow
def test_a_wheel_serves_every_python_of_its_platform(wheel: Path) -> None:
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        assert "Root-Is-Purelib: false" in archive.read(name).decode().splitlines()


@pytest.mark.slow
def test_a_library_shows_only_what_hosts_ask_for(wheel: Path, tmp_path: Path) -> None:
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    library = unpacked(wheel, tmp_path) / "sol_rt" / "ops" / "libsol_ops_cpu.so"
    names = [line.split()[-1] for line in checked("nm", "-D", "--defined-only", library).splitlines()]
    shown = ["Copies", "ReadBytes", "SoftmaxSums", "Target", "Tune", "Tuning"]
    assert sorted(names) == ["RegisterCustomOps", *(f"SolOps{name}" for name in shown)]


@pytest.mark.slow
def test_the_smoke_test_passes_on_a_wheel_and_fails_without_operators(wheel: Path, tmp_path: Path) -> None:
    folder = unpacked(wheel, tmp_path)
    good = alone(folder, ROOT / "scripts" / "smoke_test.py")
    assert good.returncode == 0, good.stderr
    assert "actions agree within" in good.stdout
    (folder / "sol_rt" / "ops" / "libsol_ops_cpu.so").unlink()
    bad = alone(folder, ROOT / "scripts" / "smoke_test.py")
    assert bad.returncode == 1
    assert "no native operators" in bad.stderr


def configured(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs CMake where nothing is found by itself, so that only what `options` name is there."""
    if CMAKE is None or shutil.which("make") is None:
        pytest.skip("no cmake or no make")
    if (ROOT / "build" / "headers").exists():
        pytest.skip("build/headers has the headers that are to be missing")
    hidden = ("-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF", "-DCMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH=OFF")
    program = ("-G", "Unix Makefiles", f"-DCMAKE_MAKE_PROGRAM={shutil.which('make')}", "-DSOL_CUDA=OFF")
    command = (str(CMAKE), "-S", str(ROOT), "-B", str(folder), *hidden, *program, *options)
    environment = {name: value for name, value in os.environ.items() if name != "CXX"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    """Files of the right names, which do not compile."""
    folder = tmp_path / "headers"
    (folder / "hwy").mkdir(parents=True)
    (folder / "hwy" / "highway.h").write_text("#error broken\n")
    (folder / "onnxruntime_c_api.h").write_text("#error broken\n")
    return folder


def release(path: Path) -> None:
    """An archive like Highway's."""
    with tarfile.open(path, "w:gz") as archive:
        for name in ("hwy/highway.h", "hwy/ops/x86_128-inl.h", "hwy/targets.cc", "README.md"):
            info = tarfile.TarInfo(f"highway-1.2.0/{name}")
            info.size = len(name)
            archive.addfile(info, io.BytesIO(name.encode()))


def test_fetched_headers_are_the_pinned_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    archive, header, folder = tmp_path / "highway.tar.gz", tmp_path / "c_api.h", tmp_path / "headers"
    release(archive)
    header.write_text("the C API")
    for name, path in (("HIGHWAY", archive), ("ONNXRUNTIME", header)):
        monkeypatch.setattr(fetch_headers, name, path.as_uri())
        monkeypatch.setattr(fetch_headers, f"{name}_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    assert fetch_headers.main([str(folder)]) == 0
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["hwy/highway.h", "hwy/ops/x86_128-inl.h", "onnxruntime_c_api.h"]
    assert (folder / "onnxruntime_c_api.h").read_text() == "the C API"

    header.write_text("another one")
    assert fetch_headers.main([str(folder)]) == 1
    error = capsys.readouterr().err
    assert header.as_uri() in error
    assert "expected" in error
    assert (folder / "onnxruntime_c_api.h").read_text() == "the C API"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c_api.h", "headers", "highway.tar.gz"]

    header.unlink()
    assert fetch_headers.main([str(folder)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {header.as_uri()}: ")


def test_headers_of_packages_are_copied_alone(tmp_path: Path, headers: Path) -> None:
    packages = tmp_path / "include"
    (packages / "onnxruntime").mkdir(parents=True)
    (headers / "hwy").rename(packages / "hwy")
    (headers / "onnxruntime_c_api.h").rename(packages / "onnxruntime" / "onnxruntime_c_api.h")
    (packages / "onnxruntime" / "onnxruntime_ep_c_api.h").write_text("included by releases from 1.22 on")
    (packages / "stdio.h").write_text("of the host")
    folder = tmp_path / "made"
    assert fetch_headers.main([str(folder), "--from", str(packages)]) == 0
    files = ["hwy", "onnxruntime_c_api.h", "onnxruntime_ep_c_api.h"]
    assert sorted(path.name for path in folder.iterdir()) == files
    (packages / "hwy" / "highway.h").unlink()
    assert fetch_headers.main([str(folder), "--from", str(packages)]) == 1


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["C++ compiler", "hwy/highway.h", "onnxruntime_c_api.h"])
def test_a_missing_build_requirement_is_named_in_one_line(missing: str, headers: Path, tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    given = [f"-DCMAKE_CXX_COMPILER={'NOTFOUND' if missing == 'C++ compiler' else compiler}"]
    if missing == "onnxruntime_c_api.h":
        given.append(f"-DHIGHWAY_INCLUDE_DIR={headers}")

    left_out = configured(tmp_path / "auto", *given)
    assert left_out.returncode == 0, left_out.stderr
    lines = [line for line in left_out.stderr.splitlines() if "Native operators" in line]
    assert len(lines) == 1
    assert missing in lines[0]
    assert "scripts/install-packages.sh build" in lines[0]
    checked(str(CMAKE), "--build", tmp_path / "auto")
    checked(str(CMAKE), "--install", tmp_path / "auto", "--prefix", tmp_path / "installed")
    assert not list((tmp_path / "installed").rglob("libsol_ops*"))

    found = "CMAKE_CXX_COMPILER:" in (tmp_path / "auto" / "CMakeCache.txt").read_text()
    assert found is (missing != "C++ compiler"), "the next build in this folder would not look for a compiler"

    wanted = configured(tmp_path / "on", *given, "-DSOL_NATIVE=ON")
    assert wanted.returncode != 0
    assert missing in " ".join(wanted.stderr.split())


def test_a_core_that_is_asked_for_names_the_packages_that_it_lacks(headers: Path, tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    given = (f"-DHIGHWAY_INCLUDE_DIR={headers}", f"-DONNXRUNTIME_INCLUDE_DIR={headers}")
    run = configured(tmp_path / "build", f"-DCMAKE_CXX_COMPILER={compiler}", *given, "-DSOL_CORE=ON")
    assert run.returncode != 0
    assert "nlohmann-json3-dev, libpcre2-dev and libutf8proc-dev" in " ".join(run.stderr.split())


@pytest.mark.slow
def test_code_that_does_not_compile_is_an_error(headers: Path, tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    given = (f"-DHIGHWAY_INCLUDE_DIR={headers}", f"-DONNXRUNTIME_INCLUDE_DIR={headers}")
    run = configured(tmp_path / "build", f"-DCMAKE_CXX_COMPILER={compiler}", *given)
    assert run.returncode == 0, run.stderr
    built = subprocess.run(
        [str(CMAKE), "--build", str(tmp_path / "build")], capture_output=True, text=True, check=False
    )
    assert built.returncode != 0
    assert "#error broken" in built.stderr


@pytest.mark.slow
def test_without_a_compiler_the_package_says_what_running_a_model_needs(llama_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("scikit_build_core", reason="the build back end comes with the extra dev")
    if CMAKE is None:
        pytest.skip("no cmake")
    # As on a machine without one: the build back end names the compiler that Python was built with.
    environment = dict(os.environ, CXX=str(tmp_path / "absent-c++"), CMAKE_ARGS="-DCMAKE_CXX_COMPILER=NOTFOUND")
    settings = ("-C", f"build-dir={tmp_path / 'build'}")
    checked(*PIP, "wheel", "--no-deps", "--no-build-isolation", *settings, "-w", tmp_path, ROOT, env=environment)
    folder = unpacked(next(tmp_path.glob("*.whl")), tmp_path / "package")
    assert not list(folder.rglob("libsol_ops*"))

    home = dict(os.environ, SOL_RT_HOME=str(tmp_path / "home"))
    doctor = alone(folder, "doctor", "--json", env=home)
    assert doctor.returncode == 1, doctor.stderr
    findings = {finding["what"]: finding for finding in json.loads(doctor.stdout)["findings"]}
    for what, state in (("native operators", "missing"), ("native core", "broken")):
        assert findings[what]["state"] == state
        assert "scripts/install-packages.sh build" in findings[what]["detail"]

    generate = ("generate", "-m", llama_bundle, "-p", "Once upon a time", "-n", "6")
    for command in (generate, ("inspect", "-m", llama_bundle)):
        run = alone(folder, *command, env=home)
        assert run.returncode == 1
        error = run.stderr.splitlines()[-1]
        assert error.startswith(
            "sol-rt: error: this installation has no native core, libsol_rt, which reads bundles and runs models; "
        )
        assert "scripts/install-packages.sh build" in error


@pytest.mark.slow
@pytest.mark.parametrize("cuda", ["OFF", "AUTO"])
def test_libraries_are_built_with_and_without_cuda(cuda: str, tmp_path: Path) -> None:
    if CMAKE is None or shutil.which("c++") is None:
        pytest.skip("no cmake or no C++ compiler: nothing can be built here")
    command = [CMAKE, "-S", str(ROOT), "-B", str(tmp_path), f"-DSOL_CUDA={cuda}"]
    configured = subprocess.run(command, capture_output=True, text=True, check=False)
    assert configured.returncode == 0, configured.stderr
    left_out = "so they are left out" in configured.stdout + configured.stderr
    targets = checked(str(CMAKE), "--build", tmp_path, "--target", "help")
    assert "sol_ops_cpu" in targets
    assert ("sol_ops_cuda" in targets) is (cuda == "AUTO" and not left_out)


def dependencies(name: str) -> set[str]:
    """Names of the installed packages that the package `name` needs, without extras, and those that they need."""
    found, ahead = set(), [name]
    while ahead:
        for line in metadata.requires(ahead.pop()) or ():
            needed = Requirement(line)
            if needed.name not in found and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
                found.add(needed.name)
                ahead.append(needed.name)
    return found


@pytest.mark.slow
def test_an_installed_wheel_generates_without_torch(wheel: Path, llama_bundle: Path, tmp_path: Path) -> None:
    """In an environment that has of this one's packages only those that the wheel says it needs."""
    python = tmp_path / "venv" / "bin" / "python"
    checked(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    checked(*PIP, "--python", str(python), "install", "-q", "--no-deps", "--no-index", wheel)
    folder = next((tmp_path / "venv" / "lib").glob("*/site-packages"))
    for name in dependencies("sol-rt"):
        for file in metadata.files(name) or ():
            link = folder / file.parts[0]
            if file.parts[0] != ".." and not link.exists():
                link.symlink_to(file.locate().parents[len(file.parts) - 1] / file.parts[0])

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
