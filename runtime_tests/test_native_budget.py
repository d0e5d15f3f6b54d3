"""The native core plans every step as the Python runtime does: the same actions, costs, scalars and errors."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from helpers.core_build import core_program
from helpers.made_configs import made_config
from sol_rt.budget.controller.budget import Controller
from sol_rt.budget.cost.bytes_model import BytesCost, CostModel, Line
from sol_rt.budget.cost.calibration_table import CalibratedCost, CalibrationTable
from sol_rt.budget.dial import Dial
from sol_rt.budget.hull import Hull
from sol_rt.budget.losses import ActionLosses
from sol_rt.budget.schedules import PolicyInput, default_schedule, is_constant, policy_budgets, schedule_actions
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED
from sol_rt.bundle.config import PolicySpec, SolConfig
from sol_rt.engine.distribution import Distribution, numpy_sums
from sol_rt.engine.hardware.tuning import Tuning
from sol_rt.errors import SolError, UsageError
from sol_rt.generate.model import SolModel
from sol_rt.generate.stream import Stream

IDENTITY = "b" * 64


@pytest.fixture(scope="module")
def program() -> Path:
    return core_program("plan")


# The same runs in both


@dataclass
class Step:
    """What a planner is told before a step, what the policy answers, and what the host sets before it."""

    context: int
    token: int
    logits: np.ndarray
    policy: np.ndarray
    budget: float | None = None
    rate: float | None = None


@dataclass
class Run:
    """A dial, or a replay's actions, schedule and budget; and the steps."""

    dial: dict[str, Any]
    steps: list[Step]
    replay: dict[str, Any] | None = None


@dataclass
class ScriptedPolicy:
    """Answers what the script says, and keeps what it was asked."""

    spec: PolicySpec
    logits: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    resets: int = 0
    asked: list[Any] = field(default_factory=list)

    def reset(self) -> None:
        self.resets += 1

    def decide(self, hidden: Any, token: int, scalars: Mapping[str, float], previous: int, step: int) -> np.ndarray:
        self.asked.append([[float(np.float32(scalars[name])) for name in self.spec.scalars], previous, step])
        return self.logits


def planned(config: SolConfig, cost: CostModel, run: Run) -> dict[str, Any]:
    """What the Python runtime makes of a run."""
    actions = tuple(dict.fromkeys(schedule_actions(config, "hull")))
    hull = Hull(actions, cost, ActionLosses(config).table) if config.losses_measured else None
    policy = None if config.policy is None else ScriptedPolicy(config.policy)
    model: Any = SimpleNamespace(
        bundle=SimpleNamespace(config=config), dominated={}, cost=cost, hull=hull, _policy=policy
    )
    try:
        dial = Dial(**run.dial)
        name = dial.schedule or default_schedule(config, cost, dial.budget, dial.axis_targets)
        controller = SolModel._controller(model, name, dial)
        schedule = SolModel._schedule(model, name, controller, dial.seed)
    except UsageError as error:
        return {"error": str(error)}
    steps, counts = [], dict[str, int]()
    stream: Any = SimpleNamespace(
        _decoder=SimpleNamespace(actions=counts, controller=controller),
        _prompt=range(run.steps[0].context),
        _progress=SimpleNamespace(tokens=range(len(run.steps) + 1)),
        _losses=ActionLosses(config),
        _turns=SimpleNamespace(between=nullcontext),
        _fixed=is_constant(name),
        _replay=None,
        _schedule=name,
    )
    stream._require_free = partial(Stream._require_free, stream)
    for index, step in enumerate(run.steps):
        try:
            if step.budget is not None:
                Stream.budget.fset(stream, step.budget)
            if step.rate is not None:
                Stream.tokens_per_second.fset(stream, step.rate)
            refused = {}
        except UsageError as error:
            refused = {"refused": {"code": 1, "text": str(error)}}
        if policy is not None:
            policy.logits = step.policy
        distribution = Distribution(step.logits, numpy_sums)
        hidden = np.zeros((1, 1), np.float32)
        action = schedule.choose(PolicyInput(step.context, step.token, hidden, distribution, index))
        charge = controller.record(action, step.context)
        counts[action.tag] = counts.get(action.tag, 0) + 1
        requested = None if name.startswith("fixed:") else controller.requested
        steps.append(
            {
                **refused,
                "action": action.tag,
                "cost": charge.cost,
                "relative": charge.relative,
                "achieved": controller.achieved,
                "requested": controller.achieved if requested is None else requested,
                "floored": bool(controller.floored),
                "fastest": controller.fastest_rate(step.context + 1),
            }
        )
    return {
        "schedule": name,
        "steps": steps,
        "loss": Stream._expected_loss(stream),
        "policy": [] if policy is None else policy.asked,
        "resets": 0 if policy is None else policy.resets,
    }


