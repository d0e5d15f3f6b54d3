"""The policy that an export fits: its examples, a planted rule, no skill, its graph's logits, and the whole export."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="exporting comes with the extra export")
from test_action_set import random_text
from test_export import export

from helpers.random_checkpoint import PRESETS, write_random_checkpoint
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.verify import verify_bundle
from sol_rt.export.actions import readout
from sol_rt.export.actions.readout import SCALARS, Steps, fit_readout, fit_steps, steps_of
from sol_rt.export.actions.stored import StoredCalibration
from sol_rt.export.pipeline import NO_POLICY
from sol_rt.export.policy_file import readout_policy
from sol_rt.export.runs import open_runs
from sol_rt.generate.model import SolModel
from sol_rt.progress import silent

DENSE, DEAR, CHEAP = Action(1.0, 1.0, 8), Action(1.0, 1.0, 4), Action(1.0, 0.5, 4)
ORDER = (DENSE, DEAR, CHEAP)
WINDOWS, STEPS, HIDDEN = 8, 100, 32


def _windows(skill: float, seed: int = 0) -> list[Steps]:
    """Steps whose losses depend on one number of the hidden state, by `skill`. Its mean is far from 0."""
    random, found = np.random.default_rng(seed), []
    for _ in range(WINDOWS):
        inputs = random.standard_normal((len(ORDER), STEPS, len(SCALARS) + HIDDEN))
        inputs[..., len(SCALARS) + 3] = 20 + random.standard_normal(STEPS)
        inputs[..., len(SCALARS) + 5] = 1.0
        noise = random.exponential(0.1, STEPS) * np.exp(skill * (inputs[0, :, len(SCALARS) + 3] - 20))
        found.append(Steps(inputs.astype(np.float16), np.array([0 * noise, noise, 3 * noise])))
    return found


def test_the_examples_are_those_of_single_steps(llama_bundle: Path) -> None:
    engine, window = open_runs(llama_bundle), random_text().scored[0]
    steps = steps_of(engine, window, (DENSE, DEAR), silent)
    half = len(window) // 2
    assert steps.inputs.shape == (2, len(window) - half - 2, len(SCALARS) + engine.bundle.config.model.hidden_size)
    for place, action in enumerate((DENSE, DEAR)):
        engine.reset()
        engine.forward(window[:half], DENSE)
        for step, token in enumerate(window[half : half + 8]):
            out, target = engine.forward([token], action), window[half + step + 1]
            row = out.logits[-1].astype(np.float64)
            logs = row - np.log(np.exp(row - row.max()).sum()) - row.max()
            top = np.sort(np.exp(logs))
            told = [-(np.exp(logs) * logs).sum(), top[-1], -logs[target], top[-1] - top[-2]]
            assert steps.inputs[place, step] == pytest.approx([*told, *out.hidden[-1]], rel=1e-2, abs=1e-2)
    assert not steps.added[0].any()
    assert (steps.added[1] > 0).all()


def test_a_planted_rule_is_found() -> None:
    fitted = fit_steps(_windows(1.0), ORDER)
    assert fitted is not None
    assert 0.2 < fitted.avoided < 0.6
    assert int(np.abs(fitted.weights).argmax()) == len(SCALARS) + 3
    assert fitted.weights[len(SCALARS) + 5] == 0  # constant


def test_a_pair_that_the_score_does_not_order_is_hull() -> None:
    """The dear action's losses fall where the score is high; what the cheap one adds to them follows the rule."""
    whole = fit_steps(_windows(1.0), ORDER)
    assert whole is not None
    assert whole.closed == ()
    windows = [
        replace(each, added=np.array([0 * own, np.exp(-own), np.exp(-own) + 20 * own]))
        for each, own in ((each, each.added[1]) for each in _windows(1.0))
    ]
    fitted = fit_steps(windows, ORDER)
    assert fitted is not None
    assert fitted.closed == (DEAR.tag,)
    assert list(fitted.places(ORDER)) == [0, 0, 1]


@pytest.mark.parametrize("seed", range(8))
def test_losses_by_chance_give_no_readout(seed: int) -> None:
    """So the export writes no policy, and `sol` is `hull`."""
    assert fit_steps(_windows(0.0, seed), ORDER) is None


