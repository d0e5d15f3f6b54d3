"""Evaluation on held-out text with a tiny bundle, against the runtime's own scores and logits worked out in float64."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from helpers.commands import fails
from helpers.cost_tables import save_table
from helpers.tiny_bundle import write_bundle
from sol_rt.budget.cost.cost_table import stored_cost
from sol_rt.bundle.actions import Action
from sol_rt.cli import main
from sol_rt.cli.measure.eval import _plan
from sol_rt.errors import UsageError
from sol_rt.evaluation.pages.evaluation import render_evaluation_html
from sol_rt.evaluation.quality.bootstrap import Figure, Resampling
from sol_rt.evaluation.quality.held_out import SIZES, Plan, SizeRuns, cost_of, measure, nll_of, state_settings
from sol_rt.evaluation.quality.runs import DENSE, Setting, WindowRun, WindowScorer
from sol_rt.evaluation.quality.state import State
from sol_rt.evaluation.quality.windows import Window, spread_windows
from sol_rt.evaluation.report.report import report_of, size_report
from sol_rt.evaluation.report.tables import table_lines
from sol_rt.generate.model import SolModel

SIZE = 160
QUICK = Plan(sizes=(SIZE,), budgets=(0.7, 0.8), chunks=3, random=2, searched=1, block=16)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "tiny", policy=True, losses=True)


@pytest.fixture(scope="module")
def model(bundle: Path) -> SolModel:
    return SolModel.from_pretrained(bundle, measure_costs=False)


@pytest.fixture(scope="module")
def text() -> str:
    words = np.random.default_rng(3).integers(3, 86, 3 * SIZE)
    return " ".join(f"w{word}" for word in words)


@pytest.fixture(scope="module")
def runs(model: SolModel, text: str) -> SizeRuns:
    return next(iter(measure(model, {"text": text}, QUICK, State(None, {}), lambda *_: None)))


def windows_of(model: SolModel, text: str) -> list[Window]:
    return spread_windows({"text": model.tokenizer.encode(text, add_special_tokens=False)}, SIZE, None, None, None)


@pytest.mark.parametrize(
    ("setting", "how"),
    [
        (Setting("uniform", 0.6), {"schedule": "uniform", "budget": 0.6}),
        (Setting("entropy", 0.7), {"schedule": "entropy", "budget": 0.7}),
        (Setting("sol", 0.7), {"schedule": "sol", "budget": 0.7}),
        (Setting("random", 0.7, 5), {"schedule": "random", "budget": 0.7, "seed": 5}),
        (Setting("fixed:k030-s050-q4"), {"schedule": "fixed:k030-s050-q4"}),
    ],
)
def test_a_run_is_what_generation_scores(model: SolModel, text: str, setting: Setting, how: dict[str, Any]) -> None:
    window = windows_of(model, text)[1]
    scorer = WindowScorer(model, block=16)
    scorer.open(window)
    scorer.run(Setting("uniform", 0.7))  # what another schedule left in the cache must not matter
    run = scorer.run(setting)
    expected = model.score(window.tokens, context=window.context, **how)
    assert sum(run.tokens) == window.steps == SIZE // 2 - 1
    assert [len(run.nll), run.tokens[0], run.tokens[-1]] == [5, 16, window.steps % 16]
    np.testing.assert_allclose(
        run.nll, np.add.reduceat(-expected.logprobs[1:], np.arange(0, window.steps, 16)), rtol=1e-9
    )
    assert run.actions == expected.actions
    assert cost_of([run]) == pytest.approx(expected.achieved_budget)


def test_divergence_and_agreement_are_those_of_the_full_logits(model: SolModel, text: str) -> None:
    window, engine = windows_of(model, text)[0], model.engine
    scorer = WindowScorer(model, block=SIZE)
    # a batch adds up otherwise than steps do, and a number of the float16 cache may be rounded to its other neighbour
    assert scorer.open(window).kl[0] == pytest.approx(0.0, abs=1e-5)
    run = scorer.run(Setting("fixed:k030-s050-q4"))
    action = next(entry.action for entry in model.bundle.config.actions if entry.action.tag == "k030-s050-q4")

    def log_probabilities(which: Any) -> np.ndarray:
        engine.reset()
        engine.forward(window.tokens[: window.context], model.bundle.config.dense)
        rows = []
        for token in window.tokens[window.context : -1]:
            logits = engine.forward((token,), which).logits[0].astype(np.float64)
            rows.append(logits - np.log(np.exp(logits).sum()))
        return np.array(rows)

    dense, cheap = log_probabilities(model.bundle.config.dense), log_probabilities(action)
    assert run.kl[0] == pytest.approx((np.exp(dense) * (dense - cheap)).sum(), abs=1e-4)
    assert run.agreed[0] == int((dense.argmax(-1) == cheap.argmax(-1)).sum())
    assert run.nll[0] == pytest.approx(-cheap[np.arange(window.steps), window.tokens[window.context + 1 :]].sum())


@pytest.mark.slow
def test_all_schedules_are_run_on_all_windows(model: SolModel, runs: SizeRuns) -> None:
    tags = {entry.action.tag for entry in model.bundle.config.actions}
    assert set(runs.fixed) == tags
    names = {"hull", "uniform", "random", "entropy", "sol", "mix"}
    assert set(runs.budgeted) == {(name, budget) for name in names for budget in QUICK.budgets}
    every = [runs.dense, *runs.fixed.values(), *runs.budgeted.values()]
    assert all(len(each) == len(runs.windows) == 3 for each in every)
    for (name, budget), each in runs.budgeted.items():
        for run in each:
            # `mix` is a single cheaper action where mixing in a dearer one gains nothing
            below = 1.0 if name == "mix" else 0.02
            assert -below <= cost_of([run]) - budget <= 0.02, name
    assert runs.chosen["random", 0.7] in ("seed 0", "seed 1")


def test_the_best_random_schedule_of_the_searched_windows_is_taken(model: SolModel, text: str) -> None:
    plan = Plan(sizes=(SIZE,), budgets=(0.6,), schedules=("random",), chunks=2, random=3, searched=1)
    (runs,) = measure(model, {"text": text}, plan, State(None, {}), lambda *_: None)
    scorer = WindowScorer(model, block=64)
    scorer.open(runs.windows[0])
    tried = [nll_of([scorer.run(Setting("random", 0.6, seed))]) for seed in range(3)]
    assert runs.chosen == {("random", 0.6): f"seed {int(np.argmin(tried))}"}
    assert nll_of(runs.budgeted["random", 0.6][:1]) == pytest.approx(min(tried))


def test_the_oracle_chooses_from_what_each_action_gives_after_a_dense_cache(model: SolModel, text: str) -> None:
    plan = Plan(sizes=(SIZE,), budgets=(0.5, 0.7), schedules=("hull", "oracle"), chunks=2, block=16)
    (runs,) = measure(model, {"text": text}, plan, State(None, {}), lambda *_: None)
    actions = [entry.action for entry in model.bundle.config.actions]
    engine, dense, window = model.engine, model.bundle.config.dense, runs.windows[0]

    def log_probabilities(action: Action, token: int) -> np.ndarray:
        logits = engine.forward((token,), action).logits[0].astype(np.float64)
        return np.asarray(logits - np.log(np.exp(logits).sum()))

    engine.reset()
    engine.forward(window.tokens[: window.context], dense)
    kl, costs = np.empty((window.steps, len(actions))), np.empty((window.steps, len(actions)))
    for index, token in enumerate(window.tokens[window.context : -1]):
        context = window.context + index
        rows = {}
        for action in actions:
            rows[action] = log_probabilities(action, token)
            engine.truncate(context)
        expected = log_probabilities(dense, token)
        kl[index] = [(np.exp(expected) * (expected - rows[action])).sum() for action in actions]
        costs[index] = [model.cost.step(action, context) for action in actions]
    costs /= np.mean([model.cost.dense(window.context + index) for index in range(window.steps)])
    for budget in plan.budgets:
        run = runs.budgeted["oracle", budget][0]
        assert cost_of([run]) <= budget + 1e-9
        # any choice bounds the best one from above; weighing cost by a multiplier bounds it from below
        spent = cost_of([run])
        below = max(
            (kl + weight * costs).min(1).sum() - weight * spent * window.steps for weight in np.geomspace(1e-4, 10, 400)
        )
        assert below - 1e-3 <= sum(run.kl) <= below + 0.05 * kl.max()
        assert sum(run.kl) <= sum(runs.budgeted["hull", budget][0].kl) + 0.1 * kl.max()
        assert sum(run.actions.values()) == window.steps


def test_figures_of_the_report(model: SolModel, runs: SizeRuns) -> None:
    report = size_report(runs, QUICK, Resampling("blocks", 500, 1))
    assert report.units == 3 * 5
    assert report.tokens == 3 * (SIZE // 2 - 1)
    found = {(result.schedule, result.budget): result for result in report.results}
    uniform = found["uniform", 0.7]
    assert uniform.nll.value == pytest.approx(nll_of(runs.budgeted["uniform", 0.7]))
    assert uniform.added.value == pytest.approx(uniform.nll.value - report.dense.nll.value)
    assert uniform.perplexity.value == pytest.approx(np.exp(uniform.nll.value))
    assert uniform.worst == pytest.approx(max(abs(cost_of([run]) - 0.7) for run in runs.budgeted["uniform", 0.7]))
    static = found["static", 0.8]
    affordable = [nll_of(each) for each in runs.fixed.values() if cost_of(each) <= 0.8]
    assert static.nll.value == pytest.approx(min(affordable))
    assert runs.fixed[static.chosen][0].actions == {static.chosen: SIZE // 2 - 1}
    assert {each.schedule for each in report.comparisons} == {"sol"}
    assert {each.rival for each in report.comparisons} == {"static", "mix", "hull", "uniform", "random", "entropy"}


def made_run(nll: float, cost: float, windows: int, *tags: str) -> list[WindowRun]:
    """Windows of ten tokens, the text's own losses different from window to window."""
    actions = dict.fromkeys(tags, 5)
    return [WindowRun([10], [10 * nll + index], [0.0], [9], [10 * cost], [10.0], actions) for index in range(windows)]


