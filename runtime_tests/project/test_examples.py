"""The programs in examples/, run as a reader runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.places import ROOT
from helpers.tiny_bundle import write_bundle
from sol_rt import Action, Controller, PolicyInput, SolModel

EXAMPLES = ROOT / "examples"
PROMPT = "w1 w2 w3 w4 w5"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("examples") / "tiny")


def run(name: str, *arguments: str | Path, home: Path, code: int = 0) -> str:
    """Runs an example in an empty home and returns its stdout, or its stderr where it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SOL_RT_")}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *map(str, arguments)],
        env={**environment, "SOL_RT_HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stderr if code else done.stdout


def test_the_example_s_training_config_is_read() -> None:
    pytest.importorskip("torch", reason="training comes with the extra train")
    from sol_rt.train.config import read_config

    assert read_config(str(EXAMPLES / "train_policy.yaml")).warm_start.updates > 0


@pytest.mark.parametrize("name", ["generate.py", "own_schedule.py", "loop.py"])
def test_a_wrong_model_is_one_line(name: str, tmp_path: Path) -> None:
    said = run(name, "no-such-model", home=tmp_path, code=2)
    assert said.startswith("error: model 'no-such-model': ")
    assert len(said.splitlines()) == 1


def test_generate(bundle: Path, tmp_path: Path) -> None:
    printed = run("generate.py", bundle, PROMPT, "-n", "200", home=tmp_path)
    assert printed.count(f": {PROMPT}") == 3
    achieved = [float(share) for share in re.findall(r"achieved budget ([\d.]+), [\d.]+ tokens/s", printed)]
    assert achieved == pytest.approx([1.0, 0.8, 0.6], abs=0.03)


@pytest.mark.slow
def test_generate_with_real_weights(smollm2_bundle: Path, tmp_path: Path) -> None:
    printed = run("generate.py", smollm2_bundle, "The capital of France is", "-n", "16", home=tmp_path)
    assert printed.count("The capital of France is Paris") == 3  # at every budget


def test_own_schedule(bundle: Path, tmp_path: Path) -> None:
    printed = run("own_schedule.py", bundle, PROMPT, "--budget", "0.6", "-n", "200", home=tmp_path)
    found = re.search(r"schedule sentence-start, budget 0.6, achieved ([\d.]+)", printed)
    assert found, printed
    assert float(found[1]) <= 0.63
    assert sum(int(steps) for steps in re.findall(r"k\d+-s\d+-\w+: (\d+) steps", printed)) == 199


def test_loop(bundle: Path, tmp_path: Path) -> None:
    printed = run("loop.py", bundle, PROMPT, "-n", "40", home=tmp_path)
    assert printed.startswith(f"{PROMPT} w")
    assert len(printed.split()) > 10


@pytest.mark.slow
def test_train_policy(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="training comes with the extra train")
    pytest.importorskip("yaml", reason="training comes with the extra train")
    from helpers.train_fixtures import CONFIG, make_bundle, make_text

    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    folder, text = make_bundle(tmp_path / "tiny", losses=True), make_text(tmp_path / "text.txt")
    held_out = tmp_path / "held_out.txt"
    held_out.write_text(" ".join(f"w{number % 50 + 1}" for number in range(600)))
    printed = run("train_policy.py", folder, text, held_out, "--config", config, home=tmp_path / "home")
    assert re.findall(r"(\w+) at budget 0.6: \d+\.\d+ nats", printed) == ["hull", "sol"]


def test_a_schedule_is_asked_once_a_step_and_obeyed(bundle: Path) -> None:
    class Alternating:
        name = "alternating"

        def __init__(self, controller: Controller) -> None:
            self.actions = controller.dense, controller.actions[0]
            self.seen: list[PolicyInput] = []

        def choose(self, step: PolicyInput) -> Action:
            self.seen.append(step)
            return self.actions[step.step % 2]

    made: list[Alternating] = []

    def make(controller: Controller) -> Alternating:
        made.append(Alternating(controller))
        return made[-1]

    model = SolModel.from_pretrained(bundle, cost=None)
    steps = list(model.stream(PROMPT, schedule=make, budget=0.5, max_new_tokens=9, do_sample=False))
    (schedule,) = made
    assert [step.action for step in steps[1:]] == [schedule.actions[index % 2] for index in range(8)]
    assert [seen.token for seen in schedule.seen] == [step.token for step in steps[:-1]]
    assert model.generate(PROMPT, schedule=make, max_new_tokens=2).schedule == "alternating"
    assert model.score([1, 2, 3, 4], schedule=make, context=2).actions == {schedule.actions[0].tag: 1}
