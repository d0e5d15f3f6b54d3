"""Actions measured and chosen through the real runtime, on tiny bundles."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch", reason="exporting comes with the extra export")
from test_export import export, fails, policy_for

from sol_rt.budget.cost.model import BytesCost
from sol_rt.budget.dial import sensible_budget
from sol_rt.budget.hull import Hull
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME, ActionEntry, SolConfig
from sol_rt.bundle.selection import SELECTION, Selection
from sol_rt.bundle.verify import verify_bundle
from sol_rt.errors import BundleError, UsageError
from sol_rt.export import pipeline
from sol_rt.export.actions import action_set, effort, measuring
from sol_rt.export.actions.action_set import ActionSet
from sol_rt.export.actions.calibration_text import WINDOW, CalibrationText
from sol_rt.export.actions.effort import Effort
from sol_rt.export.actions.losses import Candidate, Losses, losses_and_divergences, margin
from sol_rt.export.actions.selection import Verdict
from sol_rt.export.bundle_folder import seal
from sol_rt.export.policy_file import write_policy
from sol_rt.generate.native.engine import Engine
from sol_rt.progress import silent

TEXT = "The old man of the sea told a tale of ships, of storms and of the stars above the bay. "


SHORT = replace(Effort.full(), scored_windows=2, long_tokens=255, kv_steps=24)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    words = TEXT.split()
    order = np.random.default_rng(0).integers(0, len(words), 6000)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(words[index] for index in order), encoding="utf-8")
    return path


def random_text(windows: int = 2, long: int = 900) -> CalibrationText:
    draw = np.random.default_rng(0)
    made = tuple(tuple(draw.integers(3, 300, 512).tolist()) for _ in range(windows))
    return CalibrationText((), made, made, tuple(draw.integers(3, 300, long).tolist()), "drawn tokens")


def choose(folder: Path, config: SolConfig, text: CalibrationText, max_actions: int = 12) -> ActionSet:
    """Measures the candidates and chooses, as an export does."""
    kv_densities = sorted({entry.action.kv_density for entry in config.actions})
    measured = measuring.measure(Bundle.open(folder), text, kv_densities, SHORT, silent)
    return action_set.choose_actions(folder, config, measured, text.origin, max_actions)


def copied(bundle: Path, tmp_path: Path) -> tuple[Path, SolConfig]:
    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    return folder, Bundle.open(folder).config


def test_an_export_with_a_text_is_a_sound_bundle(llama_checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    steps: list[str] = []
    report = export(
        llama_checkpoint, tmp_path / "out", calibration=text_file, progress=lambda step, *_: steps.append(step)
    )
    bundle = Bundle.open(tmp_path / "out")
    verify_bundle(tmp_path / "out")
    config, selection = bundle.config, Selection.of(bundle)
    assert selection == report.selection
    assert selection is not None
    assert selection.text == "text.txt"
    assert SELECTION in config.files
    assert len(selection.candidates) == 8
    kept = {candidate.action for candidate in selection.candidates if candidate.kept}
    assert {entry.action for entry in config.actions} == kept
    assert config.dense in kept
    assert set(config.variants) == {action.variant for action in kept}
    graphs = {path.name for path in (tmp_path / "out").glob("*.onnx")}
    assert graphs == {variant.file for variant in config.variants.values()}
    card = (tmp_path / "out" / "README.md").read_text()
    hull = Hull([entry.action for entry in config.actions], BytesCost(config))
    for context in selection.contexts:
        (least,) = re.findall(rf"After {context} tokens, budgets of (\d\.\d\d) to 1 ", card)
        assert 0 <= float(least) - sensible_budget(hull, context) < 0.01
    for entry in config.actions:
        assert entry.loss is not None
        assert list(entry.losses) == list(selection.contexts)
        assert entry.losses[max(selection.contexts)] == entry.loss
        assert f"| {entry.action.tag} |" in card
    for stage in ("measuring losses: losses at 512", "hashing weights: hashing weights.bin"):
        assert stage in steps
    assert str(tmp_path) not in (tmp_path / "out" / SELECTION).read_text()


def test_a_large_model_writes_no_text_and_the_time_is_said_first(
    llama_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(effort, "_LARGE", 0)
    monkeypatch.setattr(pipeline, "_LEAST_TOLD", 0)
    heard: list[str] = []
    report = export(
        llama_checkpoint,
        tmp_path / "out",
        channel_density=(1.0,),
        kv_density=(1.0,),
        calibration="quick",
        progress=lambda step, *_: heard.append(step),
        say=heard.append,
    )
    assert report.calibration == "the package's sample texts"
    (told,) = (at for at, line in enumerate(heard) if line.startswith("time: about "))
    assert told < min(at for at, line in enumerate(heard) if line.startswith("fitting weights"))
    assert not any(line.startswith(("rounding weights", "writing calibration text")) for line in heard)
    assert report.selection is not None
    assert report.selection.text == "the package's sample texts"


@pytest.mark.slow
@pytest.mark.parametrize("room", [64, 256, 512, 513])
def test_a_context_that_holds_no_whole_window(
    room: int, llama_checkpoint: Path, text_file: Path, tmp_path: Path
) -> None:
    export(llama_checkpoint, tmp_path / "out", calibration=text_file, max_context=room)
    selection = Selection.of(Bundle.open(tmp_path / "out"))
    assert selection is not None
    assert list(selection.contexts) == [min(512, room - 1)]


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40).map(np.array))
def test_a_kv_density_counts_for_more_than_its_mean_and_for_nothing_at_least(added: np.ndarray) -> None:
    shared = measuring.shared_loss(added)
    assert shared.stderr == pytest.approx(added.std(ddof=1) / len(added) ** 0.5)
    assert shared.loss == pytest.approx(max(added.mean() + shared.stderr, 0.0))


def test_losses_are_those_of_the_runtime(llama_bundle: Path) -> None:
    """Against steps one by one and a softmax in float64; bytes against the bytes model."""
    bundle, text = Bundle.open(llama_bundle), random_text()
    measured = measuring.measure(bundle, text, (1.0, 0.1), SHORT, silent)
    engine, dense = Engine(bundle, provider="cpu"), bundle.config.dense

    def losses(window: Sequence[int], context: int, action: Action) -> np.ndarray:
        engine.reset()
        engine.forward(window[:context], dense)
        found = []
        for token, target in zip(window[context:-1], window[context + 1 :], strict=True):
            logits = np.array(engine.forward([token], action).logits[0], np.float64)
            found.append(np.log(np.exp(logits - logits.max()).sum()) + logits.max() - logits[target])
        return np.array(found)

    assert list(measured.fronts) == [512, 640]
    count, steps = SHORT.scored_tokens, SHORT.kv_steps
    assert measured.tokens == {512: 2 * count, 640: SHORT.long_tokens}
    cheap, dense_q4, few = Action(1.0, 0.4, 4), Action(1.0, 1.0, 4), Action(0.1, 1.0, 4)

    def added(windows: Sequence[Sequence[int]], context: int, action: Action) -> np.ndarray:
        return np.concatenate([losses(window, context, action) - losses(window, context, dense) for window in windows])

    behind = 512 - count - 1
    wanted = {(512, cheap): added(text.scored, behind, cheap).mean()}
    end = 640 + SHORT.long_tokens + 1
    for context, windows, each in ((512, text.scored, steps // 2), (640, [text.long[:end]], steps)):
        begin = behind if context == 512 else context
        plain = added(windows, begin, dense_q4).mean()
        more = added([window[: begin + each + 1] for window in windows], begin, replace(dense, kv_density=0.1))
        shared = more.mean() + more.std(ddof=1) / len(more) ** 0.5
        assert shared > 1e-3  # or the lower KV density would not show
        wanted |= {(context, dense_q4): plain, (context, few): plain + shared}
    for (context, action), loss in wanted.items():
        # a batch sums in another order, which now and then turns the rounding of an activation
        assert abs(measured.fronts[context][action].loss - loss) < 1e-3, (context, action)
        assert measured.fronts[context][action].bytes == BytesCost(bundle.config).step(action, context)
    for front in measured.fronts.values():
        assert (front[dense].loss, front[dense].stderr) == (0.0, 0.0)


def test_losses_on_kinds_of_text_have_a_margin(llama_bundle: Path) -> None:
    """Against divergences of each window; the long stretch has the factor of the short context."""
    bundle, text = Bundle.open(llama_bundle), replace(random_text(4), by_divergence=True)
    measured = measuring.measure(bundle, text, (1.0, 0.1), replace(SHORT, scored_windows=4, windows_of_all=4), silent)
    engine, cheap = Engine(bundle, provider="cpu"), Action(1.0, 0.4, 4)
    context = 512 - SHORT.scored_tokens - 1

    def losses(window: Sequence[int], context: int, action: Action = cheap) -> np.ndarray:
        return losses_and_divergences(engine, [window], bundle.config.dense, [Candidate(action)], context=context)[1]

    def mean(window: Sequence[int], context: int) -> float:
        return float(losses(window, context).mean())

    few = replace(bundle.config.dense, kv_density=0.1)
    steps = [losses(window[: context + SHORT.kv_steps // 4 + 1], context, few) for window in text.scored]
    means = [float(each.mean()) for each in steps]
    factor = (np.mean(means) + 1.45 * np.std(means, ddof=1)) / np.mean(means)
    every = factor * np.concatenate(steps, axis=None)
    shared = every.mean() + every.std(ddof=1) / every.size**0.5
    assert measured.fronts[512][few].loss == pytest.approx(shared, rel=1e-3)

    kinds = [mean(window, context) for window in text.scored]
    bound = np.mean(kinds) + 1.45 * np.std(kinds, ddof=1)
    assert bound > 1.01 * np.mean(kinds)
    assert measured.fronts[512][cheap].loss == pytest.approx(bound, rel=1e-3)
    long = mean(text.long[: 640 + SHORT.long_tokens + 1], 640)
    assert measured.fronts[640][cheap].loss == pytest.approx(long * bound / np.mean(kinds), rel=1e-3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_a_margin_never_lowers_a_loss(losses: list[float]) -> None:
    assert margin(losses) >= 1
    assert margin([0.5] * 8) == 1


def test_variants_that_others_beat_are_dropped_after_a_few_windows(
    llama_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others' figures and the chosen actions are as if none had been dropped."""
    bundle, text = Bundle.open(llama_bundle), replace(random_text(4), by_divergence=True)
    early = replace(SHORT, scored_windows=4, windows_of_all=2)
    required, scored = (Action(0.25, 0.4, 8),), Counter[Action]()

    def counted(engine: Engine, windows: Sequence[Sequence[int]], *rest: Any, **how: Any) -> tuple[Losses, Losses]:
        if len(windows[0]) == WINDOW:
            scored.update([bundle.config.dense, *(candidate.action for candidate in rest[1])])
        return losses_and_divergences(engine, windows, *rest, **how)

    monkeypatch.setattr(measuring, "losses_and_divergences", counted)
    got = measuring.measure(bundle, text, (1.0, 0.1), early, silent, required=required)
    whole = measuring.measure(bundle, text, (1.0, 0.1), replace(early, windows_of_all=4), silent, required=required)
    dropped = whole.fronts[512].keys() - got.fronts[512].keys()
    assert dropped
    assert replace(required[0], kv_density=1.0) not in dropped
    assert all(scored[action] == 2 + 4 for action in dropped)
    assert all(scored[action] == 4 + 4 for action in got.fronts[512] if action.kv_density == 1.0)
    assert got.fronts == {512: {a: whole.fronts[512][a] for a in got.fronts[512]}, 640: whole.fronts[640]}
    assert replace(got, fronts={}) == replace(whole, fronts={})
    config = replace(bundle.config, actions=tuple(ActionEntry(a, None) for a in whole.fronts[512]))
    sets = [
        action_set.choose_actions(Path(shutil.copytree(llama_bundle, tmp_path / name)), config, found, "drawn", 12)
        for name, found in (("early", got), ("whole", whole))
    ]
    assert sets[0].config == sets[1].config
    reasons = {candidate.action: candidate.reason for candidate in sets[0].selection.candidates}
    for action in dropped:
        assert reasons[action] == f"not measured: {action.variant} is far from the hull at 512"