def test_one_window_gives_no_readout(llama_bundle: Path) -> None:
    assert fit_readout(llama_bundle, random_text(), 1, silent) is None


def test_windows_without_a_step_give_no_readout(llama_bundle: Path) -> None:
    text = random_text()
    short = replace(text, scored=[text.scored[0], *(window[:4] for window in text.scored[1:])])
    assert fit_readout(llama_bundle, short, 8, silent) is None


def test_differences_of_logits_are_the_score_and_densities_of_kv_have_none() -> None:
    fitted = fit_steps(_windows(1.0), ORDER)
    assert fitted is not None
    actions = (DENSE, Action(0.1, 1.0, 8), DEAR, Action(0.1, 1.0, 4), CHEAP)
    policy = readout_policy(fitted, actions, ORDER, "tiny")
    x = _windows(1.0, 1)[0].inputs[0, :50].astype(np.float64)
    units = x @ policy.parameters["direct.0.weight"].astype(np.float64).T + policy.parameters["direct.0.bias"]
    units = 0.5 * units * (1 + np.vectorize(math.erf)(units / math.sqrt(2)))
    logits = units @ policy.parameters["direct.2.weight"].astype(np.float64).T + policy.parameters["direct.2.bias"]
    score = x @ np.array(fitted.weights)
    assert logits[:, 0] - logits[:, 2] == pytest.approx(score, abs=1e-5)
    assert logits[:, 2] - logits[:, 4] == pytest.approx(score, abs=1e-5)
    assert np.array_equal(logits[:, 0], logits[:, 1])
    assert np.array_equal(logits[:, 2], logits[:, 3])
    half = readout_policy(replace(fitted, closed=(CHEAP.tag,)), actions, ORDER, "tiny").parameters["direct.2.weight"]
    assert np.array_equal(half[2], half[4])
    assert not np.array_equal(half[0], half[2])


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-gemma3", "tiny-phi", "tiny-lfm2"])
def test_an_export_writes_what_it_fitted(preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readout, "_CERTAIN", -math.inf)
    monkeypatch.setattr(readout, "_LEAST_AVOIDED", -math.inf)  # random weights have nothing to tell steps apart by
    source = write_random_checkpoint(tmp_path / preset, PRESETS[preset])
    report = export(source, tmp_path / "out", calibration="quick")
    policy = report.config.policy
    assert policy is not None
    assert policy.actions == tuple(entry.action for entry in report.config.actions)
    assert policy.description.startswith("fitted at export")
    assert f"policy: {policy.description}" in report.lines()
    assert f"| policy | {policy.description} |" in (tmp_path / "out" / "README.md").read_text()
    verify_bundle(tmp_path / "out")
    model = SolModel.from_pretrained(Bundle.open(tmp_path / "out"), provider="cpu")
    result = model.generate([5, 6, 7], schedule="sol", budget=0.8, max_new_tokens=20, eos_token_id=[])
    assert len(result.tokens) == 20


def test_an_export_without_skill_or_wish_has_no_policy(
    llama_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export(llama_checkpoint, tmp_path / "out", calibration="quick").config.policy is None
    monkeypatch.setattr("sol_rt.export.pipeline.fit_readout", lambda *_: pytest.fail("fitted"))
    assert export(llama_checkpoint, tmp_path / "none", calibration="quick", policy=NO_POLICY).config.policy is None


def test_a_calibration_that_is_stored_without_a_policy_has_what_one_needs(
    llama_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readout, "_CERTAIN", -math.inf)
    monkeypatch.setattr(readout, "_LEAST_AVOIDED", -math.inf)
    stored = tmp_path / "stored.json"
    given = {"calibration": "quick", "policy": NO_POLICY, "save_calibration": stored}
    assert export(llama_checkpoint, tmp_path / "none", **given).config.policy is None
    readings = StoredCalibration.read(stored)
    assert readings.readout is not None
    closed = replace(readings, readout=replace(readings.readout, closed=("k100-s050-q4",)))
    closed.write(stored)
    assert StoredCalibration.read(stored) == closed
    assert export(llama_checkpoint, tmp_path / "out", calibration=stored).config.policy is not None
