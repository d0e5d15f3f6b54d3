"""GPTQ: it lowers what it says it lowers, in float64, and leaves the format's promises as they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="exporting comes with the extra export")
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sol_rt.bundle.config import BLOCK  # noqa: E402
from sol_rt.export.quantize.compiled import compiled  # noqa: E402
from sol_rt.export.quantize.gptq import HessianFactor, choose_codes  # noqa: E402
from sol_rt.export.quantize.nested import Nested, dequantize, quantize_matrix  # noqa: E402

Array = np.ndarray


def made(seed: int, rows: int = 24, channels: int = 96, tokens: int = 400) -> tuple[Array, Array]:
    """Weights float32 [N, K], and the hessian float32 [K, K] of inputs that go together and differ in size."""
    rng = np.random.default_rng(seed)
    causes = channels // 4
    x = rng.standard_normal((tokens, causes)) @ rng.standard_normal((causes, channels))
    x = (x / np.sqrt(causes) + 0.3 * rng.standard_normal(x.shape)) * np.exp(0.5 * rng.standard_normal(channels))
    return rng.standard_normal((rows, channels)).astype(np.float32), (x.T @ x / tokens).astype(np.float32)


def factor_of(hessian: Array) -> HessianFactor:
    return HessianFactor.of(torch.from_numpy(hessian))


def output_error(nested: Nested, level: int, w: Array, hessian: Array) -> float:
    """tr((W - Q) H (W - Q)^T) in float64."""
    error = dequantize(nested, level).astype(np.float64) - w
    return float(((error @ hessian.astype(np.float64)) * error).sum())


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([(4,), (6, 4), (8, 4), (8, 6, 4), (8, 6), (8,)]))
def test_outputs_are_closer_than_of_weights_rounded_alone(seed: int, levels: tuple[int, ...]) -> None:
    w, hessian = made(seed)
    factor, planes = factor_of(hessian), (max(levels) - 4) // 2
    plain = quantize_matrix(w, planes, six_bits=False)
    found = choose_codes(w, plain, factor, levels)
    for level in levels:
        limit = 0.3 if len(levels) == 1 else 1.0  # a level of its own has no other's wishes to heed
        assert output_error(found, level, w, hessian) < limit * output_error(plain, level, w, hessian)


def test_each_code_is_the_best_one_after_those_before_it() -> None:
    """At 4 bits alone, against GPTQ as its paper has it: by the inverse of H, in float64."""
    w, hessian = made(3, rows=8, channels=64)
    plain = quantize_matrix(w, 0)
    found = choose_codes(w, plain, factor_of(hessian), (4,))
    damped = hessian.astype(np.float64) + 0.01 * hessian.diagonal().mean(dtype=np.float64) * np.eye(64)
    order = np.argsort(-hessian.diagonal(), kind="stable")
    upper = np.linalg.cholesky(np.linalg.inv(damped[order][:, order])).T
    rest, wanted = w.T[order].astype(np.float64), np.empty((64, 8))
    for j, channel in enumerate(order):
        step = plain.scale[channel // BLOCK].astype(np.float64)
        zero = plain.zero[channel // BLOCK] / 16
        wanted[channel] = np.clip(np.rint(rest[j] / step + zero), 0, 15)
        error = (rest[j] - (wanted[channel] - zero) * step) / upper[j, j]
        rest[j:] -= upper[j, j:, None] * error
    assert (wanted == found.q.T).mean() > 0.995  # ties fall either way in float32
    assert (wanted == plain.q.T).mean() < 0.9


@pytest.mark.parametrize("seed", range(4))
def test_few_tokens_still_gain_on_other_text(seed: int) -> None:
    """On other text than the Hessian's, level 8 of fixed codes gains by GPTQ, if it knows how few tokens it saw."""
    rng, channels, tokens = np.random.default_rng(seed), 256, 200
    mixed = rng.standard_normal((channels, channels)) / np.sqrt(channels) + 2 * np.eye(channels)
    seen, true = rng.standard_normal((tokens, channels)) @ mixed, mixed.T @ mixed
    hessian = torch.from_numpy((seen.T @ seen / tokens).astype(np.float32))
    w = rng.standard_normal((32, channels)).astype(np.float32)
    plain, fixed = quantize_matrix(w, 2, six_bits=False), np.ones((32, channels // BLOCK), np.bool_)
    naive, heeding = (HessianFactor.of(hessian), HessianFactor.of(hessian, tokens))
    errors = [output_error(choose_codes(w, plain, factor, (8, 4), fixed), 8, w, true) for factor in (naive, heeding)]
    assert errors[1] < 1.05 * output_error(plain, 8, w, true) < errors[0]


def test_code_that_cannot_be_kept_is_compiled_all_the_same() -> None:
    namespace: dict[str, Any] = {}
    exec("def twice(value):\n    return 2 * value", namespace)  # in no file, beside which numba could keep it
    assert compiled(namespace["twice"])(21) == 42


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_wide_levels_stay_near_their_weights(seed: int) -> None:
    w, hessian = made(seed)
    found = choose_codes(w, quantize_matrix(w, 2, six_bits=False), factor_of(hessian), (8, 6, 4))
    step = np.repeat(found.scale.T.astype(np.float64), BLOCK, axis=1)
    errors = {level: dequantize(found, level).astype(np.float64) - w for level in (4, 6, 8)}
    for wide, bound in ((8, 0.5), (6, 0.5)):
        # a level is in the cell of the narrower one, so that it is off by no more than that one and half a cell
        assert (np.abs(errors[wide] - errors[4]) <= step * bound + 1e-6).all()
    mean = {level: float(np.sqrt(np.mean((error / step) ** 2))) for level, error in errors.items()}
    assert mean[8] < 0.12  # of the 4-bit step; rounded alone it is 0.018
    assert mean[8] < mean[6] < mean[4]


def test_fixed_blocks_keep_their_base() -> None:
    w, hessian = made(1)
    plain = quantize_matrix(w, 2, six_bits=False)
    fixed = np.zeros((len(w), w.shape[1] // BLOCK), np.bool_)
    fixed[::2, 1] = True
    found = choose_codes(w, plain, factor_of(hessian), (8, 6, 4), fixed)
    same = (found.q == plain.q).reshape(*fixed.shape, BLOCK).all(axis=-1)
    assert same[fixed].all()
    assert not same[~fixed].all()


@pytest.mark.parametrize("seed", range(3))
def test_fixed_codes_leave_level_8_to_be_fitted(seed: int) -> None:
    """To itself alone: closer than rounding, and than with level 6 to heed."""
    w, hessian = made(seed)
    plain = quantize_matrix(w, 2, six_bits=False)
    fixed = np.ones((len(w), w.shape[1] // BLOCK), np.bool_)
    found, heeding = (choose_codes(w, plain, factor_of(hessian), levels, fixed) for levels in ((8, 4), (8, 6, 4)))
    assert np.array_equal(found.q, plain.q)
    error = output_error(found, 8, w, hessian)
    assert error < 0.6 * output_error(plain, 8, w, hessian)
    assert error < output_error(heeding, 8, w, hessian)


def test_six_bits_of_fixed_codes_have_no_common_shift() -> None:
    """Weights on their 4-bit values: level 6 has none of them, and would be off by 1.5 sixteenths, all to one side."""
    rng = np.random.default_rng(0)
    plain = quantize_matrix(rng.standard_normal((16, 96)).astype(np.float32), 2)
    w = dequantize(plain, 4)
    hessian = (0.1 * np.eye(96) + 3).astype(np.float32)  # inputs with a common part: errors to one side add up
    fixed = np.ones((16, 3), np.bool_)
    found = choose_codes(w, plain, factor_of(hessian), (8, 6, 4), fixed)
    assert np.array_equal(found.q, plain.q)
    centred = Nested(plain.q, np.full_like(plain.q, 2), np.zeros_like(plain.q), plain.scale, plain.zero)
    assert output_error(found, 6, w, hessian) < 0.2 * output_error(centred, 6, w, hessian)
    assert output_error(found, 4, w, hessian) == 0


def test_pieces_and_repetition_change_no_code(monkeypatch: pytest.MonkeyPatch) -> None:
    w, hessian = made(2)
    factor, plain = factor_of(hessian), quantize_matrix(w, 2)
    whole = choose_codes(w, plain, factor, (8, 6, 4))
    monkeypatch.setattr("sol_rt.export.quantize.gptq._ROWS_AT_ONCE", 5)
    pieces = choose_codes(w, plain, factor, (8, 6, 4))
    for part in ("q", "b", "c"):
        assert np.array_equal(getattr(whole, part), getattr(pieces, part))


@pytest.mark.parametrize("panel", [32, 96])
@pytest.mark.parametrize("levels", [(8, 6, 4), (8, 4)])
def test_every_code_is_the_best_after_those_before_it(levels: tuple[int, ...], panel: int) -> None:
    """Of all 256, by the weighted squared errors of the levels in float64, in blocks that are fixed and others."""
    rows, channels = 12, 128
    w, hessian = made(7, rows, channels)
    factor, plain = replace(factor_of(hessian), panel=panel), quantize_matrix(w, 2, six_bits=False)
    fixed = np.random.default_rng(7).random((rows, channels // BLOCK)) < 0.5
    fixed[:3] = True
    found = choose_codes(w, plain, factor, levels, fixed)
    order, upper = factor.order.numpy(), factor.factor.double().numpy()
    unit = np.repeat(found.scale.T.astype(np.float64), BLOCK, axis=1) / 16
    zero = np.repeat(found.zero.T.astype(np.float64), BLOCK, axis=1)
    codes = np.arange(256)[:, None]
    weight = {4: 1.0, 6: 2.0, 8: 16.0}
    loss = np.zeros((channels, 256, rows))
    for level in levels:
        error = (w - dequantize(found, level)).astype(np.float64)[:, order]
        for place, channel in enumerate(order):
            owed = error[:, :place] @ upper[:place, place] / upper[place, place]
            read = codes >> (8 - level) << (8 - level)
            value = (read - {4: 0.0, 6: 6.5, 8: 8.0}[level] - zero[:, channel]) * unit[:, channel]
            loss[place] += weight[level] * ((w[:, channel] + owed - value) / unit[:, channel]) ** 2
    stays = np.repeat(fixed, BLOCK, axis=1).T[order][:, None, :]
    loss[stays & (codes >> 4 != plain.q.T[order][:, None, :])] = np.inf
    chosen = np.take_along_axis(loss, found.codes.T[order][:, None, :].astype(np.int64), axis=1)[:, 0]
    # the search looks at four codes, which are not always the best of 256, but at level 8 alone and mostly otherwise
    best = np.isclose(chosen, loss.min(axis=1), rtol=1e-3, atol=1e-3)
    if 6 not in levels:
        assert best[:, :3].all()
    assert best.mean() > 0.95


@pytest.mark.parametrize("rank", [0, 1, 7])
def test_hessians_without_full_rank_do(rank: int) -> None:
    """A few tokens, channels that are never on, or none at all."""
    w, _ = made(4)
    x = np.random.default_rng(4).standard_normal((rank, w.shape[1])).astype(np.float32)
    x[:, 5:40] = 0
    hessian = (x.T @ x).astype(np.float32)
    plain = quantize_matrix(w, 2, importance=hessian.diagonal())
    found = choose_codes(w, plain, factor_of(hessian), (8, 6, 4))
    for level in (4, 6, 8):
        assert output_error(found, level, w, hessian) <= output_error(plain, level, w, hessian)
    assert (np.abs(dequantize(found, 8) - w) <= 2 * np.repeat(found.scale.T.astype(np.float32), BLOCK, axis=1)).all()


def test_zero_blocks_stay_zero() -> None:
    w, hessian = made(5)
    w[:, 32:64] = 0
    found = choose_codes(w, quantize_matrix(w, 2), factor_of(hessian), (8, 6, 4))
    for level in (4, 6, 8):
        assert not dequantize(found, level)[:, 32:64].any()


def test_important_channels_are_rounded_finer() -> None:
    w, _ = made(6)
    importance = np.where(np.arange(w.shape[1]) % 8 == 0, 100, 1).astype(np.float32)
    plain, weighted = (quantize_matrix(w, 2, six_bits=False, importance=given) for given in (None, importance))

    def error(nested: Nested) -> float:
        return float((np.square(dequantize(nested, 4).astype(np.float64) - w) * importance).sum())

    assert error(weighted) < 0.8 * error(plain)
    assert not np.abs(dequantize(weighted, 8) - w).max() > 0.06 * weighted.scale.max()