def test_losses_without_a_file_are_divergences(llama_bundle: Path) -> None:
    """None is below zero, dense has none, and they agree with losses of drawn tokens as far as those can tell."""
    bundle = Bundle.open(llama_bundle)
    engine, dense, draw = Engine(bundle, provider="cpu"), bundle.config.dense, np.random.default_rng(0)
    window = [5]
    while len(window) < 512:
        logits = np.array(engine.forward([window[-1]], dense).logits[0], np.float64)
        shares = np.exp(logits - logits.max())
        window.append(int(draw.choice(len(shares), p=shares / shares.sum())))
    text = CalibrationText((), (tuple(window),), (tuple(window),), (), "drawn from the model")
    every = replace(SHORT, scored_tokens=256)
    divergences = measuring.measure(bundle, replace(text, by_divergence=True), (1.0,), every, silent).fronts[512]
    losses = measuring.measure(bundle, text, (1.0,), every, silent).fronts[512]
    for action, found in divergences.items():
        assert found.loss > -1e-6
        assert abs(found.loss - losses[action].loss) < 4 * losses[action].stderr + 1e-6
    cheap = Action(1.0, 0.4, 3)
    assert divergences[cheap].loss > 0
    assert divergences[cheap].stderr < losses[cheap].stderr


def test_without_a_long_text_pages_are_not_measured(llama_bundle: Path, tmp_path: Path) -> None:
    folder, config = copied(llama_bundle, tmp_path)
    chosen = choose(folder, config, random_text(long=0), 12)
    assert {entry.action.kv_density for entry in chosen.config.actions} == {1.0}
    dropped = [candidate for candidate in chosen.selection.candidates if candidate.action.kv_density < 1.0]
    assert dropped
    assert all(candidate.reason.startswith("not measured: text or model") for candidate in dropped)
    assert list(chosen.selection.contexts) == [512]


