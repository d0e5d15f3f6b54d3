"""Opens a bundle for measurements, in the native core."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME, FileEntry, SolConfig
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.engine import Engine

_NO_HASH = "0" * 64


def open_model(folder: Path, prefill: str | None = None) -> SolModel:
    """Opens the bundle in `folder` on the CPU; its weights need no hash yet. `prefill` is as in `SolModel`.

    Raises BundleError, ProviderError.
    """
    bundle = Bundle.open(folder, verify=False)
    return SolModel.from_pretrained(bundle, provider="cpu", prefill=prefill, measure_costs=False)


def open_runs(folder: Path) -> Engine:
    """Opens the bundle in `folder` as `open_model` does, for runs of given tokens."""
    return Engine(Bundle.open(folder, verify=False), provider="cpu")


def open_under(folder: Path, config: SolConfig) -> Engine:
    """Opens the bundle in `folder` under a config that is to be tried. It replaces sol_config.json, without hashes.

    Raises BundleError, ProviderError.
    """
    files = {path.name: FileEntry(path.stat().st_size, _NO_HASH) for path in folder.iterdir()}
    files.pop(CONFIG_NAME, None)
    text = json.dumps(replace(config, files=files).to_json_dict(), ensure_ascii=False)
    (folder / CONFIG_NAME).write_text(text, encoding="utf-8")
    return open_runs(folder)
