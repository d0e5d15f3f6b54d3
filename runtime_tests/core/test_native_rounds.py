"""Rounds: the next tokens of several engines in one run, each with the bits that it has alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.core_steps import Core
from helpers.random_decoder import medium_decoder, screenable
from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import Screen

LENGTHS = (1, 3, 4, 70, 9, 33, 130, 17)
"""Tokens of each engine's prompt."""
BUNDLES: dict[str, dict[str, Any]] = {
    "float16": {},
    "int8": {"kv": "int8", "dense_layers": (0,)},
    "three bits": {"bits": (8, 4, 3)},
    "a screened head": {
        "decoder": screenable("llama"),
        "bits": (8, 4),
        "lm_head_bits": {8: 8, 4: 8},
        "screens": {4: Screen(20, 0.5, 3)},
    },
    "long heads": {"decoder": replace(medium_decoder(), num_layers=2, rope_of_layer=(0, 0)), "bits": (8, 4)},
    "windows": {"family": "gemma2"},
    "norm after rotation": {"family": "hunyuan_v1_dense"},
    "states": {"family": "lfm2"},
}


def _forward(core: Core, engine: int, action: Action, token: int) -> np.ndarray:
    core.do(f"use {engine}")
    return core.forward(action, [token])


def _together(core: Core, asked: list[tuple[int, Action, int]], shares: bool) -> list[np.ndarray]:
    runs = core.do("together " + " ".join(f"{engine} {action.tag} {token}" for engine, action, token in asked))
    assert runs == (len({action.variant for _, action, _ in asked}) if shares else len(asked))
    return np.split(core.floats(), len(asked))


@pytest.mark.parametrize("name", BUNDLES)
@pytest.mark.parametrize("native", [True, False])
def test_a_round_gives_each_engine_what_it_gets_alone(name: str, native: bool, tmp_path: Path) -> None:
    """Engines of every length, in all variants and densities; some leave, rewind and come back between rounds."""
    folder, count = write_bundle(tmp_path / "tiny", **BUNDLES[name]), len(LENGTHS)
    variants = [(channels, bits) for channels in (1.0, 0.5) for bits in BUNDLES[name].get("bits", (8, 6, 4))]
    random = np.random.default_rng(0)
    with Core(tmp_path / "results", native=native) as core:
        core.do(f"load {folder}")
        for engine, length in enumerate(LENGTHS * 2):  # the second half runs alone
            assert core.do("engine") == engine
            core.do(f"forward k100-s100-q8 {' '.join(str(3 + i % 50) for i in range(length))}")
        core.floats()
        for step in range(24):
            asked = []
            for engine in range(count):
                variant = variants[step % len(variants) if step % 2 else random.integers(len(variants))]
                action = Action(random.choice((1.0, 0.3)), *variant)
                if random.random() < 0.8:
                    asked.append((engine, action, int(random.integers(3, 80))))
            rows = _together(core, asked, native and name != "states")
            for (engine, action, token), row in zip(asked, rows, strict=True):
                alone = _forward(core, engine + count, action, token)
                np.testing.assert_array_equal(row, alone, f"{step} {action.tag}")
            if step % 5 == 4:
                back = asked[0][0]
                length = max(core.do(f"use {back}") - 3, 1)
                for engine in (back, back + count):
                    core.do(f"use {engine}")
                    core.do(f"truncate {length}")
