"""Layers with a state: whatever was run, failed or taken back before, tokens give what they give in a fresh engine."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("torch", reason="exporting comes with the extra export")

from helpers.poison import texts
from helpers.random_checkpoint import PRESETS, RandomCheckpoint, write_random_checkpoint
from helpers.reference_steps import EXACT, random_tokens
from helpers.rewinds import Moves, logits_along, moves
from helpers.saved_session import saved
from sol_rt.budget.cost.model import BytesCost
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.cache_layout import states_bytes
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.config_reader import parse_config, read_config
from sol_rt.cli import main
from sol_rt.errors import BundleError, NumericError, ProviderError, QualityWarning, UsageError
from sol_rt.evaluation.footprint import footprint
from sol_rt.export.pipeline import export_bundle
from sol_rt.export.web import write_web_bundle
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.engine import Engine

DENSE, CHEAP = Action(1.0, 1.0, 8), Action(0.25, 0.5, 4)
TOKENS = random_tokens(900, 300).tolist()


def exported(base: Path, shape: RandomCheckpoint) -> Path:
    """The bundle of a checkpoint of random weights."""
    source = write_random_checkpoint(base / "source", shape)
    levels = {"bits": (8, 4), "channel_density": (1.0, 0.5), "kv_density": (1.0, 0.25)}
    report = export_bundle(str(source), base / "bundle", **levels, calibration="none", parity=False)
    assert report.notes == ("layers with a state: the bundle runs on the CPU, not on GPUs or in browsers",)
    return base / "bundle"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("states"), PRESETS["tiny-lfm2"])


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    return Engine(bundle, provider="cpu")


@pytest.fixture(scope="module")
def fresh(bundle: Bundle) -> Callable[[list[int]], np.ndarray]:
    """The logits after tokens that are run dense from the start, float32 [vocab]."""
    other = Engine(bundle, provider="cpu")

    def logits(tokens: list[int]) -> np.ndarray:
        other.reset()
        return other.forward(tokens, DENSE).logits[0]

    return logits


def same(got: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(got - expected).max() < EXACT * expected.std())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moves(90, 12, 5), st.randoms(use_true_random=False))
def test_any_rewinds_give_what_a_fresh_run_gives(
    engine: Engine, fresh: Callable[[list[int]], np.ndarray], chosen: Moves, random: Any
) -> None:
    for logits in logits_along(engine, DENSE, chosen, random):
        assert same(logits, fresh(list(engine.tokens)))


@pytest.mark.parametrize("back", [1, 2, 15], ids=lambda back: f"{back} back")
def test_steps_are_taken_back_without_running_any_token_again(engine: Engine, back: int) -> None:
    """Bit by bit, although the steps were cheap: a token that ran again, dense, would leave other keys."""
    engine.reset()
    engine.forward(TOKENS[:40], DENSE)
    runs = []
    for _ in range(2):
        runs.append([engine.forward([token], CHEAP).logits for token in TOKENS[40 : 40 + 20]])
        engine.truncate(60 - back)
        runs[-1] += [engine.forward([token], CHEAP).logits for token in TOKENS[100 : 100 + back]]
        engine.truncate(40)
    assert np.array_equal(runs[0], runs[1])
    expected = runs[0][20 - back]
    engine.forward(TOKENS[40 : 40 + 1], CHEAP)
    for token in TOKENS[41 : 60 - back]:
        engine.forward([token], CHEAP)
    assert np.array_equal(engine.forward([TOKENS[60 - back]], CHEAP).logits, expected)


def test_a_prompt_begins_again_where_it_ended(engine: Engine, fresh: Callable[[list[int]], np.ndarray]) -> None:
    """The same prompt, whose last token runs again, after an answer of cheap steps longer than the last copies."""
    engine.reset()
    first = engine.forward(TOKENS[:700], DENSE).logits
    for token in TOKENS[700:750]:
        engine.forward([token], CHEAP)
    engine.truncate(699)
    again = engine.forward(TOKENS[699:700], DENSE)
    assert np.array_equal(again.logits, first)
    engine.truncate(650)
    assert same(engine.forward(TOKENS[650:660], DENSE).logits[0], fresh(TOKENS[:660]))


def test_a_refused_step_changes_nothing(tmp_path: Path) -> None:
    """A token whose embedding is not finite gives no numbers; the tokens after it do."""
    copy = exported(tmp_path, replace(PRESETS["tiny-lfm2"], tied=False))
    entry = read_config(copy / CONFIG_NAME).tensors["embed.scale"]
    scales = np.memmap(copy / "weights.bin", np.float16, "r+", entry.offset, entry.shape)
    scales[:, 310] = np.inf
    scales.flush()
    engine = Engine(Bundle.open(copy, verify=False), provider="cpu", native_ops=False)
    engine.forward(TOKENS[:30], DENSE)
    expected = [engine.forward([token], DENSE).logits for token in TOKENS[30:34]]
    engine.truncate(30)
    with pytest.raises(NumericError):
        engine.forward([310], DENSE)
    assert engine.length == 30
    got = [engine.forward([token], DENSE).logits for token in TOKENS[30:34]]
    assert np.array_equal(got, expected)


def test_the_first_layers_state_forgets_a_cheap_step(engine: Engine) -> None:
    """Nothing but the last tokens is in its state: after two dense steps it is that of a run without cheap steps."""

    def first_state(actions: list[Action]) -> np.ndarray:
        engine.reset()
        engine.forward(TOKENS[:50], DENSE)
        for token, action in zip(TOKENS[50:], actions, strict=False):
            engine.forward([token], action)
        return saved(engine)[1][0]

    cheap, repaired = first_state([CHEAP] * 3), first_state([CHEAP] * 3 + [DENSE] * 2)
    assert not np.allclose(cheap, first_state([DENSE] * 3), rtol=1e-3)
    assert np.array_equal(repaired, first_state([DENSE] * 5))


def test_costs_and_memory_count_the_layers_that_attend_and_the_states(bundle: Bundle) -> None:
    config = bundle.config
    model, kv = config.model, config.kv
    assert kv.layers == ("conv", "attention", "conv", "attention")
    assert kv.conv_size == 3
    assert kv.state_bytes(model.hidden_size) == 2 * 64 * 2 * 4
    cost, weights = BytesCost(config), config.variants[DENSE.variant].weight_bytes
    token = 4 * model.num_kv_heads * model.head_dim
    assert cost.dense(99) == weights + 2 * kv.state_bytes(model.hidden_size) + 2 * 100 * token
    pages = -(-24 // 4)
    codes = 4 * model.num_kv_heads * (model.head_dim // 2 + 4) * 24
    sparse = cost.step(Action(0.25, 1.0, 8), 99) - cost.dense(99)
    assert sparse == 2 * ((4 * (pages + 1) + 4 - 100) * token + codes)
    contexts = np.array([3, 99, 512])
    table = cost.table([DENSE, CHEAP])(contexts)
    assert np.allclose(table, [[cost.step(action, context) for action in (DENSE, CHEAP)] for context in (3, 99, 512)])
    every = replace(kv, layers=(), conv_size=0)
    states = states_bytes(model, kv)
    assert footprint(config, 512).cache - states == footprint(replace(config, kv=every), 512).cache / 2


def test_bundles_with_states_are_refused_on_gpus_and_in_browsers(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    for provider in ("cuda", "webgpu"):
        with pytest.raises(ProviderError, match=f"provider {provider}: has no operators for the short convolutions"):
            Engine(bundle, provider=provider)
    with pytest.raises(UsageError, match=r"--target web: .* has layers with a short convolution"):
        write_web_bundle(folder, tmp_path / "web")
    assert not (tmp_path / "web").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layers": ["conv", "attention"]}, r"kv.layers: .* expected attention or conv for each of the 4 layers"),
        ({"layers": []}, r"kv.layers: got \[\], expected attention or conv for each of the 4 layers"),
        ({"layers": ["conv", "delta", "conv", "attention"]}, r"kv.layers: .* expected attention or conv for each"),
        ({"layers": ["conv"] * 4}, r"kv.layers: got conv alone, expected layers of both kinds"),
        ({"conv_size": 1}, r"kv.conv_size: got 1, expected an integer from 2 to 32"),
        ({"conv_size": None}, r"kv.conv_size: got null"),
        ({"dense_layers": [0]}, r"kv.dense_layers: got \[0\], expected layers that attend"),
        ({"layers": None}, r"kv.layers: "),
    ],
)
def test_impossible_layers_are_refused(folder: Path, change: dict[str, Any], said: str) -> None:
    document = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    document["kv"] |= change
    with pytest.raises(BundleError, match=said) as raised:
        parse_config(document, folder / CONFIG_NAME)
    assert "\n" not in str(raised.value)


def test_poisoned_layers_are_refused_in_one_line(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    document["weights"]["tensors"] = dict(list(document["weights"]["tensors"].items())[:1])
    path, said = tmp_path / CONFIG_NAME, []
    for where, text in texts(document):
        if "layers" not in where and "conv_size" not in where:
            continue
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        try:
            read_config(path)
        except BundleError as error:
            said.append(str(error))
    assert len(said) > 50
    assert [line for line in said if "\n" in line or len(line) > 1000] == []


def test_a_filter_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "bundle"))
    document = json.loads((copy / CONFIG_NAME).read_text(encoding="utf-8"))
    document["kv"]["conv_size"] = 4
    (copy / CONFIG_NAME).write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(
        BundleError, match=r"layers.0.conv.weight.shape: got \[64, 3\] .* 4 at axis 1, from kv.conv_size"
    ):
        Bundle.open(copy)


def test_cheap_steps_are_warned_of_once(folder: Path) -> None:
    model = SolModel.from_pretrained(folder, measure_costs=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for how in ({}, {"budget": 1.0}, {"schedule": "dense"}, {"schedule": f"fixed:{DENSE.tag}"}):
            list(model.stream(TOKENS[:8], max_new_tokens=2, **how))
    with pytest.warns(QualityWarning, match="states of short convolutions was measured on random weights only"):
        list(model.stream(TOKENS[:8], max_new_tokens=2, schedule=f"fixed:{CHEAP.tag}"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(model.stream(TOKENS[:8], max_new_tokens=2, bits=4))
    with pytest.warns(QualityWarning, match=r"compare with --budget 1$"):
        list(SolModel.from_pretrained(folder, measure_costs=False).stream(TOKENS[:8], max_new_tokens=2, bits=4))


def test_the_commands_warn_in_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "warning: what cheap steps do to the states of short convolutions"
    assert main(["generate", "-m", str(folder), "-p", "a", "-n", "4", "--budget", "0.8", "--provider", "cpu"]) == 0
    assert capsys.readouterr().err.count(line) == 1
    (tmp_path / "text.txt").write_text("too short")
    assert main(["train", "-m", str(folder), "-d", str(tmp_path / "text.txt"), "-o", str(tmp_path / "out")]) != 0
    assert capsys.readouterr().err.count(f"{line} was measured on random weights only") == 1
