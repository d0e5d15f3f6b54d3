"""Resident memory: an export takes that of one layer; all variants of a bundle share one mapped copy of its weights."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.random_decoder import describe
from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.bundle import Bundle
from sol_rt.ops import library_path

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
native = pytest.mark.skipif(library_path() is None, reason="the native operators are not built")

_SESSION = 4.0
"""MB that ONNX Runtime needs for its own picture of a graph of 30 layers, whatever the size of the weights."""

_LEVEL_3 = (".low", ".high", ".block_scale", ".output_scale")

_MEASURE = """
import ctypes, json, re, sys
from pathlib import Path
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.generate.native.engine import Engine
bundle = Bundle.open(sys.argv[1])
engine = Engine(bundle, provider="cpu")
keys = list(bundle.config.variants) if sys.argv[2] == "all" else [bundle.config.dense.variant]
engine.forward(list(range(3, 40)), bundle.config.dense)
for key in keys:
    variant = bundle.config.variants[key]
    engine.forward([5], Action(1.0, variant.channel_density, variant.bits))
ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps of freed memory comes and goes by some MB
status = Path("/proc/self/status").read_text()
print(json.dumps([int(re.search(name + r":\\s+(\\d+)", status)[1]) / 1e3 for name in ("VmRSS", "RssAnon", "RssFile")]))
"""


class Resident(NamedTuple):
    """MB of a process that has loaded and run variants: in all, of its own, mapped from files."""

    total: float
    own: float
    mapped: float


def _resident(bundle: Path, which: str) -> Resident:
    """The least of three processes: arenas of the threads that happen to allocate add up to 3 MB to one of them."""
    return Resident(*map(min, zip(*(_one_process(bundle, which) for _ in range(3)), strict=True)))


def _one_process(bundle: Path, which: str) -> list[float]:
    run = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(bundle), which], capture_output=True, text=True, check=True, timeout=300
    )
    numbers: list[float] = json.loads(run.stdout)
    return numbers


def _assert_shared(bundle: Path) -> tuple[Resident, Resident, float]:
    """Returns what the dense variant and all variants take, and the MB of 3-bit weights, which dense does not read."""
    one, every = _resident(bundle, "one"), _resident(bundle, "all")
    config = Bundle.open(bundle).config
    more = len({variant.file for variant in config.variants.values()}) - 1  # density levels are inputs of a graph
    weights = config.files[config.weights_file].bytes / 1e6
    own = sum(entry.bytes for name, entry in config.tensors.items() if name.endswith(_LEVEL_3)) / 1e6
    most = 0.05 * weights + own  # the 3-bit graph has weights of its own
    assert one.mapped > weights / 2
    assert every.mapped - one.mapped < most
    assert every.own - one.own < _SESSION * more
    assert every.total - one.total < _SESSION * more + most
    return one, every, own


@pytest.mark.slow
@native
def test_variants_share_the_weights(tmp_path: Path) -> None:
    decoder = replace(
        describe("llama"),
        hidden_size=512,
        num_heads=8,
        head_dim=64,
        rotary_dim=64,
        intermediate_size=4096,
        num_layers=5,
        rope_of_layer=(0,) * 5,
    )
    bundle = write_bundle(tmp_path / "medium", decoder=decoder)
    assert (bundle / "weights.bin").stat().st_size > 25e6
    _assert_shared(bundle)


@native
@pytest.mark.slow
def test_variants_of_smollm2_share_the_weights(smollm2_bundle: Path) -> None:
    one, every, own = _assert_shared(smollm2_bundle)
    assert every.total - own < 1.05 * one.total


_EXPORT = """
import re, sys, threading, time
from pathlib import Path
from sol_rt.export import export_bundle
def own():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1e3
def watch():
    while True:
        seen.append(own())
        time.sleep(0.005)
tiny, source, output = map(Path, sys.argv[1:])
export_bundle(str(tiny), output, bits=(8,), calibration="none")  # loads libraries
seen = [own()]
threading.Thread(target=watch, daemon=True).start()
export_bundle(str(source), output, bits=(8,), calibration="none")
print(max(seen) - seen[0])
"""


@pytest.mark.slow
@native
def test_an_export_takes_the_memory_of_a_layer(llama_checkpoint: Path, tmp_path: Path) -> None:
    """Comparison included: less than 1.5 times the largest layer in float32, of a model of two."""
    from helpers.random_checkpoint import RandomCheckpoint, write_random_checkpoint

    hidden, inner = 1280, 8192
    shape = RandomCheckpoint("phi", hidden, 2, 20, 20, inner, tied=False, rotary_fraction=0.5, dtype="float16")
    source = write_random_checkpoint(tmp_path / "checkpoint", shape)
    command = [sys.executable, "-c", _EXPORT, llama_checkpoint, source, tmp_path / "out"]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    layer = 4 * (4 * hidden * hidden + 2 * hidden * inner) / 1e6
    assert float(run.stdout) < 1.5 * layer
