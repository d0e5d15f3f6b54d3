"""The cache's memory: content over resizing, large pages, memory given back."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from made_configs import made_config

from sol_rt.kv_cache import KvCache

SMAPS = Path("/proc/self/smaps")
on_linux = pytest.mark.skipif(sys.platform != "linux" or not SMAPS.exists(), reason="reads Linux's map of the process")


def new_cache() -> KvCache:
    config = made_config()
    return KvCache(config.model, config.kv, ort.OrtValue.ortvalue_from_numpy)


def mapping_of(address: int) -> str:
    """The system's description of the mapping that holds an address."""
    for entry in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text(), flags=re.MULTILINE):
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", entry)
        if bounds and int(bounds[1], 16) <= address < int(bounds[2], 16):
            return entry
    raise AssertionError(f"no mapping holds {address:#x}")


def test_content_stays_where_capacity_grows_and_the_rest_is_zero() -> None:
    cache = new_cache()
    cache.resize(64, 0)
    expected = {}
    for i, (past, _, value) in enumerate(cache.bindings()):
        array = value.numpy()
        array[:] = np.random.default_rng(i).standard_normal(array.shape)
        value.update_inplace(array)
        expected[past] = array.copy()
    cache.resize(192, 40)
    for (past, _, value), (_, _, tokens) in zip(cache.bindings(), cache.names(), strict=True):
        got, used = value.numpy(), -(-40 // tokens)
        assert got.shape == cache.shape(192 // tokens)
        np.testing.assert_array_equal(got[:, :, :used], expected[past][:, :, :used])
        assert not got[:, :, used:].any()


@on_linux
def test_all_buffers_lie_in_one_private_mapping_that_asks_for_large_pages() -> None:
    cache = new_cache()
    cache.resize(256, 0)
    entries = {mapping_of(value.data_ptr()) for _, _, value in cache.bindings()}
    assert len(entries) == 1
    entry = entries.pop()
    assert re.match(r"\S+ rw-p ", entry), entry  # shared memory gets no large pages
    flags = re.search(r"^VmFlags:(.*)$", entry, re.MULTILINE)
    if flags is None or not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("a kernel without large pages")
    assert "hg" in flags[1].split()


@on_linux
def test_old_memory_is_given_back_though_somebody_still_holds_it() -> None:
    cache = new_cache()
    cache.resize(256, 0)
    held = [value for _, _, value in cache.bindings()]
    for value in held:
        value.update_inplace(np.ones(value.shape(), np.float16))
    cache.resize(512, 256)
    for old, (past, _, value), (_, _, tokens) in zip(held, cache.bindings(), cache.names(), strict=True):
        assert not old.numpy().any(), past  # memory given back reads as zeros
        assert value.numpy()[:, :, : 256 // tokens].all(), past
