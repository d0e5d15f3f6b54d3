"""Every variant on WebGPU alone, over software Vulkan where there is no GPU.

The engine's WebGPU sessions are strict: a node without a WebGPU kernel fails the session, none falls back to the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from greedy import Run, assert_same_choices, greedy
from random_decoder import RandomDecoder, describe
from webgpu_tokens import NO_ADAPTER

from sol_rt.actions import Action
from sol_rt.bundle import Bundle
from sol_rt.engine import Engine

PROMPT = list(range(20, 80))
TOKENS = 16


def _on_webgpu(bundle: Path, tokens: int) -> dict[str, dict[str, Any]]:
    """Results by variant: greedy `tokens` and their `margins`, and the prompt's last `logits`."""
    pytest.importorskip("onnxruntime_ep_webgpu", reason="the WebGPU plugin comes with the extra dev")
    script = Path(__file__).with_name("webgpu_tokens.py")
    run = subprocess.run(
        [sys.executable, str(script), str(bundle), json.dumps(PROMPT), str(tokens)],
        env={**os.environ, "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if run.returncode == NO_ADAPTER:
        pytest.skip(f"no WebGPU adapter, not even software Vulkan: {run.stderr.strip()}")
    assert run.returncode == 0, run.stderr
    return dict(json.loads(run.stdout))


def test_every_variant_chooses_the_tokens_of_the_cpu(tiny_bundle: Path) -> None:
    got = {key: Run(result["tokens"], result["margins"]) for key, result in _on_webgpu(tiny_bundle, TOKENS).items()}
    bundle = Bundle.open(tiny_bundle)
    engine = Engine(bundle, provider="cpu", native_ops=False)
    expected = {
        variant.key: greedy(engine, PROMPT, Action(50, variant.prune, variant.bits), TOKENS)
        for variant in bundle.config.variants.values()
    }
    assert_same_choices(got, expected)


def test_sizes_at_which_webgpu_rounds_activations_itself(tmp_path: Path) -> None:
    """Sizes of 128: root mean square error of the logits within 8%."""
    decoder = RandomDecoder.write(
        replace(describe("llama"), hidden_size=128, intermediate_size=256, head_dim=32), tmp_path
    )
    folder = decoder.write_bundle(tmp_path, [(100, 8), (100, 6), (100, 4)])
    engine = Engine(Bundle.open(folder), provider="cpu", native_ops=False)
    for key, result in _on_webgpu(folder, 1).items():
        engine.reset()
        expected = engine.forward(PROMPT, Action.parse(f"k100-{key}")).logits[0]
        difference = np.array(result["logits"]) - expected
        assert np.sqrt(np.mean(difference**2) / np.mean(expected**2)) <= 0.08, key
