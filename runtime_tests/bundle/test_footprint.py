"""Main memory of a running bundle: estimates against a process's own figures, and the reports of them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from helpers.places import ROOT

pytest.importorskip("onnx", reason="making a bundle comes with the extra export")

from helpers.made_configs import made_config
from helpers.random_decoder import describe, medium_decoder
from helpers.released_configs import CONFIGS
from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.cache_layout import SLACK, STEP
from sol_rt.bundle.config import SolConfig
from sol_rt.cli import main
from sol_rt.engine import hardware
from sol_rt.evaluation import doctor
from sol_rt.evaluation.footprint import fitting_context, footprint, usual_contexts, windowed_layers
from sol_rt.ops import library_path
from sol_rt.store.home import remember_last_export

if TYPE_CHECKING:
    from sol_rt.export.sources.checkpoint import Checkpoint

LONG, WINDOW = 6000, 300
RELEASED = ("SmolLM3-3B",)


@pytest.fixture(scope="module")
def medium(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the medium decoder. Not to be written to."""
    return write_bundle(tmp_path_factory.mktemp("bundle") / "medium", decoder=medium_decoder(), bits=(8, 4))


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a window in six of eight layers. Not to be written to."""
    decoder = replace(medium_decoder(), windows=(WINDOW, WINDOW, WINDOW, 0) * 2)
    return write_bundle(tmp_path_factory.mktemp("bundle") / "windowed", decoder=decoder, bits=(8, 4))


@pytest.fixture(scope="module")
def config(medium: Path) -> SolConfig:
    return Bundle.open(medium).config


measurable = pytest.mark.skipif(library_path() is None, reason="the native operators are not built")
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

_MEASURE = """
import ctypes, json, re, sys
from pathlib import Path
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.generate.native.engine import Engine
bundle = Bundle.open(sys.argv[1])
engine = Engine(bundle, provider="cpu")
for variant in bundle.config.variants.values():
    engine.forward([3], Action(1.0, variant.channel_density, variant.bits))
engine.reset()
bundle.tokenizer().encode("w3")
found = []
for tokens in map(int, sys.argv[2:]):
    engine.forward([3 + i % 80 for i in range(tokens - engine.length)], bundle.config.dense)
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    found.append([int(re.search(r"VmRSS:\\s+(\\d+)", status)[1]) * 1024, engine.private_bytes])
print(json.dumps(found))
"""


def measured(bundle: Path, *contexts: int) -> list[list[int]]:
    """Bytes at each context: the resident memory of a process, and what the core counts as the session's alone."""
    command = [sys.executable, "-c", _MEASURE, str(bundle), *map(str, contexts)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    found: list[list[int]] = json.loads(run.stdout)
    return found


@pytest.mark.slow
@measurable
@on_linux
def test_estimates_are_what_a_process_takes(medium: Path, config: SolConfig) -> None:
    (short, own_short), (long, own_long) = measured(medium, 512, LONG)
    assert footprint(config, 512).total == pytest.approx(short, rel=0.2)
    assert footprint(config, LONG).total == pytest.approx(long, rel=0.2)
    grown = footprint(config, LONG).cache - footprint(config, 512).cache
    assert grown > 40_000_000
    assert own_long - own_short == pytest.approx(grown, rel=0.01)


@pytest.mark.slow
@measurable
@on_linux
def test_layers_with_a_window_take_no_more_than_they_keep(windowed: Path, config: SolConfig) -> None:
    own = Bundle.open(windowed).config
    (_, own_short), (_, own_long) = measured(windowed, 512, LONG)
    grown, whole = (footprint(of, LONG).cache - footprint(of, 512).cache for of in (own, config))
    assert own_long - own_short == pytest.approx(grown, rel=0.01)
    assert grown < 0.4 * whole


def test_the_cache_of_layers_with_a_window_ends_growing(windowed: Path, config: SolConfig) -> None:
    own = Bundle.open(windowed).config
    kept = WINDOW + SLACK + STEP
    assert footprint(own, 768).cache == footprint(config, 768).cache
    layer = config.kv.capacity_for(LONG) * footprint(config, 256).cache // 256 // 8
    assert footprint(own, LONG).cache == pytest.approx(2 * layer + 6 * layer * kept / config.kv.capacity_for(LONG))
    (found,) = windowed_layers(own)
    assert (found.window, found.layers, found.tokens) == (WINDOW, 6, kept)
    assert footprint(own, 8192).cache == footprint(config, 8192).cache // 4 + found.cache
    assert windowed_layers(config) == []
    assert fitting_context(own, footprint(config, 4096).private) == 8192


def test_the_cache_grows_with_the_text_and_int8_takes_half(config: SolConfig) -> None:
    at = {context: footprint(config, context) for context in (256, 512, 4096)}
    assert at[512].cache == 2 * at[256].cache
    assert at[4096].cache == 16 * at[256].cache
    assert at[256].weights == at[4096].weights
    small = replace(config, kv=replace(config.kv, dtype="int8"))
    assert footprint(small, 4096).cache < 0.62 * at[4096].cache
    assert usual_contexts(8192) == [512, 4096, 8192]
    assert usual_contexts(300) == [300]


def test_the_longest_context_that_fits(config: SolConfig) -> None:
    needed = footprint(config, 4096).private
    assert fitting_context(config, needed) == 4096
    assert fitting_context(config, needed - 1) < 4096
    assert fitting_context(config, 10**12) == config.model.max_context
    assert fitting_context(config, 1000) == 0


def test_inspect_shows_memory(medium: Path, config: SolConfig, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "-m", str(medium), "--json"]) == 0
    memory = json.loads(capsys.readouterr().out)["memory"]
    assert list(memory) == ["512", "4096", "8192"]
    assert memory["4096"] == footprint(config, 4096).to_json_dict()
    assert memory["4096"]["total"] == sum(value for name, value in memory["4096"].items() if name != "total")
    assert main(["inspect", "-m", str(medium)]) == 0
    out = capsys.readouterr().out
    assert "memory, MB" in out
    assert f"{footprint(config, 8192).total / 1e6:.1f}" in out


