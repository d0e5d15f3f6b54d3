"""The tensors of the KV cache: its capacity in whole steps, and its bytes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.made_configs import made_config
from sol_rt.bundle.cache_layout import SLACK, STEP, CacheLayout
from sol_rt.bundle.config import KV_DTYPES, KvLayout


def test_a_cache_is_whole_steps() -> None:
    """Beyond the model's context too, of 8192 tokens: function bodies choose among whole steps."""
    layout = CacheLayout(made_config().model, KvLayout())
    assert [layout.capacity_for(tokens) for tokens in (1, 256, 257, 8192, 8193)] == [256, 256, 512, 8192, 8448]
    short = CacheLayout(replace(made_config().model, max_context=100), KvLayout("float16", capacity_step=64))
    assert [short.capacity_for(tokens) for tokens in (1, 65, 100)] == [64, 128, 128]


@pytest.mark.parametrize("dtype", KV_DTYPES)
def test_bytes_are_those_of_keys_values_and_codes(dtype: str) -> None:
    """30 layers of 3 heads of 64: keys and values, and codes of the keys with two float16."""
    token = 30 * 3 * (2 * (64 + 2 if dtype == "int8" else 128) + 32 + 4)
    layout = CacheLayout(made_config().model, KvLayout(dtype))
    assert layout.bytes_at(256) == layout.most_held(256) == 256 * token
    windowed = CacheLayout(made_config().model, KvLayout(dtype, windows=(100, 0) * 15))
    assert windowed.bytes_at(4096) == 4096 * token
    assert windowed.most_held(4096) == (4096 + 100 + SLACK + STEP) * token // 2
    assert windowed.most_held(4096, 100) == (100 + SLACK + STEP) * token // 2
