"""Layers with a window in the native core: what it keeps, in memory and in a session's file."""

from __future__ import annotations

import hashlib
import re
import struct
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx", reason="making a bundle comes with the extra export")

from helpers.core_steps import Core
from helpers.random_decoder import describe, hf_config
from helpers.tiny_bundle import write_bundle
from sol_rt.bundle.actions import Action
from sol_rt.export.sources.decoder import from_hf_config
from sol_rt.ops import library_path

BUNDLE = 2  # SOL_ERROR_BUNDLE
DENSE, CHEAP = Action(1.0, 1.0, 8), Action(0.3, 0.5, 4)
TOKENS = np.random.default_rng(3).integers(3, 90, 4000).tolist()
FIRSTS = 104 + 4 * 1500  # where a session's file says from which token on each layer is held
WINDOW, HELD = 24, 768  # tokens from which on 24 + 512 of 1500 tokens are kept

pytestmark = pytest.mark.skipif(library_path() is None, reason="the native operators are not built")


@pytest.fixture(scope="module", params=["float16", "int8"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a layer that has a window, and one that has none."""
    decoder = replace(describe("gemma2"), max_context=4096)
    return write_bundle(tmp_path_factory.mktemp(request.param) / "tiny", decoder=decoder, kv=request.param)


def test_a_saved_session_holds_what_the_cache_holds(folder: Path, tmp_path: Path) -> None:
    session = tmp_path / "session"
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        core.do("engine")
        core.forward(DENSE, TOKENS[:100])
        early = [core.forward(CHEAP, [token]) for token in (5, 6, 7)]
        core.do("truncate 0")
        core.forward(DENSE, TOKENS[:1500])
        core.do(f"save {session}")
        late = [core.forward(CHEAP, [token]) for token in (5, 6, 7)]
        core.do("truncate 100")
        core.do(f"save {tmp_path / 'rewound'}")  # before the tokens run again
        for file, length, expected in ((session, 1500, late), (tmp_path / "rewound", 100, early)):
            core.do("engine")
            core.forward(DENSE, TOKENS[:1100])  # what it held before is nothing to what it holds then
            assert core.do(f"restore {file}") == length
            got = [core.forward(CHEAP, [token]) for token in (5, 6, 7)]
            assert all(map(np.array_equal, got, expected)), length
        core.do("use 1")
        core.do("truncate 100")
        got = [core.forward(CHEAP, [token]) for token in (5, 6, 7)]
        assert all(map(np.array_equal, got, early))
    content = session.read_bytes()
    assert struct.unpack_from("<2q", content, FIRSTS) == (HELD, 0)
    with Core(tmp_path / "results", native=False) as core:  # function bodies hold no more than they were given
        core.do(f"load {folder}")
        core.do("engine")
        core.do(f"restore {session}")
        core.forward(DENSE, [5])
        core.do("truncate 100")
        core.forward(DENSE, [5])


@pytest.mark.parametrize("firsts", [(-4, 0), (767, 0), (1504, 0), (2**62, 0), (HELD, 4)])
def test_impossible_places_are_refused(folder: Path, tmp_path: Path, firsts: tuple[int, int]) -> None:
    session = tmp_path / "session"
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        core.do("engine")
        core.forward(DENSE, TOKENS[:1500])
        core.do(f"save {session}")
        content = bytearray(session.read_bytes()[:-32])
        struct.pack_into("<2q", content, FIRSTS, *firsts)
        session.write_bytes(content + hashlib.sha256(content).digest())
        core.fails(f"restore {session}", BUNDLE, "session file: got tokens held from an impossible place on")
        assert core.do("use 0") == 0
        core.forward(DENSE, TOKENS[:1500])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    sizes: Mapping[str, Any] = {
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "num_hidden_layers": 8,
    }
    config = {**hf_config("llama"), **sizes, "architectures": ["MistralForCausalLM"], "sliding_window": WINDOW}
    decoder = from_hf_config({**config, "max_position_embeddings": 4096})
    folder = write_bundle(tmp_path / "windows", decoder=decoder, bits=(8,), kv_densities=(1.0,))
    token = 8 * 4 * (2 * 128 + 32 + 4)
    with Core(tmp_path / "results") as core:
        core.do(f"load {folder}")
        core.do("engine")

        def own() -> int:
            status = Path(f"/proc/{core.process.pid}/status").read_text(encoding="utf-8")
            found = re.search(r"RssAnon:\s+(\d+) kB", status)
            assert found is not None
            return int(found[1]) * 1024

        core.forward(DENSE, TOKENS[:800])
        before = own()
        core.forward(DENSE, TOKENS[800:4000])
        assert own() - before < 800 * token
        core.do("truncate 1")
        core.forward(DENSE, TOKENS[1:4000])
        assert own() - before < 800 * token
        assert 3200 * token > 25_000_000
