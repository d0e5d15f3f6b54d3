"""`sol-rt train` as a user runs it: from text to a bundle with a policy, killed, in two processes, on bad input."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("yaml")

from safetensors.numpy import load_file  # noqa: E402

from helpers.train_fixtures import CONFIG, make_bundle, make_text  # noqa: E402
from sol_rt.budget.cost.cost_table import CostTable, MeasuredCost, keep  # noqa: E402
from sol_rt.budget.cost.model import Line  # noqa: E402
from sol_rt.bundle.bundle import Bundle  # noqa: E402
from sol_rt.cli.app import run  # noqa: E402
from sol_rt.errors import BundleError  # noqa: E402
from sol_rt.export.policy_file import read_policy  # noqa: E402
from sol_rt.progress import Progress  # noqa: E402
from sol_rt.train.config import read_config  # noqa: E402
from sol_rt.train.run.checkpoints import load_checkpoint, save_checkpoint  # noqa: E402


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Training sets torch's threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, a text and a config."""
    folder = tmp_path_factory.mktemp("train")
    make_bundle(folder / "tiny")
    make_text(folder / "text.txt")
    (folder / "config.yaml").write_text(CONFIG)
    return folder


def arguments(place: Path, output: Path, *more: str, config: Path | None = None) -> list[str]:
    given = ["train", "-m", str(place / "tiny"), "--data", str(place / "text.txt")]
    return [*given, "--config", str(config or place / "config.yaml"), "-o", str(output), *more]


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def test_progress_is_one_whole(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, float]] = []

    @contextmanager
    def noted() -> Iterator[Progress]:
        yield lambda description, done, total: calls.append((description, done / total))

    monkeypatch.setattr("sol_rt.cli.make.train.progress", noted)
    assert run(arguments(place, tmp_path / "out")) == 0
    names = list(dict.fromkeys(name for name, _ in calls))
    stages = ("measuring every action", "stage 1: warm start", "stage 2: GRPO")
    assert [name for name in names if name != "training"] == ["reading text", *(f"training: {each}" for each in stages)]
    shares = [share for _, share in calls]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    # every stage moves the bar
    assert all(len({share for name, share in calls if name.endswith(stage)}) > 2 for stage in stages)