def natively(
    program: Path, config: SolConfig, runs: Sequence[Run], table: Path | None = None, mode: Sequence[str] = ()
) -> Any:
    """What the native core makes of the runs."""
    script = {
        "config": config.to_json_dict(),
        "variants": list(config.variants),
        "table": None if table is None else str(table),
        "identity": IDENTITY,
        "runs": [
            {
                "dial": {key: _json(value) for key, value in run.dial.items() if value is not None},
                "steps": [_step(index, step) for index, step in enumerate(run.steps)],
                **({} if run.replay is None else {"replay": run.replay}),
            }
            for run in runs
        ],
    }
    result = subprocess.run([program, *mode], input=json.dumps(script), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout)


def _json(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _step(index: int, step: Step) -> dict[str, Any]:
    sums = numpy_sums(step.logits)
    return {
        "context": step.context,
        "token": step.token,
        "step": index,
        "logits": step.logits.tolist(),
        "sums": list(sums),
        "policy": step.policy.tolist(),
        **({} if step.budget is None else {"set_budget": _json(step.budget)}),
        **({} if step.rate is None else {"set_tokens_per_second": _json(step.rate)}),
    }


def check_equal(native: dict[str, Any], python: dict[str, Any], run: Run) -> None:
    if "error" in python:
        assert native["error"] == {"code": 1, "text": python["error"]}
        return
    assert "error" not in native, native
    assert [step["action"] for step in native["steps"]] == [step["action"] for step in python["steps"]], run.dial
    assert native["schedule"] == python["schedule"]
    for got, expected in zip(native["steps"], python["steps"], strict=True):
        for key, value in expected.items():
            if isinstance(value, float):
                assert got[key] == pytest.approx(value, rel=1e-12), key
            else:
                assert got[key] == value, key
    assert native["loss"] == (None if python["loss"] is None else pytest.approx(python["loss"], rel=1e-12, abs=1e-15))
    assert native["resets"] == python["resets"]
    assert len(native["policy"]) == len(python["policy"])
    for (scalars, *places), (expected, *others) in zip(native["policy"], python["policy"], strict=True):
        assert places == others
        assert scalars == pytest.approx(expected, rel=1e-6, abs=1e-7)


def check_promise(result: dict[str, Any]) -> None:
    for step in result["steps"][63:]:
        assert step["floored"] or abs(step["achieved"] - step["requested"]) <= 0.02


# Random bundles and dials

densities = st.lists(st.integers(1, 99).map(lambda share: share / 100), max_size=3, unique=True)


@st.composite
def configs(draw: st.DrawFn) -> SolConfig:
    bits = sorted(draw(st.lists(st.sampled_from([2, 3, 4, MIXED, 6, 8]), min_size=1, max_size=3, unique=True)))[::-1]
    kv, channels = [1.0, *draw(densities)], [1.0, *draw(densities)]
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    dense_variant = Action(1.0, 1.0, bits[0]).variant
    gaps = {
        variant
        for c in channels
        for b in bits
        if (variant := Action(1.0, c, b).variant) != dense_variant
        and random.random() < draw(st.sampled_from([0.0, 0.4]))
    }
    actions = [Action(k, c, b) for k in kv for c in channels for b in bits]
    product = [action.tag for action in actions if action.variant not in gaps]
    dense = Action(1.0, 1.0, bits[0]).tag
    chosen = [tag for tag in product if tag == dense or random.random() < 0.7]
    random.shuffle(chosen)
    losses = {}
    if draw(st.booleans()):
        contexts = sorted(random.choice([16, 64, 256, 1024, 4096], random.integers(1, 4), replace=False).tolist())
        losses = {
            tag: {context: float(random.normal(0.2, 0.2)) for context in contexts}
            for tag in chosen
            if random.random() < 0.9
        }
    policy = draw(st.booleans())
    known = [tag for tag in chosen if random.random() < 0.8] or chosen
    known += [tag for tag in known if random.random() < 0.1]  # an action may come twice
    config = made_config(
        kv,
        channels,
        bits,
        weight_bytes=draw(st.sampled_from([2e6, 147e6, 4e9])),
        policy_bytes=int(random.integers(1, 3 * 10**6)) if policy else None,
        actions=chosen,
        policy_actions=known,
        losses=losses,
        gain_over_hull=draw(st.sampled_from([0.0, 0.01])),
        gain_budgets=draw(st.sampled_from([(0.0, 1.0), (0.3, 0.6)])),
    )
    kinds = tuple(random.permutation(["attention"] * 12 + ["conv"] * 18).tolist()) if draw(st.booleans()) else ()
    attending = [layer for layer in range(30) if not kinds or kinds[layer] == "attention"]
    layers = tuple(sorted(random.choice(attending, random.integers(0, 10), replace=False).tolist()))
    windows = tuple(random.choice([0, 1, 30, 512, 1023], 30).tolist()) if draw(st.booleans()) else ()
    return replace(
        config,
        kv=replace(
            config.kv,
            dense_layers=layers,
            dtype=draw(st.sampled_from(["float16", "int8"])),
            windows=windows,
            layers=kinds,
            conv_size=draw(st.integers(2, 32)) if kinds else 0,
        ),
        variants={key: variant for key, variant in config.variants.items() if key not in gaps},
    )


def table_of(config: SolConfig, random: np.random.Generator) -> CalibrationTable:
    """A device where savings are ragged: some actions cost more than dense."""
    lines: dict[str, dict[float, Line]] = {}
    for key, variant in config.variants.items():
        fixed = variant.weight_bytes / 1e7 * float(random.uniform(0.7, 1.3))
        measured = [kv for kv in (1.0, 0.8, 0.5, 0.1, 0.03) if random.random() < 0.7] or [0.5]
        lines[key] = {
            kv: Line(fixed + (float(random.uniform(0, 2)) if kv < 1 else 0.0), 1e-3, 4e-3 if kv < 1 else 0.0, 0.01)
            for kv in measured
        }
    dense = lines[config.dense.variant]
    tuning = Tuning(1, 49152, 3) if random.random() < 0.5 else None
    return CalibrationTable(IDENTITY, "a device", "now", 0.02 * next(iter(dense.values())).fixed, lines, tuning=tuning)


def steps_of(
    config: SolConfig, random: np.random.Generator, count: int, context: int, dense_ms: float | None = None
) -> list[Step]:
    """Steps in about half of which nothing changes and in the others the host moves the dial now and then.

    `dense_ms` is the cost of a dense step, if it is in milliseconds.
    """
    known = 0 if config.policy is None else len(config.policy.actions)
    sharpness = random.uniform(0.5, 8)
    scale = 10 ** random.uniform(-2, 2)
    changes = random.choice([0.0, 0.03, 0.3])
    steps = [
        Step(
            context + index,
            int(random.integers(12)),
            (random.standard_normal(12) * sharpness).astype(np.float32),
            (random.standard_normal(known) * scale).astype(np.float32),
        )
        for index in range(count)
    ]
    for step in steps:
        if random.random() < changes:
            if random.random() < 0.7:
                step.budget = float(random.choice([1.0, 0.0, random.uniform(0, 1), random.uniform(-0.2, 1.2)]))
            else:
                step.rate = 1000 / (dense_ms or 10.0) * float(random.uniform(-0.1, 3))
    return steps


AXES = ("kv_density", "channel_density", "bits")
SCHEDULES = ["sol", "hull", "uniform", "entropy", "random", "fixed", "dense"]


@st.composite
def dials(draw: st.DrawFn) -> dict[str, Any]:
    dial: dict[str, Any] = {"schedule": draw(st.sampled_from([*SCHEDULES, None]))}
    dial["seed"] = draw(st.integers(0, 2**64 - 1))
    kind = draw(st.sampled_from(["budget", "budget", "budget", "max_loss", "rate", "axes", "nothing"]))
    if kind == "budget":
        dial["budget"] = draw(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])))
    elif kind == "max_loss":
        dial["max_loss"] = draw(st.floats(0, 0.5))
    elif kind == "rate":
        dial["tokens_per_second"] = draw(st.floats(0.9, 3))
    elif kind == "axes":
        for axis in AXES:
            if draw(st.booleans()):
                dial[axis] = draw(st.one_of(st.floats(0, 1), st.floats(0.6, 1)))
    return dial