MIXED = ("k100-s100-q8", "k100-s100-q4")


def test_rivals_are_compared_at_the_same_cost() -> None:
    curve = {0.4: (0.41, 4.0), 0.6: (0.6, 3.0)}
    budgeted = {("uniform", budget): made_run(nll, cost, 4, *MIXED) for budget, (cost, nll) in curve.items()}
    budgeted |= {("sol", budget): made_run(nll - 0.3, budget, 4, *MIXED) for budget, (_, nll) in curve.items()}
    window = Window("", 0, tuple(range(12)), 1)
    runs = SizeRuns(12, [window] * 4, made_run(2.0, 1.0, 4), {}, budgeted, {})
    report = size_report(runs, Plan(budgets=(0.4, 0.6)), Resampling("windows", 200, 0))
    low, high = report.comparisons
    slope = -1 / 0.19
    theirs = 4.0 + slope * (0.4 - 0.41)  # uniform spent more: at sol's cost it would have lost more
    assert low.nll.value == pytest.approx(3.7 - theirs)
    assert low.avoided is not None
    assert low.avoided.value == pytest.approx((theirs - 3.7) / (theirs - 2.0))
    assert (low.cost, low.rival_cost, low.matched) == (pytest.approx(0.4), pytest.approx(0.41), True)
    assert high.nll.value == pytest.approx(-0.3)
    assert high.avoided is not None
    assert high.avoided.value == pytest.approx(0.3)
    # the windows' own losses differ by up to 0.3 nats, but all schedules meet the same ones
    assert high.nll.low == pytest.approx(-0.3)