def test_inspect_shows_what_windows_keep(windowed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "-m", str(windowed)]) == 0
    assert f"6 layers with a window of {WINDOW} tokens keep at most 1068 tokens: " in capsys.readouterr().out


def test_doctor_shows_what_windows_keep(windowed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path))
    monkeypatch.delenv("SOL_RT_MODEL", raising=False)
    remember_last_export(windowed)
    found = next(found for found in doctor.examine() if found.what == "model memory")
    assert "KV cache (6 of 8 layers keep what their window needs)" in found.detail


def test_doctor_shows_what_the_default_model_takes(
    medium: Path, config: SolConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path))
    monkeypatch.delenv("SOL_RT_MODEL", raising=False)
    remember_last_export(medium)

    def finding(available: int | None) -> doctor.Finding:
        monkeypatch.setattr(hardware, "available_memory", lambda: available)
        return next(found for found in doctor.examine() if found.what == "model memory")

    assert finding(10**12).state == "ok"
    assert "at its context of 8192 tokens" in finding(None).detail
    middle = footprint(config, 4096)
    short = finding(middle.total)
    assert (short.state, "here up to 4096 fit: pass --ctx-size 4096" in short.detail) == ("missing", True)
    assert "close other programs" in finding(middle.weights).detail


def test_export_says_before_the_work_that_memory_is_too_small_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="exporting comes with the extra export")
    from helpers.random_checkpoint import RandomCheckpoint, write_random_checkpoint
    from sol_rt.export import export_bundle
    from sol_rt.export.weights import memory

    source = write_random_checkpoint(tmp_path / "source", RandomCheckpoint("llama", max_context=1 << 21))
    needed = memory.needed_memory(describe("llama"), False, 10**9, library_path() is not None)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        raise KeyboardInterrupt  # before any weights are written

    monkeypatch.setattr(memory, "available_memory", lambda: needed + 10_000_000)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(str(source), tmp_path / "out", bits=(8,), calibration="none", parity=False, say=say)
    assert len(said) == 1
    assert said[0].startswith("memory: at its context of 2097152 tokens this model takes ")
    assert "tokens fit, and -c " in said[0]
    assert not (tmp_path / "out").exists()


def planned(name: str, kv: str) -> SolConfig:
    """Config that the default export of a released model plans, as far as memory depends on it; without weights."""
    pytest.importorskip("torch", reason="exporting comes with the extra export")
    from sol_rt.export.actions.candidates import CHANNEL_DENSITIES, KV_DENSITIES, Levels
    from sol_rt.export.actions.lm_head_bits import may_screen
    from sol_rt.export.sources.decoder import from_hf_config
    from sol_rt.export.sources.families import FAMILIES
    from sol_rt.export.weights.mixed_bits import graph_precisions
    from sol_rt.export.weights.weights_file import layout

    decoder = from_hf_config(CONFIGS[name])
    levels = Levels.checked((8, 6, 4, 3), CHANNEL_DENSITIES, KV_DENSITIES)  # mixed bits are for sources with codes
    names, nothing = FAMILIES[decoder.family].names, dict.fromkeys(("name", "architecture", "source", "license"), "")
    precisions = graph_precisions(levels.bits, cast("Checkpoint", None), decoder, names)
    screened = decoder.lm_head if may_screen(decoder, precisions) else None
    return replace(
        made_config(),
        model=decoder.dims(**nothing, bos_token_id=None, eos_token_ids=()),
        kv=decoder.kv(kv),
        variants={variant.key: variant for variant in levels.variants(decoder, precisions)},
        tensors=dict(layout(decoder, names, 2, precisions, screened)),
    )


def test_the_page_says_what_released_models_take() -> None:
    page = (ROOT / "docs" / "design" / "memory.md").read_text(encoding="utf-8")
    expected = []
    for name in RELEASED:
        whole, small = planned(name, "float16"), planned(name, "int8")
        for context in usual_contexts(whole.model.max_context):
            parts, half = footprint(whole, context), footprint(small, context)
            numbers = [parts.weights, parts.program, parts.cache, parts.activations, parts.total, half.total]
            expected.append(f"| {name} | {context} | {' | '.join(f'{number / 1e6:.0f}' for number in numbers)} |")
    rows = [line for line in page.splitlines() if line.startswith(tuple(f"| {name} |" for name in RELEASED))]
    assert rows == expected, "\n".join(["the page should have", *expected])