def resolved(dial: dict[str, Any], config: SolConfig, cost: CostModel) -> dict[str, Any]:
    """The dial with its rate, drawn in dense rates, in tokens per second, and its shares of an axis as settings."""
    dial = dict(dial)
    if dial["schedule"] == "fixed":
        dial["schedule"] = f"fixed:k037-{next(reversed(config.variants))}"
    if dial["schedule"] and is_constant(dial["schedule"]):
        return {key: dial[key] for key in ("schedule", "seed")}
    if "tokens_per_second" in dial:
        dial["tokens_per_second"] *= 1000 / cost.dense(500)
    if dial["schedule"] == "hull":  # holds no targets on the axes
        dial = {key: value for key, value in dial.items() if key not in AXES}
    if dial["schedule"] not in ("hull", "sol"):
        dial.pop("max_loss", None)
    for axis in AXES:
        if axis in dial:
            levels = [getattr(entry.action, axis) for entry in config.actions]
            dial[axis] = min(levels) + dial[axis] * (max(levels) - min(levels))
    return dial


def compare(
    program: Path,
    folder: Path,
    config: SolConfig,
    asked: Sequence[dict[str, Any]],
    calibrated: bool,
    context: int,
    seed: int,
) -> None:
    """Plans a run of each dial in both runtimes. The device of `calibrated` costs, and the steps, come from `seed`."""
    random = np.random.default_rng(seed)
    cost: CostModel = BytesCost(config)
    file = None
    if calibrated:
        file = folder / "table.json"
        table = table_of(config, random)
        file.write_text(table.to_json())
        cost = CalibratedCost(config, table)
    dense_ms = cost.dense(context) if calibrated else None
    runs = [Run(resolved(dial, config, cost), steps_of(config, random, 120, context, dense_ms)) for dial in asked]
    for run, native in zip(runs, natively(program, config, runs, file), strict=True):
        check_equal(native, planned(config, cost, run), run)