def test_the_choice_is_what_the_bundle_has(llama_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, config = copied(llama_bundle, tmp_path)
    wanted = {config.dense, Action(0.25, 0.5, 4)}

    def made_up(fronts: object, dense: Action, max_actions: int, **how: object) -> dict[Action, Verdict]:
        assert max_actions == 2
        return {entry.action: Verdict(entry.action in wanted, "made up") for entry in config.actions}

    monkeypatch.setattr(action_set, "choose", made_up)
    chosen = choose(folder, config, random_text(), 2)
    assert {entry.action for entry in chosen.config.actions} == wanted
    assert set(chosen.config.variants) == {"s100-q8", "s050-q4"}
    assert {path.name for path in folder.glob("*.onnx")} == {"model.q8.onnx", "model.q4.onnx"}


@pytest.mark.slow
def test_a_policy_keeps_its_actions(llama_checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    """One of them with a KV density that is no level of the export."""
    wanted = ("k100-s100-q8", "k060-s050-q8", "k025-s050-q4")
    write_policy(tmp_path / "policy.safetensors", policy_for(wanted))
    given = {"policy": tmp_path / "policy.safetensors", "calibration": text_file, "max_actions": 1}
    report = export(llama_checkpoint, tmp_path / "out", **given)
    assert {entry.action.tag for entry in report.config.actions} == set(wanted)
    assert report.selection is not None
    found = {candidate.action.tag: candidate for candidate in report.selection.candidates}
    assert found["k060-s050-q8"].reason == "the policy picks it"
    assert Bundle.open(tmp_path / "out").config.policy is not None


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "the file is empty"), (b"\x00\x01\x02" * 9000, "binary"), (TEXT.encode() * 3, "got .* tokens, expected")],
)
def test_texts_that_nothing_can_be_learned_from(
    content: bytes, message: str, llama_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    steps: list[str] = []
    progress = lambda step, *_: steps.append(step)  # noqa: E731
    given = {"calibration": tmp_path / "text.txt", "progress": progress}
    fails(llama_checkpoint, tmp_path / "out", UsageError, message, **given)
    assert set(steps) <= {"opening the source"}  # said at once


def test_a_selection_is_read_back(llama_bundle: Path, tmp_path: Path) -> None:
    folder, config = copied(llama_bundle, tmp_path)
    chosen = choose(folder, config, random_text(), 12)
    seal(folder, chosen.config, config.files["weights.bin"], None, chosen.selection)
    bundle = Bundle.open(folder)
    assert Selection.of(bundle) == chosen.selection
    document = json.loads((folder / SELECTION).read_text())
    for damage in (
        {"format_version": 2},
        {"format_version": "1"},
        {"collapse_loss": "nan"},
        {"candidates": [{"tag": "fast"}]},
        {"candidates": []},
        {"contexts": None},
    ):
        (folder / SELECTION).write_text(json.dumps({**document, **damage}))
        with pytest.raises(BundleError, match=r"selection\.json: got a file that is not readable"):
            Selection.of(replace(bundle, verify=False))


@pytest.mark.slow
def test_the_same_source_and_text_give_the_same_files(llama_checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        export(llama_checkpoint, tmp_path / name, calibration=text_file)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_inspect_of_a_bundle_with_a_selection(
    llama_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sol_rt.cli import main

    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    folder, config = copied(llama_bundle, tmp_path)
    chosen = choose(folder, config, random_text(), 12)
    seal(folder, chosen.config, config.files["weights.bin"], None, chosen.selection)
    assert main(["inspect", "-m", str(folder), "-o", "json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {"path", "format_version", "variants", "policy", "actions", "cost_model"} <= set(result)
    assert all(action["loss"] is not None for action in result["actions"])
    assert {candidate["tag"] for candidate in result["selection"]["candidates"] if candidate["kept"]} == {
        action["tag"] for action in result["actions"]
    }
    page = tmp_path / "page.html"
    assert main(["inspect", "-m", str(folder), "--all", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "k010-s040-q4" in out
    assert "dropped: " in out
    assert "Loss against cost, as a share of dense, in bytes, of the kept actions at context 512" in out
    text = page.read_text(encoding="utf-8")
    assert "http" not in text.replace("http-equiv", "")
    assert all(candidate.action.tag in text for candidate in chosen.selection.candidates)
    assert main(["inspect", "-m", str(llama_bundle), "--html", str(page)]) == 2
    assert "losses were not measured" in capsys.readouterr().err
    assert (folder / CONFIG_NAME).exists()
