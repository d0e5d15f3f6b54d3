"""The benchmark `speed.gpu` from end to end, on the CPU and on software Vulkan: every figure has its row."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.places import ROOT
from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine import providers
from sol_rt.engine.providers import Provider
from sol_rt.errors import ProviderError

SHORT = ("--contexts", "32,100,5000", "--prefill", "32", "--repeats", "3", "--tokens", "16", "--seconds", "3")
EVERYWHERE = {
    "every variant against the CPU, a step behind 63 tokens",
    "a dense step's bandwidth, of the pass",
    "attention with 40 of 200 tokens kept, over dense",
    "time at budget 0.4 over 1.0",
    "the policy's step, of the dense one",
}


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("onnx", reason="the benchmark makes graphs")
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks"), "speed.gpu", *arguments],
        env={**os.environ, "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["cpu", "webgpu"])
def test_every_figure_has_a_row(provider: str, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "tiny", policy=True, gpu=True)
    page = tmp_path / "page.md"
    page.write_text("# Before\n")
    done = _run(str(folder), "--provider", provider, *SHORT, "--attention", "200:40", "-o", str(page))
    if provider == "webgpu" and ("finds no device" in done.stderr or "not installed" in done.stderr):
        pytest.skip("no WebGPU adapter, not even software Vulkan")
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    figures = {row[0]: row[2] for row in rows if len(row) == 3}
    assert figures.keys() >= EVERYWHERE
    assert ("kernels over bodies at decode" in figures) == any(row[1] == "kernels" for row in rows)
    if provider == "webgpu":
        assert "launches take at least" in figures["a dense step's bandwidth, of the pass"]
        assert "device memory of all variants over one" in figures
    share = figures["every variant against the CPU, a step behind 63 tokens"]
    assert float(share.partition("%")[0]) < 30  # pruned variants of a random network flip channels
    assert "Left out, beyond the context of 256: 5000." in done.stdout
    if "is no GPU" in done.stderr:
        assert page.read_text() == "# Before\n"


def test_bodies_that_a_provider_refuses_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from speed import gpu

    def choose(name: str, *, native_ops: bool, **rest: Any) -> Provider:
        if not native_ops:
            raise ProviderError("provider cuda: function bodies: wrong numbers")
        return choose_any(name, **rest)

    choose_any = providers.choose
    monkeypatch.setattr(providers, "choose", choose)
    monkeypatch.setattr(gpu, "_has_kernels", lambda provider: True)
    bundle = Bundle.open(write_bundle(tmp_path / "tiny"))
    options = argparse.Namespace(provider="cpu", device=0, bodies=False)
    made, _ = gpu._engines(bundle, options)
    assert list(made) == ["kernels"]
    assert "without function bodies: provider cuda: function bodies: wrong numbers\n" in capsys.readouterr().err
    options.bodies = True
    with pytest.raises(ProviderError):
        gpu._engines(bundle, options)


@pytest.mark.parametrize(
    "wrong", [("--attention", "40:200"), ("--attention", "5"), ("--contexts", "0"), ("--provider", "x")]
)
def test_a_wrong_option_is_a_usage_error(wrong: tuple[str, str]) -> None:
    done = _run("tiny", "--provider", "cpu", *wrong)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_missing_bundle_is_one_line(tmp_path: Path) -> None:
    done = _run(str(tmp_path / "none"), "--provider", "cpu")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
