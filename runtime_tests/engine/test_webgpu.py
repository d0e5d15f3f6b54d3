"""Every variant on WebGPU alone, over software Vulkan where there is no GPU.

The engine's WebGPU sessions are strict: a node without a WebGPU kernel fails the session, none falls back to the CPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.greedy import Run, assert_same_choices, greedy
from helpers.places import TESTS
from helpers.random_decoder import RandomDecoder, describe
from helpers.reference import Array
from helpers.webgpu_tokens import NO_ADAPTER
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED, THREE
from sol_rt.bundle.bundle import Bundle
from sol_rt.export.gpu import add_gpu_graphs
from sol_rt.generate.native.engine import Engine

PROMPT = list(range(20, 80))
TOKENS = 16


ERRORS = {8: 0.005, 6: 0.08, MIXED: 0.02, 4: 0.08, THREE: 0.08}
"""Relative root mean square differences of unpruned logits from the CPU's bodies, by bits."""


def _on_webgpu(bundle: Path, tokens: int) -> dict[str, dict[str, Any]]:
    """Results by variant: the `logits` of every token of the prompt; of unpruned variants those of a `step` after it
    that reads half the old tokens, and greedy `tokens` with their `margins`."""
    pytest.importorskip("onnxruntime_ep_webgpu", reason="the WebGPU plugin comes with the extra dev")
    run = subprocess.run(
        [sys.executable, "-m", "helpers.webgpu_tokens", str(bundle), json.dumps(PROMPT), str(tokens)],
        env={**os.environ, "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"},
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if run.returncode == NO_ADAPTER:
        pytest.skip(f"no WebGPU adapter, not even software Vulkan: {run.stderr.strip()}")
    assert run.returncode == 0, run.stderr
    return dict(json.loads(run.stdout))


@pytest.mark.slow
def test_every_variant_computes_what_the_cpu_does(tiny_bundle: Path, tmp_path: Path) -> None:
    """Pruned ones as nearly as a tiny random network allows: activations rounded otherwise keep other channels."""
    _check_variants(shutil.copytree(tiny_bundle, tmp_path / "tiny"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset",
    [
        *("qwen3", "gemma3", "gemma2", "hunyuan", "olmo2", "exaone4", "stablelm", "arcee"),
        *("gpt-neox", "granite", "ministral3", "ernie", "phi3"),
    ],
)
def test_a_model_of_each_trait_matches_the_cpu(preset: str, tmp_path: Path) -> None:
    """Norms of q and k, norms after blocks, windows, layers without rotary embedding, soft caps, relu2;
    parallel blocks with q, k and v by head, multipliers, yarn, neighbouring channels, joint matrices.
    """
    pytest.importorskip("torch")
    from helpers.random_checkpoint import PRESETS, write_random_checkpoint
    from sol_rt.export.pipeline import export_bundle

    source = write_random_checkpoint(tmp_path / "source", PRESETS[f"tiny-{preset}"])
    levels = {"bits": (8,), "channel_density": (1.0,), "kv_density": (1.0, 0.5)}
    export_bundle(str(source), tmp_path / "bundle", **levels, calibration="none", parity=False)
    _check_variants(tmp_path / "bundle")


def _check_variants(folder: Path) -> None:
    add_gpu_graphs(folder)
    results = _on_webgpu(folder, TOKENS)
    bundle = Bundle.open(folder)
    engine = Engine(bundle, provider="cpu", native_ops=False)
    got, expected, logits = {}, {}, {}
    for key, variant in bundle.config.variants.items():
        dense, sparse = (Action(kv_density, variant.channel_density, variant.bits) for kv_density in (1.0, 0.5))
        engine.reset()
        logits[key] = engine.forward(PROMPT, dense, num_logits=len(PROMPT)).logits
        if variant.channel_density == 1.0:
            assert _error(results[key]["logits"][-1], logits[key][-1]) <= ERRORS[variant.bits], key
            step = engine.forward(PROMPT[:1], sparse).logits[0]
            assert _error(results[key]["step"], step) <= ERRORS[4], key
            got[key] = Run(results[key]["tokens"], results[key]["margins"])
            expected[key] = greedy(engine, PROMPT, dense, TOKENS)
    assert_same_choices(got, expected)
    for key, variant in bundle.config.variants.items():
        pairs = zip(results[key]["logits"], logits[key], logits[f"s100-q{variant.bits}"], strict=True)
        errors = [(_error(on_gpu, on_cpu), _error(unpruned, on_cpu)) for on_gpu, on_cpu, unpruned in pairs]
        error, pruning = np.median(errors, axis=0)
        assert variant.channel_density == 1.0 or error < pruning / 2, key


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_blocks_of_128_match_the_cpu(family: str, tmp_path: Path) -> None:
    """WebGPU multiplies 8-bit activations in blocks of 128, except at level 8."""
    decoder = RandomDecoder.write(
        replace(describe(family), hidden_size=128, intermediate_size=256, head_dim=32), tmp_path
    )
    folder = add_gpu_graphs(decoder.write_bundle(tmp_path, [(1.0, 8), (1.0, 6), (1.0, MIXED), (1.0, 4)])).path
    engine = Engine(Bundle.open(folder), provider="cpu", native_ops=False)
    for key, result in _on_webgpu(folder, 1).items():
        engine.reset()
        action = Action.parse(f"k100-{key}")
        expected = engine.forward(PROMPT, action).logits[0]
        assert _error(result["logits"][-1], expected) <= ERRORS[action.bits], key


def _error(got: list[float] | Array, expected: Array) -> float:
    """Root mean square difference, relative to what was expected."""
    return float(np.sqrt(np.mean((np.array(got) - expected) ** 2) / np.mean(expected**2)))
