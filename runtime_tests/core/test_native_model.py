"""Runtimes and models through the core's C interface: right calls, wrong calls, and hosts of other versions."""

from __future__ import annotations

import json
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
    table = tmp_path / "costs.json"
    command = [core_build("model_calls") / "model_calls", ort_library(), folder, table, GOLDEN]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "failed" not in done.stdout, done.stdout
    assert int(done.stdout.split()[0]) > 60

    read = CostTable.from_json(table.read_text(encoding="utf-8"))  # Python reads what the core measured
    assert read.bundle == Bundle.open(folder).identity
    assert read.quick
    assert all(line.fixed > 0 for lines in read.lines.values() for line in lines.values())
    assert read.policy_ms > 0