def program(argv: list[str], *launch: str) -> None:
    """Runs the command in a process of its own, or as many as `launch` starts, each with one thread."""
    command = [sys.executable, *launch, "-m", "sol_rt", *argv, "-t", "1"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def trained(place: Path) -> Path:
    """A finished training."""
    program(arguments(place, place / "out"))
    return place / "out"


@pytest.mark.slow
def test_both_stages_run_and_are_measured(trained: Path) -> None:
    rows = records(trained)
    stages = [row["stage"] for row in rows]
    assert stages.count("warm start") == 12
    assert stages.count("grpo") == 4
    assert {"warm start replayed", "grpo before", "grpo after"} <= set(stages)
    last = [row for row in rows if row["stage"] == "grpo after"][-1]
    assert {"sol_loss", "uniform_loss", "static_loss", "sol_cost", "gain_over_static_stderr"} <= last.keys()
    assert last["sol_cost"] == pytest.approx(0.6, abs=0.1)
    assert read_config(trained / "config.yaml") == read_config(trained.parent / "config.yaml")
    assert any((trained / "tensorboard").iterdir()) or not _has("tensorboard")
    policy = read_policy(trained / "policy.safetensors")
    assert (policy.model, policy.shape.horizon, len(policy.actions)) == ("tiny", 4, 8)


def _has(package: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(package) is not None


def test_a_policy_tells_of_the_updates_of_what_was_kept(trained: Path) -> None:
    measured = [each for each in records(trained) if each["stage"] in ("grpo before", "grpo after")]
    best = max(measured, key=lambda each: each["gain_over_uniform"] + each["gain_over_static"])["update"]
    said = f"{best} GRPO updates" if best else "no GRPO"
    assert read_policy(trained / "policy.safetensors").description == f"warm start on 10 windows, {said}, seed 0"


def test_a_bundle_is_given_the_policy(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_bundle(tmp_path / "given", losses=True)
    before = Bundle.open(folder).config
    for _ in range(2):  # the second in place of the first
        assert run(["export", "-m", str(folder), "--policy", str(trained / "policy.safetensors")]) == 0
    config = Bundle.open(folder).config
    assert config.policy is not None
    assert (config.variants, config.actions, config.tensors) == (before.variants, before.actions, before.tensors)
    assert sorted(entry.name for entry in folder.glob("*policy*")) == [config.policy.file]
    capsys.readouterr()
    generate = ["generate", "-m", str(folder), "-p", "w1 w2 w3 w4", "-n", "20", "--json", "--schedule", "sol"]
    assert run([*generate, "--budget", "0.7"]) == 0
    assert json.loads(capsys.readouterr().out)["schedule"] == "sol"


def test_a_cost_table_that_no_longer_holds_is_said(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOL_RT_HOME", str(tmp_path / "home"))
    folder = make_bundle(tmp_path / "given")
    give = ["export", "-m", str(folder), "--policy", str(trained / "policy.safetensors")]
    bundle = Bundle.open(folder)
    lines = {name: {kv_density: Line(1.0, 0.0, 0.0) for kv_density in (0.3, 1.0)} for name in bundle.config.variants}
    table = CostTable(bundle.identity, "a device", "2026-01-01", 0.0, lines)
    keep(MeasuredCost(bundle.config, table))
    said = []
    for _ in range(2):  # the second time there is none that held
        assert run(give) == 0
        said.append("run sol-rt profile again" in capsys.readouterr().err)
    assert said == [True, False]


@pytest.mark.slow
def test_a_policy_without_a_layer_is_trained_and_runs(
    trained: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "linear.yaml"
    config.write_text(CONFIG.replace("width: 16", "width: 0, use_embedding: false"))
    program(arguments(place, tmp_path / "out", "--counterfactuals", str(trained / "counterfactuals"), config=config))
    path = tmp_path / "out" / "policy.safetensors"
    policy = read_policy(path)
    assert set(policy.parameters) == {f"direct.{n}.{part}" for n in (0, 2) for part in ("weight", "bias")}
    assert policy.parameters["direct.0.weight"].shape[1] == policy.shape.hidden_size + len(policy.scalars)
    folder = make_bundle(tmp_path / "bundle", losses=True)
    assert run(["export", "-m", str(folder), "--policy", str(path)]) == 0
    capsys.readouterr()
    asked = ["generate", "-m", str(folder), "-p", "ab", "-n", "16", "--budget", "0.6", "--schedule", "sol", "--json"]
    assert run(asked) == 0
    assert json.loads(capsys.readouterr().out)["schedule"] == "sol"


@pytest.mark.slow
def test_a_killed_training_goes_on_bit_by_bit(place: Path, tmp_path: Path) -> None:
    config = place / "long.yaml"
    config.write_text(CONFIG.replace("updates: 12", "updates: 60").replace("updates: 4", "updates: 20"))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    program(arguments(place, whole, config=config))
    for stage, count, more in (("warm start", 5, ()), ("grpo", 3, ("--resume",))):
        argv = arguments(place, killed, *more, "-t", "1", config=config)
        process = subprocess.Popen([sys.executable, "-m", "sol_rt", *argv], stderr=subprocess.PIPE)
        _wait_for(killed, stage, count, process)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    program(arguments(place, killed, "--resume", config=config))
    first, second = (load_file(folder / "policy.safetensors") for folder in (whole, killed))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    drop = {"seconds", "sampling_seconds"}
    kept = [
        [{name: value for name, value in row.items() if name not in drop} for row in records(folder)]
        for folder in (whole, killed)
    ]
    assert kept[0] == kept[1]


def _wait_for(folder: Path, stage: str, count: int, process: subprocess.Popen[bytes]) -> None:
    log = folder / "train.jsonl"
    while not log.exists() or log.read_text().count(f'"stage": "{stage}",') < count:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


@pytest.mark.slow
def test_two_processes_train_as_one(place: Path, trained: Path, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    program(arguments(place, tmp_path / "two"), *launch)
    one, two = (load_file(folder / "policy.safetensors") for folder in (trained, tmp_path / "two"))
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=2e-4, err_msg=name)
    losses = [
        [row["loss"] for row in records(folder) if row["stage"] == "warm start"]
        for folder in (trained, tmp_path / "two")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.slow
def test_a_training_goes_on_with_the_windows_that_it_began_with(place: Path, trained: Path, tmp_path: Path) -> None:
    """Measuring ended by time after 8 windows; more time later adds no windows."""
    folder = shutil.copytree(trained, tmp_path / "out")
    save_checkpoint(folder, {**load_checkpoint(folder), "stage": "grpo", "measured": 8})
    left = [folder / "counterfactuals" / f"train-{number:06d}.safetensors" for number in (8, 9)]
    for path in left:
        path.unlink()
    program(arguments(place, folder, "--resume"))
    assert not any(path.exists() for path in left)
    assert "warm start on 8 windows" in read_policy(folder / "policy.safetensors").description


def _fails(capsys: pytest.CaptureFixture[str], argv: list[str], *said: str) -> None:
    capsys.readouterr()
    assert run(argv) != 0
    (line,) = [row for row in capsys.readouterr().err.splitlines() if row.startswith("sol-rt: error")]
    for part in said:
        assert part in line


def test_a_loss_that_is_no_number_stops_the_training(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "wild.yaml"
    config.write_text(CONFIG.replace("patience: 100", "patience: 100, learning_rate: 1e30"))
    _fails(
        capsys,
        arguments(place, tmp_path / "out", config=config),
        "warm start, update",
        "checkpoint.pt",
        "learning_rate",
    )
    state = load_checkpoint(tmp_path / "out")
    assert all(torch.isfinite(value).all() for value in state["network"].values())
    assert not (tmp_path / "out" / "policy.safetensors").exists()


def test_wrong_calls_of_train_are_refused(
    place: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _fails(capsys, arguments(place, trained), "has a training already", "--resume")
    _fails(capsys, arguments(place, tmp_path / "new", "--resume"), "no such file", "--resume")
    other = tmp_path / "other.yaml"
    other.write_text(CONFIG.replace("updates: 4", "updates: 5"))
    _fails(capsys, arguments(place, trained, "--resume", config=other), "updates: 4", "updates: 5")
    state = load_checkpoint(trained)
    longer = tmp_path / "longer"
    longer.mkdir()
    save_checkpoint(longer, {**state, "config": state["config"] + "more: 1\n"})
    _fails(capsys, arguments(place, longer, "--resume"), "trained with more: 1, got nothing more")
    short = make_text(tmp_path / "short.txt", 50)
    argv = ["train", "-m", str(place / "tiny"), "--config", str(place / "config.yaml"), "-o", str(tmp_path / "x")]
    _fails(capsys, [*argv, "--data", str(short)], "--data: got 51 tokens, 1 windows of 40, 60, expected at least two")
    _fails(capsys, [*argv, "--data", str(tmp_path / "nothing.txt")], "nothing.txt: No such file")
    (tmp_path / "empty").mkdir()
    _fails(capsys, [*argv, "--data", str(tmp_path / "empty")], "no .txt, .md, .jsonl file inside")
    (tmp_path / "wrong.jsonl").write_text('{"text": "w1"}\n[1]\n')
    _fails(capsys, [*argv, "--data", str(tmp_path / "wrong.jsonl")], "line 2: got no JSON object")
    (tmp_path / "wrong.jsonl").write_text("[" * 100_000)
    _fails(capsys, [*argv, "--data", str(tmp_path / "wrong.jsonl")], "line 1: got no JSON object")
    shared = ["--counterfactuals", str(trained / "counterfactuals")]
    _fails(capsys, [*argv, "--data", str(make_text(tmp_path / "long.txt", 2900)), *shared], "another text")


def test_counterfactuals_along_a_run(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counterfactuals are those of that run alone, and need a bundle whose losses are known."""
    config, other = tmp_path / "along.yaml", tmp_path / "other.yaml"
    config.write_text(CONFIG.replace("positions: 16, updates: 12", "positions: 16, along: [0.6, 0.8], updates: 2"))
    _fails(capsys, arguments(place, tmp_path / "no", config=config), "warm_start.along: tiny has no measured losses")
    make_bundle(tmp_path / "tiny", losses=True)
    argv = ["train", "-m", str(tmp_path / "tiny"), "--data", str(place / "text.txt"), "--config", str(config)]
    store = tmp_path / "store"
    assert run([*argv, "-o", str(tmp_path / "one"), "--counterfactuals", str(store)]) == 0
    about = json.loads((store / "about.json").read_text())
    assert about["along"]["budgets"] == [0.6, 0.8]
    dense = about["actions"].index("k100-s100-q8")
    found = [load_file(path) for path in sorted(store.glob("*.safetensors"))]
    assert max(float(window["kl"][0, dense]) for window in found) < 1e-3  # after the prompt, which was dense
    assert max(float(window["kl"][1:, dense].max()) for window in found) > 1e-3  # after cheap steps
    other.write_text(config.read_text() + "seed: 7\n")
    argv[-1] = str(other)
    _fails(capsys, [*argv, "-o", str(tmp_path / "two"), "--counterfactuals", str(store)], "another along")


def test_a_damaged_checkpoint_is_refused(
    trained: Path, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((trained / "checkpoint.pt").read_bytes()[:1000])
    _fails(capsys, arguments(place, tmp_path, "--resume"), "checkpoint.pt: not readable", "-o")


@pytest.mark.slow
def test_the_reference_model_gives_the_same_counterfactuals(trained: Path, place: Path, tmp_path: Path) -> None:
    config = tmp_path / "short.yaml"
    config.write_text(CONFIG.replace("updates: 4", "updates: 1"))
    program(arguments(place, tmp_path / "out", "--rollouts", "reference", config=config))
    for path in sorted((trained / "counterfactuals").glob("*.safetensors")):
        one, two = load_file(path), load_file(tmp_path / "out" / "counterfactuals" / path.name)
        assert np.array_equal(one["token"], two["token"])
        # the same but where float32's last bit moves a code, a channel or a page; another action's is 0.1 off
        assert np.median(np.abs(one["loss"] - two["loss"])) < 1e-3


@pytest.mark.slow
def test_counterfactuals_are_shared(trained: Path, place: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    for entry in (trained / "counterfactuals").iterdir():
        (shared / entry.name).write_bytes(entry.read_bytes())
    times = {entry.name: entry.stat().st_mtime_ns for entry in shared.iterdir()}
    config = tmp_path / "other.yaml"
    config.write_text(CONFIG.replace("action_size: 8", "action_size: 8, use_hidden: false, scalars: [log_context]"))
    argv = arguments(place, tmp_path / "out", "--counterfactuals", str(shared), "--seed", "3", config=config)
    program(argv)
    assert times == {entry.name: entry.stat().st_mtime_ns for entry in shared.iterdir()}
    policy = read_policy(tmp_path / "out" / "policy.safetensors")
    assert policy.parameters["input.weight"].shape[1] == policy.shape.hidden_size + 8 + 8  # embedding, scalars, action
    assert policy.scalars == ("log_context",)


def test_policies_for_something_else_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    from sol_rt.bundle.actions import Action
    from sol_rt.export.graphs.policy_graph import PolicyShape, random_policy_parameters
    from sol_rt.export.policy_file import write_policy

    folder, policy = make_bundle(tmp_path / "whole"), read_policy(trained / "policy.safetensors")
    before = (folder / "sol_config.json").read_bytes()

    def refused(other: object, *said: str) -> None:
        write_policy(tmp_path / "other.safetensors", other)  # type: ignore[arg-type]
        _fails(capsys, ["export", "-m", str(folder), "--policy", str(tmp_path / "other.safetensors")], *said)
        assert (folder / "sol_config.json").read_bytes() == before
        assert not list(folder.glob("*policy*"))

    refused(replace(policy, model="large"), "trained on large, the bundle has tiny")
    actions = (*policy.actions[:-1], Action(0.3, 0.4, 4))
    refused(
        replace(policy, actions=actions),
        "k030-s040-q4, which the bundle can't run",
        "has k030-s050-q4, which the policy",
    )
    twice = (*policy.actions[:-1], policy.actions[0])
    refused(replace(policy, actions=twice), "8 tags, 7 of them distinct")
    shape = PolicyShape(96, len(policy.scalars), len(policy.actions), horizon=4)
    larger = replace(policy, shape=shape, parameters=random_policy_parameters(0, shape))
    refused(larger, "made for hidden size 96, the bundle's model has 64")
    _fails(capsys, ["export", "-m", str(folder), "--policy", str(tmp_path / "none")], "got no policy")
    _fails(
        capsys,
        ["export", "-m", str(folder), "--policy", str(trained / "policy.safetensors"), "-o", str(tmp_path / "y")],
        "leave out -o",
    )
    write_policy(tmp_path / "fits.safetensors", policy)
    (folder / "weights.bin").write_bytes(b"")
    with pytest.raises(BundleError):
        Bundle.open(folder)
    _fails(capsys, ["export", "-m", str(folder), "--policy", str(tmp_path / "fits.safetensors")], "weights.bin")