plans = {
    "config": configs(),
    "asked": st.lists(dials(), min_size=3, max_size=3),
    "calibrated": st.booleans(),
    "context": st.one_of(st.integers(0, 200), st.integers(0, 8000)),
    "seed": st.integers(0, 2**32),
}
unshrunk = {
    "deadline": None,
    "phases": (Phase.explicit, Phase.generate),  # a smaller plan says no more
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


@settings(max_examples=15, **unshrunk)
@given(**plans)
def test_same_plans(program: Path, tmp_path: Path, **plan: Any) -> None:
    compare(program, tmp_path, **plan)


@pytest.mark.slow
@settings(max_examples=100, **unshrunk)
@given(**plans)
def test_many_same_plans(program: Path, tmp_path: Path, **plan: Any) -> None:
    compare(program, tmp_path, **plan)


def test_the_promise_holds_from_64_steps_on(program: Path) -> None:
    """Where no step was below the floor, whatever the host sets between tokens."""
    config = made_config(policy_bytes=10**6)
    random = np.random.default_rng(0)
    runs = [
        Run({"schedule": name, "budget": float(random.uniform(0.6, 1)), "seed": 1}, steps_of(config, random, 400, 300))
        for name in ("sol", "uniform", "entropy", "random")
        for _ in range(4)
    ]
    for run in runs:
        for step in run.steps:
            step.rate = None
            step.budget = None if step.budget is None else float(np.clip(step.budget, 0.6, 1))
    for result in natively(program, config, runs):
        assert not result["steps"][-1]["floored"]
        check_promise(result)


@pytest.mark.parametrize(
    ("gain", "budgets", "read", "timed"),  # whether the range is kept where costs are bytes, and milliseconds
    [
        (0.0, (0.0, 1.0), False, False),
        (0.01, (0.0, 1.0), True, True),
        (1.0, (0.5, 0.7), True, True),
        # a run of the policy takes a 50th of a dense step: hull gains more by that, or less than the cheapest action is
        # left
        (0.01, (0.5, 0.7), True, False),
        (1.0, (0.35, 0.5), True, False),
    ],
)
@pytest.mark.parametrize("losses", [{}, {"k010-s050-q4": {64: 0.5}, "k100-s100-q4": {64: 0.01}}])
@pytest.mark.parametrize("calibrated", [False, True])
def test_same_default_schedule(
    program: Path,
    tmp_path: Path,
    losses: dict[str, dict[int, float]],
    gain: float,
    budgets: tuple[float, float],
    read: bool,
    timed: bool,
    calibrated: bool,
) -> None:
    config = made_config(policy_bytes=1, losses=losses, gain_over_hull=gain, gain_budgets=budgets)
    random = np.random.default_rng(0)
    cost: CostModel = BytesCost(config)
    file = None
    if calibrated:
        file = tmp_path / "table.json"
        file.write_text(table_of(config, random).to_json())
        cost = CalibratedCost(config, table_of(config, np.random.default_rng(0)))
    found = policy_budgets(config, cost)
    assert (found is not None) == (not losses or (timed if calibrated else read))
    ends = found or (0.35, 0.5)
    asked = [min(max(end + aside, 0.0), 1.0) for end in ends for aside in (-1e-6, 0.0, 1e-6)]
    dials: list[dict[str, Any]] = [
        {"budget": budget} for budget in (0.0, 0.34, 0.35, *np.arange(0.4, 1.0, 0.04).tolist(), 0.5, 1.0, *asked)
    ]
    dials += [{}, {"bits": 5.0}, *([{"max_loss": 0.01}] if losses else [])]
    runs = [Run(dial, steps_of(config, random, 2, 300)) for dial in dials]
    names = [default_schedule(config, cost, run.dial.get("budget"), Dial(**run.dial).axis_targets) for run in runs]
    assert [native["schedule"] for native in natively(program, config, runs, file)] == names
    if losses and found and budgets != (0.0, 1.0):
        assert {"sol", "hull"} <= set(names)


TINY = made_config(policy_bytes=10**6, losses={"k010-s050-q4": {64: 0.5}, "k100-s100-q4": {64: 0.01}})


@pytest.mark.parametrize(
    "dial",
    [
        {"budget": -0.1},
        {"budget": 1.0000001},
        {"budget": math.nan},
        {"budget": math.inf},
        {"budget": 1e22},
        {"max_loss": -1e-7},
        {"max_loss": 10.5},
        {"max_loss": math.nan},
        {"max_loss": 0.01, "budget": 0.5},
        {"max_loss": 0.01, "bits": 6.0},
        {"tokens_per_second": 5.0, "budget": 0.5, "kv_density": 0.5},
        {"tokens_per_second": 5.0},
        {"tokens_per_second": 0.0},
        {"tokens_per_second": math.inf},
        {"schedule": "dense", "budget": 0.5},
        {"schedule": "fixed:k100-s100-q4", "max_loss": 0.5},
        {"schedule": "fixed:k100-s100-q3"},
        {"schedule": "fixed:k100-s100"},
        {"schedule": "fixed:k000-s100-q4"},
        {"schedule": "fixed:k100-s100-q5"},
        {"schedule": "uniform", "max_loss": 0.1},
        {"schedule": "hull", "kv_density": 0.5},
        {"schedule": "greedy"},
        {"schedule": "it's"},
        {"kv_density": 1.2},
        {"channel_density": 1 / 3},
        {"bits": math.nan},
        {"bits": 2.5, "schedule": "sol"},
    ],
)
@pytest.mark.parametrize("bare", [False, True], ids=["measured", "bare"])
def test_same_errors(program: Path, dial: dict[str, Any], bare: bool) -> None:
    config = made_config() if bare else TINY
    run = Run(dial, steps_of(config, np.random.default_rng(0), 3, 10))
    python = planned(config, BytesCost(config), run)
    assert "error" in python
    check_equal(natively(program, config, [run])[0], python, run)


@pytest.mark.parametrize(
    "dial",
    [
        {"max_loss": 0.1},
        {"schedule": "hull", "max_loss": 0.1},
        {"schedule": "hull", "budget": 0.5},
    ],
)
def test_same_errors_without_losses(program: Path, dial: dict[str, Any]) -> None:
    config = made_config()
    run = Run(dial, steps_of(config, np.random.default_rng(0), 3, 10))
    python = planned(config, BytesCost(config), run)
    assert "no losses of this bundle's actions were measured" in python["error"]
    check_equal(natively(program, config, [run])[0], python, run)


def test_targets_that_no_mix_has(program: Path) -> None:
    config = made_config(actions=["k100-s100-q8", "k010-s050-q4"], policy_bytes=10**6, policy_actions=["k010-s050-q4"])
    run = Run({"schedule": "sol", "kv_density": 0.1, "bits": 8.0}, steps_of(config, np.random.default_rng(0), 3, 10))
    python = planned(config, BytesCost(config), run)
    assert "the nearest action is" in python["error"]
    check_equal(natively(program, config, [run])[0], python, run)


def test_replay(program: Path) -> None:
    """The trace's actions run, and its budget and policy are charged."""
    config, random = TINY, np.random.default_rng(0)
    actions = [Action.parse(random.choice(["k100-s100-q8", "k037-s050-q4", "k010-s100-q4"])) for _ in range(50)]
    cost = BytesCost(config)
    for schedule, budget in (("sol", 0.05), ("sol", 1.0), ("hull", 0.7), ("fixed:k037-s050-q4", 1.0)):
        controller = Controller(schedule_actions(config, "random"), cost, budget, policy_cost=schedule == "sol")
        run = Run({}, steps_of(config, random, len(actions), 90))
        for step in run.steps:
            step.budget, step.rate = 0.5, None
        run.replay = {"schedule": schedule, "budget": budget, "actions": [action.tag for action in actions]}
        native = natively(program, config, [run])[0]
        assert native["schedule"] == schedule
        assert "a replay runs the trace's actions" in native["steps"][0]["refused"]["text"]
        for step, action, got in zip(run.steps, actions, native["steps"], strict=True):
            charge = controller.record(action, step.context)
            assert (got["action"], got["cost"]) == (action.tag, pytest.approx(charge.cost, rel=1e-12))
            assert got["achieved"] == pytest.approx(controller.achieved, rel=1e-12)
            requested = controller.achieved if schedule.startswith("fixed:") else controller.requested
            assert got["requested"] == pytest.approx(requested, rel=1e-12)
            assert got["floored"] == controller.floored


def test_a_replay_names_an_action_that_the_bundle_lacks(program: Path) -> None:
    run = Run({}, [], {"schedule": "hull", "budget": 0.5, "actions": ["k100-s100-q8", "k100-s033-q8"]})
    told = natively(program, TINY, [run])[0]["error"]["text"]
    assert told == "replay: k100-s033-q8 is in the trace, its variant is not in the bundle"


# Calibration tables


def tables() -> dict[str, str]:
    """Damaged files by what is wrong with them."""
    good = json.loads(table_of(TINY, np.random.default_rng(0)).to_json())

    def changed(*path: str, to: Any) -> str:
        table = json.loads(json.dumps(good))
        *folders, last = path
        at = table
        for key in folders:
            at = at[key]
        at[last] = to
        return json.dumps(table)

    variant, density = next((key, next(iter(row))) for key, row in good["lines"].items())
    without = {key: row for key, row in good["lines"].items() if key != variant}
    line = good["lines"][variant][density]
    return {
        "empty": "",
        "text": "calibration",
        "list": "[]",
        "cut": json.dumps(good)[:-20],
        "deep": "[" * 10**5,
        "not UTF-8": "\udcff",
        "format": changed("format", to="sol_rt.bundle"),
        "version": changed("format_version", to=2),
        "deep format": changed("format", to="deep").replace('"deep"', "[" * 1000000 + "]" * 1000000),
        "no bundle": json.dumps({key: value for key, value in good.items() if key != "bundle"}),
        "another bundle": changed("bundle", to="c" * 64),
        "policy": changed("policy_ms", to=-1),
        "policy text": changed("policy_ms", to="abc"),
        "lines": changed("lines", to=[]),
        "row": changed("lines", variant, to=3),
        "empty row": changed("lines", variant, to={}),
        "no variant": changed("lines", to=without),
        "density": changed("lines", variant, to={"0.333": line}),
        "density of 0": changed("lines", variant, to={"0.0": line}),
        "density text": changed("lines", variant, to={"dense": line}),
        "number": changed("lines", variant, density, "fixed", to=2e9),
        "infinite": changed("lines", variant, density, "per_page", to=math.inf),
        "null": changed("lines", variant, density, "per_page", to=None),
        "no time": changed("lines", variant, density, to={**line, "fixed": 0, "per_token": 1e-7}),
        "another key": changed("lines", variant, density, to={**line, "per_byte": 0}),
        "tuning": changed("tuning", to=2),
        "tuning as a list": changed("tuning", to=[list(pair) for pair in asdict(Tuning()).items()]),
        "tuning without a key": changed("tuning", to={"cache_level": 2, "row_bytes_ahead": 0}),
        "tuning with another key": changed("tuning", to={**asdict(Tuning()), "pages": 1}),
        "cache level": changed("tuning", to={**asdict(Tuning()), "cache_level": 3}),
        "bytes ahead": changed("tuning", to={**asdict(Tuning()), "row_bytes_ahead": 2**40}),
        "half a byte ahead": changed("tuning", to={**asdict(Tuning()), "row_bytes_ahead": 0.5}),
        "members": changed("tuning", to={**asdict(Tuning()), "members": -1}),
        "members as text": changed("tuning", to={**asdict(Tuning()), "members": "2"}),
        "no key": changed("lines", variant, density, to={key: line[key] for key in list(line)[1:]}),
    }


def refuse(file: Path) -> None:
    """Reads a table as the Python runtime does."""
    table = CalibrationTable.from_json(file.read_text(encoding="utf-8"))
    if table.bundle != IDENTITY:
        raise SolError("calibration table: made before the bundle changed")
    CalibratedCost(TINY, table)


@pytest.mark.parametrize("damage", list(tables()))
def test_damaged_tables(program: Path, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "table.json"
    file.write_bytes(tables()[damage].encode("utf-8", "surrogateescape"))
    with pytest.raises((SolError, UnicodeDecodeError)):
        refuse(file)
    told = natively(program, TINY, [], file)
    assert told["code"] == 2
    assert told["text"].startswith(f"{file}: calibration table: ")
    assert told["text"].endswith("; run `sol-rt calibrate` again")


def test_a_table_that_is_not_there(program: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        told = natively(program, TINY, [], path)
        assert (told["code"], told["text"].startswith(f"{path}: got ")) == (2, True)


def test_the_lower_of_two_measured_densities_at_one_distance(program: Path, tmp_path: Path) -> None:
    config = made_config(kv_densities=(1.0, 0.3), channel_densities=(1.0,), bits=(8,))
    line = Line(5.0, 1e-3, 0.0)
    rows = {1.0: line, 0.4: replace(line, fixed=4.0), 0.2: replace(line, fixed=3.0)}
    table = CalibrationTable(IDENTITY, "a device", "now", 0.0, {"s100-q8": rows})
    file = tmp_path / "table.json"
    file.write_text(table.to_json())
    run = Run({"schedule": "fixed:k030-s100-q8"}, steps_of(config, np.random.default_rng(0), 3, 400))
    check_equal(natively(program, config, [run], file)[0], planned(config, CalibratedCost(config, table), run), run)


@pytest.mark.parametrize("tuning", [None, Tuning(1, 49152, 3), Tuning(copies=True)])
def test_a_table_is_written_as_python_writes_it(program: Path, tmp_path: Path, tuning: Tuning | None) -> None:
    file = tmp_path / "table.json"
    table = replace(table_of(TINY, np.random.default_rng(1)), tuning=tuning)
    file.write_text(table.to_json())
    rewritten = subprocess.run([program, "table", file], capture_output=True, text=True, check=True).stdout
    assert CalibrationTable.from_json(rewritten) == table