def test_a_rival_of_one_action_stays_at_its_cost() -> None:
    budgeted = {("mix", 0.6): made_run(3.0, 0.5, 4, MIXED[1]), ("sol", 0.6): made_run(2.9, 0.6, 4, *MIXED)}
    window = Window("", 0, tuple(range(12)), 1)
    runs = SizeRuns(12, [window] * 4, made_run(2.0, 1.0, 4, MIXED[0]), {}, budgeted, {})
    (found,) = size_report(runs, Plan(budgets=(0.6,)), Resampling("windows", 200, 0)).comparisons
    assert not found.matched
    assert (found.cost, found.rival_cost) == (pytest.approx(0.6), pytest.approx(0.5))
    assert found.nll.value == pytest.approx(-0.1)


@pytest.mark.slow
def test_a_stopped_evaluation_goes_on(model: SolModel, text: str, tmp_path: Path, runs: SizeRuns) -> None:
    path = tmp_path / "state.jsonl"

    class Stopped(Exception):
        pass

    def stop(description: str, done: float, total: float) -> None:
        if done > 0.4 * total:
            raise Stopped

    settings = state_settings(model, QUICK.block)
    with pytest.raises(Stopped):
        list(measure(model, {"text": text}, QUICK, State(path, settings), stop))
    done = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(done) + '\n{"key": "half a li', encoding="utf-8")
    again = State(path, settings)
    (got,) = measure(model, {"text": text}, QUICK, again, lambda *_: None)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[: len(done)] == done
    assert len({json.loads(line)["key"] for line in lines[1:]}) == len(lines) - 1  # nothing was run twice
    assert got == runs


