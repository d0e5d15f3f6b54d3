"""The cache's memory: content over resizing, large pages, memory given back."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.made_configs import made_config
from sol_rt.bundle.config import KV_DTYPES, KvLayout
from sol_rt.engine.kv_cache import KvCache, _Memory

SMAPS = Path("/proc/self/smaps")
on_linux = pytest.mark.skipif(sys.platform != "linux" or not SMAPS.exists(), reason="reads Linux's map of the process")


@pytest.fixture(params=KV_DTYPES)
def cache(request: pytest.FixtureRequest) -> KvCache:
    return KvCache(made_config().model, KvLayout(request.param))


def mapping_of(address: int) -> str:
    """The system's description of the mapping that holds an address."""
    for entry in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", SMAPS.read_text(), flags=re.MULTILINE):
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", entry)
        if bounds and int(bounds[1], 16) <= address < int(bounds[2], 16):
            return entry
    raise AssertionError(f"no mapping holds {address:#x}")


def filled(cache: KvCache) -> dict[str, np.ndarray]:
    """Gives the cache a capacity of 64 tokens and random content; returns that by the name of the graph input."""
    cache.resize(64, 0)
    expected = {}
    for i, (past, _, value) in enumerate(cache.bindings()):
        array = value.numpy()
        array[:] = 10 * np.random.default_rng(i).random(array.shape)
        value.update_inplace(array)
        expected[past] = array.copy()
    return expected


def test_a_cache_is_whole_steps(cache: KvCache) -> None:
    """Beyond the model's context too, of 8192 tokens: function bodies choose among whole steps."""
    assert [cache.capacity_for(tokens) for tokens in (1, 256, 257, 8192, 8193)] == [256, 256, 512, 8192, 8448]
    short = KvCache(replace(made_config().model, max_context=100), KvLayout("float16", capacity_step=64))
    assert [short.capacity_for(tokens) for tokens in (1, 65, 100)] == [64, 128, 128]


def test_content_stays_where_capacity_grows_and_the_rest_is_zero(cache: KvCache) -> None:
    expected = filled(cache)
    cache.resize(192, 40)
    for (past, _, value), buffer in zip(cache.bindings(), cache.buffers(), strict=True):
        got = value.numpy()
        assert got.shape == cache.shape(buffer, 192)
        assert got.dtype == buffer.dtype
        np.testing.assert_array_equal(got[:, :, :40], expected[past][:, :, :40])
        assert not got[:, :, 40:].any()


@pytest.mark.parametrize("at", [0, 3])
def test_a_growth_that_is_interrupted_loses_nothing(cache: KvCache, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment when the memory of the `at`-th buffer has just been given back."""
    expected = filled(cache)
    release = _Memory.release

    def interrupted(memory: _Memory, i: int) -> None:
        release(memory, i)
        if i == at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Memory, "release", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.resize(128, 40)
    assert cache.capacity == 0, "no token may run before all buffers are alike"
    for again in range(2):
        for past, _, value in cache.bindings():
            np.testing.assert_array_equal(value.numpy()[:, :, :40], expected[past][:, :, :40])
        if not again:
            cache.resize(192, 40)


@pytest.mark.slow
@on_linux
def test_all_buffers_lie_in_one_private_mapping_that_asks_for_large_pages(cache: KvCache) -> None:
    cache.resize(256, 0)
    entries = {mapping_of(value.data_ptr()) for _, _, value in cache.bindings()}
    assert len(entries) == 1
    entry = entries.pop()
    assert re.match(r"\S+ rw-p ", entry), entry  # shared memory gets no large pages
    flags = re.search(r"^VmFlags:(.*)$", entry, re.MULTILINE)
    if flags is None or not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("a kernel without large pages")
    assert "hg" in flags[1].split()


@pytest.mark.slow
@on_linux
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="a kernel without large pages")
def test_layers_with_a_window_have_small_pages_where_parts_are_given_back() -> None:
    cache = KvCache(made_config().model, KvLayout(windows=(100, 0) * 15))

    def flags() -> set[tuple[int, str]]:
        found = set()
        for buffer, (_, _, value) in zip(cache.buffers(), cache.bindings(), strict=True):
            set_flags = re.search(r"^VmFlags:(.*)$", mapping_of(value.data_ptr()), re.MULTILINE)
            assert set_flags is not None
            found.add((buffer.window, " ".join({"hg", "nh"} & set(set_flags[1].split()))))
        return found

    cache.resize(768, 0)
    assert flags() == {(100, "hg"), (0, "hg")}
    cache.resize(1024, 0)
    assert flags() == {(100, "nh"), (0, "hg")}


@on_linux
def test_old_memory_is_given_back_though_somebody_still_holds_it(cache: KvCache) -> None:
    cache.resize(256, 0)
    held = [value for _, _, value in cache.bindings()]
    for value in held:
        value.update_inplace(np.ones_like(value.numpy()))
    cache.resize(512, 256)
    for old, (past, _, value) in zip(held, cache.bindings(), strict=True):
        assert not old.numpy().any(), past  # memory given back reads as zeros
        assert value.numpy()[:, :, :256].all(), past


def test_bytes_are_those_of_the_buffers(cache: KvCache) -> None:
    cache.resize(256, 0)
    assert cache.bytes_at(256) == sum(value.numpy().nbytes for _, _, value in cache.bindings())
    dtype = next(cache.buffers()).dtype
    # 30 layers of 3 heads of 64: keys and values, and codes of the keys with two float16
    assert cache.bytes_at(256) == 256 * 30 * 3 * (2 * (64 + 2 if dtype == "int8" else 128) + 32 + 4)


def test_wiped_tokens_are_zero_and_others_stay(cache: KvCache) -> None:
    cache.resize(256, 0)
    for _, _, value in cache.bindings():
        value.update_inplace(np.ones_like(value.numpy()))
    cache.wipe(32, 64)
    for past, _, value in cache.bindings():
        got = value.numpy()
        assert not got[:, :, 32:64].any(), past
        assert got[:, :, :32].all(), past
        assert got[:, :, 64:].all(), past
