"""Runtimes and models through the core's C interface: right calls, wrong calls, and hosts of other versions."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from helpers.core_build import core_build, ort_library
from helpers.places import TINY
from helpers.tiny_bundle import seal, write_bundle
from sol_rt.budget.cost.cost_table import CostTable
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.config_reader import read_config

GOLDEN = TINY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a tokenizer that the core does not read."""
    made = write_bundle(tmp_path_factory.mktemp("native") / "tiny", policy=True, losses=True)
    file = made / "tokenizer.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    document["model"] = {"type": "WordLevel", "vocab": document["model"]["vocab"], "unk_token": "<unk>"}
    file.write_text(json.dumps(document), encoding="utf-8")
    seal(made, read_config(made / CONFIG_NAME))
    return made


@pytest.mark.slow
def test_calls(folder: Path, tmp_path: Path) -> None:
    table, kept = tmp_path / "costs.json", tmp_path / "made" / "costs"
    command = [core_build("model_calls") / "model_calls", ort_library(), folder, table, GOLDEN, kept]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "failed" not in done.stdout, done.stdout
    assert int(done.stdout.split()[0]) > 60

    assert len(list(kept.iterdir())) == 1  # no temporary file is left
    read = CostTable.from_json(table.read_text(encoding="utf-8"))  # Python reads what the core measured
    assert read.bundle == Bundle.open(folder).identity
    assert read.quick
    assert all(line.fixed > 0 for lines in read.lines.values() for line in lines.values())
    assert read.policy_ms > 0


@pytest.mark.slow
def test_the_environment_names_costs_of_hosts_that_name_none(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "cases").touch()
    command = [core_build("golden") / "golden", ort_library(), folder, tmp_path / "cases"]
    for costs, words in (("bytes", ""), ("half", "SOL_RT_COSTS: got 'half', expected bytes, profiled or measured")):
        environment = {**os.environ, "SOL_RT_COSTS": costs, "SOL_RT_HOME": str(tmp_path / "home")}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert words in done.stderr
        assert (words == "") == ("SOL_RT_COSTS" not in done.stderr)
    assert not (tmp_path / "home").exists()
    environment = {**os.environ, "SOL_RT_COSTS": "", "SOL_RT_HOME": str(tmp_path / "home")}
    subprocess.run(command, capture_output=True, check=False, env=environment)
    assert len(list((tmp_path / "home" / "costs").iterdir())) == 1
