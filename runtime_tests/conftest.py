"""Bundles that several test files share, made once a run."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from helpers import core_build
from helpers.packages import missing_packages
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.engine.providers import start_pool
from sol_rt.store.home import checkpoints_dir, costs_dir

import onnxruntime as ort

# Before torch is imported: its matrix products then add in one order on Intel's processors with AVX-512 and without.
# Where two old tokens have equal scores but for the last bit, reference and engine then keep the same one.
os.environ.setdefault("MKL_CBWR", "AVX2")
os.environ["SOL_RT_COSTS"] = "bytes"  # of programs that drive the core: a first load would measure for seconds

# The same examples in every run, so that a run that fails fails again; SOL_RT_RANDOM=1 draws new ones. No time limit: a
# loaded machine stalls for longer than any that would mean something.
settings.register_profile(
    "run",
    deadline=None,
    derandomize="SOL_RT_RANDOM" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("run")

_SMOLLM2 = "smollm2-135m"
# before any test points SOL_RT_HOME elsewhere
_SMOLLM2_PLACES = (
    os.environ.get("SOL_RT_TEST_SMOLLM2"),
    checkpoints_dir() / f"{_SMOLLM2}.gguf",
    checkpoints_dir() / _SMOLLM2,
)


_SLOW_LIMIT = 1800
"""Seconds that tests marked `slow`, and those that build the native core, may take; pyproject.toml has the others'."""
_BUILDS = ("test_native_", "test_chat_segments", "test_cores")


def pytest_configure(config: pytest.Config) -> None:
    core_build.slow = "not slow" not in config.option.markexpr
    _keep_to_a_share_of_the_cores()


def _keep_to_a_share_of_the_cores() -> None:
    """Binds this process of pytest-xdist, and what it starts, to its share of the cores: threads that spin for work
    else take the cores of the other processes, a third of the whole time.
    """
    count, worker = os.environ.get("PYTEST_XDIST_WORKER_COUNT"), os.environ.get("PYTEST_XDIST_WORKER", "")
    if count is None or not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(0))
    if share := cores[int(worker.removeprefix("gw")) :: int(count)]:
        os.sched_setaffinity(0, share)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        slow = item.get_closest_marker("slow") is not None or item.path.name.startswith(_BUILDS)
        if slow and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_SLOW_LIMIT))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Lists by reason how many tests were skipped, and the command that installs what the system lacks."""
    skipped = terminalreporter.getreports("skipped")
    if not skipped:
        return
    terminalreporter.section("not tested")
    for reason, count in Counter(_reason(report) for report in skipped).most_common():
        terminalreporter.write_line(f"{count:5}  {reason}")
    if missing := missing_packages("build", "test-all"):
        terminalreporter.write_line(
            f"Missing packages: {' '.join(missing)}. To install them: scripts/install-packages.sh build test-all"
        )


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")


@pytest.fixture
def measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """First loads time the actions, as they do for users."""
    monkeypatch.delenv("SOL_RT_COSTS")


@pytest.fixture(scope="session", autouse=True)
def _home_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Loading a bundle writes into the home folder, which must not be the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOL_RT_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def _no_cost_table_outlives_its_test() -> Iterator[None]:
    """Tables are named after a bundle's name and identity, which tiny bundles of other tests share."""
    tables = costs_dir()
    yield
    shutil.rmtree(tables, ignore_errors=True)


class _PooledSession(ort.InferenceSession):
    """A session on the process-wide pool, whatever its options say."""

    def __init__(self, model: str | bytes, options: ort.SessionOptions | None = None, **arguments: Any) -> None:
        options = options or ort.SessionOptions()
        options.use_per_session_threads = False
        super().__init__(model, options, **arguments)


@pytest.fixture(scope="session", autouse=True)
def _sessions_share_the_pool() -> Iterator[None]:
    """Once the runtime has made the pool, ONNX Runtime refuses sessions with threads of their own: tests make some."""
    start_pool(None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ort, "InferenceSession", _PooledSession)
        yield


def _checkpoint(factory: pytest.TempPathFactory, preset: str) -> Path:
    pytest.importorskip("onnx", reason="exporting comes with the extra export")
    from helpers.random_checkpoint import PRESETS, write_random_checkpoint

    return write_random_checkpoint(factory.mktemp("checkpoint") / preset, PRESETS[preset])


def _export(factory: pytest.TempPathFactory, source: Path, name: str) -> Path:
    pytest.importorskip("torch", reason="exporting comes with the extra export")
    from sol_rt.export import export_bundle

    output = factory.mktemp("bundle") / name
    export_bundle(str(source), output, calibration="none", parity=False)
    return output


@pytest.fixture(scope="session")
def llama_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Llama checkpoint folder: 2 layers, 4 heads on 2 KV heads, vocabulary 320, context 1024, tied."""
    return _checkpoint(tmp_path_factory, "tiny-llama")


@pytest.fixture(scope="session")
def phi_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random Phi checkpoint folder: parallel blocks, LayerNorm, biases, half of a head rotated."""
    return _checkpoint(tmp_path_factory, "tiny-phi")


@pytest.fixture(scope="session")
def llama_bundle(llama_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `llama_checkpoint` with all default variants. Not to be written to."""
    return _export(tmp_path_factory, llama_checkpoint, "tiny-llama")


@pytest.fixture(scope="session")
def phi_bundle(phi_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `phi_checkpoint` with all default variants. Not to be written to."""
    return _export(tmp_path_factory, phi_checkpoint, "tiny-phi")


@pytest.fixture(scope="session", params=["llama", "phi"])
def tiny_bundle(request: pytest.FixtureRequest) -> Path:
    """Both tiny bundles, one after the other."""
    return Path(request.getfixturevalue(f"{request.param}_bundle"))


@pytest.fixture(scope="session")
def smollm2_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M-Instruct: the bundle or checkpoint that $SOL_RT_TEST_SMOLLM2 names, or the checkpoint that the home
    folder holds; a bundle there may be of another format, and has the actions that its export chose.
    """
    for place in _SMOLLM2_PLACES:
        if place and Path(place).exists():
            found = Path(place)
            return found if (found / CONFIG_NAME).is_file() else _export(tmp_path_factory, found, _SMOLLM2)
    pytest.skip("no SmolLM2: run `sol-rt pull smollm2-135m`, or name a bundle or .gguf in SOL_RT_TEST_SMOLLM2")
