"""Resident memory: all variants of a bundle share one copy of its weights, mapped from the file."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from random_decoder import describe
from tiny_bundle import write_bundle

from sol_rt.bundle import Bundle
from sol_rt.ops import library_path

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc"),
    pytest.mark.skipif(library_path() is None, reason="the native operators are not built"),
]

_SESSION = 4.0
"""MB that ONNX Runtime needs for its own picture of a graph of 30 layers, whatever the size of the weights."""

_MEASURE = """
import json, re, sys
from pathlib import Path
from sol_rt.actions import Action
from sol_rt.bundle import Bundle
from sol_rt.engine import Engine
bundle = Bundle.open(sys.argv[1])
engine = Engine(bundle, provider="cpu")
keys = list(bundle.config.variants) if sys.argv[2] == "all" else [bundle.config.dense.variant]
engine.load(keys)
engine.forward(list(range(3, 40)), bundle.config.dense)
for key in keys:
    variant = bundle.config.variants[key]
    engine.forward([5], Action(100, variant.prune, variant.bits))
status = Path("/proc/self/status").read_text()
print(json.dumps([int(re.search(name + r":\\s+(\\d+)", status)[1]) / 1e3 for name in ("VmRSS", "RssAnon", "RssFile")]))
"""


class Resident(NamedTuple):
    """MB of a process that has loaded and run variants: in all, of its own, mapped from files."""

    total: float
    own: float
    mapped: float


def _resident(bundle: Path, which: str) -> Resident:
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(bundle), which], capture_output=True, text=True, check=True, timeout=300
    )
    return Resident(*json.loads(run.stdout))


def _assert_shared(bundle: Path) -> None:
    one, every = _resident(bundle, "one"), _resident(bundle, "all")
    config = Bundle.open(bundle).config
    more = len(config.variants) - 1
    weights = config.files[config.weights_file].bytes / 1e6
    assert one.mapped > weights / 2
    assert every.mapped - one.mapped < 0.05 * weights
    assert every.own - one.own < _SESSION * more
    assert every.total - one.total < _SESSION * more + 0.05 * weights


def test_variants_share_the_weights(tmp_path: Path) -> None:
    decoder = replace(
        describe("llama"),
        hidden_size=512,
        num_heads=8,
        head_dim=64,
        rotary_dim=64,
        intermediate_size=4096,
        num_layers=5,
    )
    bundle = write_bundle(tmp_path / "medium", decoder=decoder)
    assert (bundle / "weights.bin").stat().st_size > 25e6
    _assert_shared(bundle)


def test_variants_of_smollm2_share_the_weights(smollm2_bundle: Path) -> None:
    _assert_shared(smollm2_bundle)
