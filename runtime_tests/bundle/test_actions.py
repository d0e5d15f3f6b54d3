"""Actions: densities in hundredths, their tags, and bits by name."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sol_rt.bundle.actions import Action, hundredths
from sol_rt.bundle.bits import MIXED, bits_name, bits_tag, parse_bits_name, parse_bits_tag
from sol_rt.errors import UsageError

SHARES = st.integers(1, 100)
BITS = st.sampled_from([4, MIXED, 6, 8])


@given(kv=SHARES, channels=SHARES, bits=BITS)
def test_a_tag_is_read_back(kv: int, channels: int, bits: int) -> None:
    action = Action(kv / 100, channels / 100, bits)
    assert action.tag == f"k{kv:03d}-s{channels:03d}-q{'mix' if bits == MIXED else bits}"
    assert Action.parse(action.tag) == action
    assert hash(Action.parse(action.tag)) == hash(action)
    assert (hundredths(action.kv_density), hundredths(action.channel_density)) == (kv, channels)


@given(kv=SHARES, context=st.integers(0, 200_000), page_size=st.sampled_from([1, 4, 16]))
def test_pages_are_a_share_rounded_up_exactly(kv: int, context: int, page_size: int) -> None:
    old = -(-(context + 1) // page_size) - 1
    assert Action(kv / 100, 1.0, 8).pages(context, page_size) == -(-old * kv // 100)


def test_a_share_that_arithmetic_left_beside_its_hundredth_is_that_hundredth() -> None:
    assert Action(0.1 + 0.2, 1, 4) == Action(0.3, 1.0, 4)
    assert repr(Action(1, 1, 8).kv_density) == "1.0"


@pytest.mark.parametrize("share", [0.0, -0.1, 0.001, 0.333, 1.01, 30, math.nan, math.inf])
def test_other_shares_are_refused(share: float) -> None:
    with pytest.raises(UsageError, match=r"kv_density: got .* expected a share from 0\.01 to 1 in hundredths"):
        Action(share, 1.0, 8)
    with pytest.raises(UsageError, match="channel_density: got"):
        Action(1.0, share, 8)


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("k030", "expected kKKK-sSSS-qB"),
        ("k100-s100-qmid", "expected kKKK-sSSS-qB"),
        ("k000-s100-q4", "001 to 100"),
        ("k100-s101-q4", "001 to 100"),
        ("k100-s100-q17", "bits 1 to 16 or mix"),
        ("k025-s100-q5", "mixed bits are written qmix; use k025-s100-qmix"),
        ("k100-s100-q05", "expected kKKK-sSSS-qB"),
    ],
)
def test_other_tags_are_refused(tag: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Action.parse(tag)


@given(bits=BITS)
def test_bits_are_read_back(bits: int) -> None:
    assert parse_bits_tag(bits_tag(bits).removeprefix("q")) == bits
    assert parse_bits_name(bits_name(bits)) == parse_bits_name(str(bits_name(bits))) == bits


def test_mixed_bits_have_a_name_and_no_number() -> None:
    assert (bits_name(MIXED), bits_tag(MIXED)) == ("mixed", "qmix")
    assert [parse_bits_name(value) for value in (5, "5", "mix", True, 4.0, None)] == [None] * 6
    assert sorted([8, MIXED, 4, 6]) == [4, MIXED, 6, 8]