@pytest.mark.slow
def test_progress_is_one_whole_over_all_sizes(model: SolModel, text: str, tmp_path: Path) -> None:
    plan = replace(QUICK, sizes=(SIZE, 80), chunks=2)
    calls: list[tuple[str, float]] = []

    def report(description: str, done: float, total: float) -> None:
        calls.append((description, done / total))

    settings = state_settings(model, QUICK.block)
    list(measure(model, {"text": text}, plan, State(tmp_path / "state.jsonl", settings), report))
    shares = [share for _, share in calls]
    assert shares[0] == 0
    assert shares == sorted(shares)
    assert shares[-1] == 1
    names = [f"{size}: {what}" for size in plan.sizes for what in ("schedules", "best mix, best random")]
    assert list(dict.fromkeys(name for name, _ in calls)) == names
    # all results are there: every stage begins and ends
    calls.clear()
    list(measure(model, {"text": text}, plan, State(tmp_path / "state.jsonl", settings), report))
    assert [name for name, _ in calls] == [name for name in names for _ in range(2)]


def test_a_state_of_other_settings_is_refused(model: SolModel, tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    State(path, state_settings(model, QUICK.block)).put("one", {"a": 1})
    assert State(path, state_settings(model, QUICK.block)).get("one") == {"a": 1}
    with pytest.raises(UsageError, match="its block is 16, here it is 32"):
        State(path, state_settings(model, 32))
    for other in ("not a state\n", "[" * 100_000 + "\n"):
        path.write_text(other, encoding="utf-8")
        with pytest.raises(UsageError, match="another kind of file"):
            State(path, {})
    path.unlink()
    State(path, {"block": "x" * 500})
    with pytest.raises(UsageError, match=r"its block is x{199}…, here it is y"):
        State(path, {"block": "y"})


def test_costs_that_a_load_measures_are_no_setting_of_a_state(
    model: SolModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    before = state_settings(model)
    save_table(model.bundle, device=model.device, quick=True)
    assert stored_cost(model.bundle, model.device).name == "measured"
    assert state_settings(model) == before


def test_the_command_line(bundle: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, page = tmp_path / "held-out.txt", tmp_path / "page.html"
    file.write_text(text, encoding="utf-8")
    argv = ["eval", "-m", str(bundle), "-f", str(file), "-c", "64", "--chunks", "2", "--budget", "0.6,0.8"]
    argv += ["--random", "2", "--state", str(tmp_path / "state"), "--html", str(page)]
    assert main([*argv, "-o", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["format"], document["subject"]) == ("sol_rt.evaluation", "sol")
    (size,) = document["sizes"]
    assert {(each["schedule"], each["budget"]) for each in size["results"]} >= {("sol", 0.6), ("mix", 0.8)}
    assert {each["rival"] for each in size["comparisons"]} == {"static", "mix", "hull", "uniform", "random", "entropy"}
    drawn = page.read_text(encoding="utf-8")
    assert drawn.count("<svg") == 1
    assert all(f">{name}</text>" in drawn for name in ("sol", "hull", "uniform", "entropy", "random", "mix"))
    assert "http:" not in drawn
    assert "https:" not in drawn
    assert main(argv) == 0  # from the state
    out = capsys.readouterr().out
    assert "## Windows of 64" in out
    assert "| sol against" in out
    assert "budgets and costs are shares of dense, in bytes" in out
    heads = [line for line in out.splitlines() if line.startswith("| ") and " budget" in line]
    assert heads
    assert all("budget, in bytes" in head and "cost, in bytes" in head for head in heads)


@pytest.mark.slow
def test_the_command_draws_a_picture(bundle: Path, text: str, tmp_path: Path) -> None:
    file, sizes = tmp_path / "held-out.txt", []
    file.write_text(text, encoding="utf-8")
    argv = ["eval", "-m", str(bundle), "-f", str(file), "--chunks", "2", "--budget", "0.6,0.8", "--scored", "16"]
    argv += ["--schedules", "dense,static,uniform,sol", "--state", str(tmp_path / "state")]
    for lengths in ("64", "64,40"):
        assert main([*argv, "-c", lengths, "--png", str(tmp_path / "drawn.png")]) == 0
        picture = (tmp_path / "drawn.png").read_bytes()
        assert picture.startswith(b"\x89PNG\r\n")
        sizes.append(int.from_bytes(picture[20:24], "big"))
    assert sizes[1] > 1.5 * sizes[0]  # a chart for each length


@pytest.mark.parametrize("option", ["--png", "--html"])
def test_a_picture_needs_a_package(
    option: str,
    plain: Callable[[], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file, found = tmp_path / "text.txt", importlib.util.find_spec
    file.write_text("w5 " * 100, encoding="utf-8")
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: found(name, *more) if name != "vl_convert" else None
    )
    argv = ["eval", "-m", str(plain()), "-f", str(file), "-c", "64", option, str(tmp_path / "x")]
    fails(capsys, argv, 1, f"{option} needs vl_convert", "sol-rt[plot]")


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        ([], ("expected --file",)),
        (["-f", "no-such-file"], ("no-such-file",)),
        (["-c", "half"], ("--ctx-size", "whole numbers")),
        (["-c", "3"], ("--ctx-size: got 3, expected 4",)),
        (["-c", "100000"], ("--ctx-size 100000: the model's context is",)),
        (["-c", "64", "--budget", "1.0"], ("--budget: got 1.0, expected shares",)),
        (["-c", "64", "--schedules", "dense,best"], ("--schedules: got 'best', expected some of",)),
        (["-c", "64", "--schedules", "sol"], ("--schedules sol: this bundle has no policy",)),
        (["-c", "64", "--scored", "63"], ("--scored: got 63",)),
        (["-c", "200"], ("has 100 tokens, expected 200 for a window",)),
        (["-c", "64", "--resample", "days"], ("--resample: got 'days'",)),
        (["-c", "64", "--html", "no-such-folder/page.html"], ("--html no-such-folder/page.html: no folder",)),
        (["-c", "64", "--html", "."], ("--html .: got a folder",)),
        (["-c", "64", "--png", "no-such-folder/page.png"], ("--png no-such-folder/page.png: no folder",)),
        (["-c", "64", "--state", "."], ("--state .: got a folder",)),
    ],
)
def test_bad_input_is_one_line(
    argv: list[str],
    parts: tuple[str, ...],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
    plain: Callable[[], Path],
) -> None:
    file = tmp_path / "text.txt"
    file.write_text("w5 " * 100, encoding="utf-8")
    given = argv if not argv or "no-such-file" in argv else ["-f", str(file), *argv]
    code = 1 if "100000" in argv else 2
    fails(capsys, ["eval", "-m", str(plain()), *given], code, *parts)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A bundle without a policy."""
    folder = write_bundle(tmp_path_factory.mktemp("plain") / "tiny", bits=(8, 4))
    return lambda: folder


def test_sizes_by_default_are_within_the_context(model: SolModel) -> None:
    config = model.bundle.config
    assert _plan(model, (), (), (), None, None, 1, 1).sizes == (config.model.max_context,) == (256,)
    longer = replace(config, model=replace(config.model, max_context=4096))
    opened = SimpleNamespace(bundle=SimpleNamespace(config=longer))
    assert _plan(cast(SolModel, opened), (), (), (), None, None, 1, 1).sizes == SIZES[:-1]


def test_a_page_of_the_dense_model_alone(model: SolModel, text: str) -> None:
    plan, resampling = Plan(sizes=(SIZE,), schedules=("dense",), chunks=2), Resampling("windows", 100, 0)
    (runs,) = measure(model, {"text": text}, plan, State(None, {}), lambda *_: None)
    report = report_of(model, ["text"], plan, resampling, [size_report(runs, plan, resampling)])
    assert render_evaluation_html(report).count("<svg") == 1


def test_a_report_warns_of_few_windows(model: SolModel, runs: SizeRuns) -> None:
    resampling = Resampling("windows", 100, 0)
    report = report_of(model, ["text"], QUICK, resampling, [size_report(runs, QUICK, resampling)])
    assert any("Intervals from only 3 units" in line for line in table_lines(report))
    assert isinstance(report.sizes[0].dense.nll, Figure)
    assert DENSE.key == "dense"
