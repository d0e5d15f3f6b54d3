"""Every variant on WebGPU alone, over software Vulkan where there is no GPU.

The engine's WebGPU sessions are strict: a node without a WebGPU kernel fails the session, none falls back to the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from greedy import Run, assert_same_choices, greedy
from webgpu_tokens import NO_ADAPTER

from sol_rt.actions import Action
from sol_rt.bundle import Bundle
from sol_rt.engine import Engine

TOKENS = 16


def test_every_variant_chooses_the_cpu_s_tokens(tiny_bundle: Path) -> None:
    pytest.importorskip("onnxruntime_ep_webgpu", reason="the WebGPU plugin comes with the extra dev")
    bundle, prompt = Bundle.open(tiny_bundle), list(range(20, 80))
    script = Path(__file__).with_name("webgpu_tokens.py")
    run = subprocess.run(
        [sys.executable, str(script), str(tiny_bundle), json.dumps(prompt), str(TOKENS)],
        env={**os.environ, "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if run.returncode == NO_ADAPTER:
        pytest.skip(f"no WebGPU adapter, not even software Vulkan: {run.stderr.strip()}")
    assert run.returncode == 0, run.stderr
    got = {key: Run(**value) for key, value in json.loads(run.stdout).items()}
    engine = Engine(bundle, provider="cpu", native_ops=False)
    expected = {
        variant.key: greedy(engine, prompt, Action(50, variant.prune, variant.bits), TOKENS)
        for variant in bundle.config.variants.values()
    }
    assert_same_choices(got, expected)
