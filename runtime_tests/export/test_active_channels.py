"""The search of density levels: shares met, counts in range, nested levels, and a split that beats the equal one."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.random_decoder import describe
from helpers.tiny_bundle import seal, write_bundle
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import UsageError
from sol_rt.export.actions import active_channels
from sol_rt.export.actions.active_channels import (
    DensityLevels,
    MlpSizes,
    find_levels,
    scaled_to,
    whole_counts,
    with_levels,
)
from sol_rt.export.actions.losses import Candidate, token_divergences, token_losses
from sol_rt.generate.native.engine import Engine

WINDOWS = [np.random.default_rng(seed).integers(0, 90, 96).tolist() for seed in range(4)]
DENSE = Action(1.0, 1.0, 4)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(Bundle.open(write_bundle(tmp_path_factory.mktemp("levels") / "tiny")), provider="cpu")


@st.composite
def sizes(draw: st.DrawFn) -> MlpSizes:
    hidden, inner = 32 * draw(st.integers(1, 20)), 32 * draw(st.integers(1, 60))
    return MlpSizes(draw(st.integers(1, 12)), hidden, inner, inner * draw(st.sampled_from([1, 2])), hidden)


@st.composite
def problems(draw: st.DrawFn) -> tuple[MlpSizes, np.ndarray, list[float]]:
    """Sizes, factors on the inactive shares of the matrices, and descending targets."""
    size = draw(sizes())
    factors = st.lists(st.floats(0.3, 3.0), min_size=2 * size.layers, max_size=2 * size.layers)
    shares = sorted(draw(st.lists(st.floats(0.06, 0.99), min_size=1, max_size=4)), reverse=True)
    return size, np.array(draw(factors)), shares


@pytest.mark.parametrize("layers", range(1, 81))
def test_all_channels_are_the_whole_share(layers: int) -> None:
    """Exactly: an unpruned variant is no target of the search, and more than 1 is refused."""
    size = MlpSizes(layers, 576, 1536, 3072, 576)
    assert size.share(size.levels(size.channels.astype(int).tolist())) == 1.0


@settings(deadline=None)
@given(problems())
def test_splits_meet_the_share_within_bounds(problem: tuple[MlpSizes, np.ndarray, list[float]]) -> None:
    """Every target reads its share or at most a channel more; a lower target keeps nowhere more than a higher one."""
    size, factors, shares = problem
    most = size.channels.astype(np.int64)
    one_channel = (size.weights / size.channels).max()
    for share in shares:
        bound = most / size.channels
        kept = scaled_to(1 - (1 - size.equal(share)) * factors, size.weights, share, bound)
        assert (kept <= bound + 1e-12).all()
        assert abs((kept * size.weights).sum() - share) < 1e-6
        counts = whole_counts(kept, size, share, most)
        assert (counts >= 1).all()
        assert (counts <= most).all()
        reads = size.share(size.levels(counts.tolist()))
        assert share - 1e-9 <= reads <= share + one_channel + 1e-6
        most = counts


def test_levels_are_nested_repeatable_and_no_worse_than_equal_ones(engine: Engine) -> None:
    size = MlpSizes.of(engine.bundle.config)
    targets = (0.5, 1.0, 0.75, 0.3)
    levels = find_levels(engine, WINDOWS, targets, 4)
    assert list(levels) == list(targets)
    assert levels == find_levels(engine, WINDOWS, targets, 4)
    assert levels[1.0] == DensityLevels((64, 64), (96, 96))
    for target, found in levels.items():
        assert -1e-9 < size.share(found) - target < 0.01
    for more, fewer in itertools.pairwise(levels[target] for target in (1.0, 0.75, 0.5, 0.3)):
        for one, other in ((more.active_up, fewer.active_up), (more.active_down, fewer.active_down)):
            assert all(a >= b >= 1 for a, b in zip(one, other, strict=True))
    equal = whole_counts(
        scaled_to(size.equal(0.75), size.weights, 0.75, np.ones(4)), size, 0.75, size.channels.astype(np.int64)
    )
    rows = [levels[0.75], size.levels(equal.tolist())]
    found, rule = token_divergences(
        engine, WINDOWS[:3], DENSE, [Candidate(DENSE, row.active_up, row.active_down) for row in rows]
    ).mean(1)
    assert 0 < found <= rule


def test_layers_that_do_not_matter_are_pruned_first(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made up: squares of what is inactive, the first layer's a hundred times the second's."""
    seen = 0

    def made_up(_: Any, windows: Any, reference: Any, candidates: Sequence[Candidate], progress: Any) -> np.ndarray:
        nonlocal seen
        seen += len(candidates)
        channels = np.array([64, 64, 96, 96])
        counts = np.array([(*(each.active_up or ()), *(each.active_down or ())) for each in candidates])
        return np.asarray(((1 - counts / channels) ** 2 * np.array([1.0, 0.01, 1.0, 0.01])).sum(1, keepdims=True))

    monkeypatch.setattr(active_channels, "token_divergences", made_up)
    levels = find_levels(engine, WINDOWS, (0.75, 0.5), 4)
    assert seen == 2 * 4 + 2 * 4  # each group of a layer up and down, then four moves for each target
    size = MlpSizes.of(engine.bundle.config)
    for target, found in levels.items():
        equal = size.equal(target)
        assert found.active_down[0] / 96 > equal[2] + 0.05
        assert found.active_down[1] / 96 < equal[3] - 0.02
        harm, before = (
            float(((1 - shares) ** 2 * np.array([1.0, 0.01, 1.0, 0.01])).sum())
            for shares in (np.array([*found.active_up, *found.active_down]) / size.channels, equal)
        )
        assert harm < 0.75 * before


def test_equal_shares_stay_where_no_gain_is_certain(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)

    def noise(_: Any, windows: Any, reference: Any, candidates: Sequence[Candidate], progress: Any) -> np.ndarray:
        rows = np.tile(draw.normal(size=400), (len(candidates), 1))
        return np.asarray(rows + 1e-3 * np.arange(len(candidates))[:, None] * (1 + draw.normal(size=rows.shape)))

    monkeypatch.setattr(active_channels, "token_divergences", noise)
    size = MlpSizes.of(engine.bundle.config)
    found = find_levels(engine, WINDOWS, (0.5,), 4)[0.5]
    shares = scaled_to(size.equal(0.5), size.weights, 0.5, np.ones(4))
    equal = whole_counts(shares, size, 0.5, size.channels.astype(np.int64))
    assert found == size.levels(equal.tolist())


def test_divergences_are_those_of_whole_distributions(engine: Engine) -> None:
    candidate = Candidate(Action(1.0, 0.5, 4))
    got = token_divergences(engine, WINDOWS[:1], DENSE, [candidate, Candidate(DENSE)])
    rows = {}
    for action in (DENSE, candidate.action):
        engine.reset()
        engine.forward(WINDOWS[0][:48], engine.bundle.config.dense)
        logits = engine.forward(WINDOWS[0][48:95], action, num_logits=47).logits.astype(np.float64)
        rows[action] = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    expected = (np.exp(rows[DENSE]) * (rows[DENSE] - rows[candidate.action])).sum(-1)
    np.testing.assert_allclose(got[0], expected, atol=1e-5)
    np.testing.assert_allclose(got[1], 0, atol=1e-5)  # probabilities are kept as float32
    assert token_losses(engine, WINDOWS[:1], [candidate]).shape == got[:1].shape


@pytest.mark.parametrize("target", [0, 0.03, 1.01, -0.5])
def test_targets_out_of_reach_are_refused(engine: Engine, target: float) -> None:
    with pytest.raises(UsageError, match=rf"channel_density: got {target}, expected 0.04 to 1"):
        find_levels(engine, WINDOWS, (0.75, target), 4)


def test_a_bundle_gets_the_levels_that_are_found(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(engine.bundle.path, tmp_path / "tiny"))
    before = engine.bundle.config
    with monkeypatch.context() as patch:
        patch.setattr(active_channels, "_MOST_WEIGHTS", MlpSizes.of(before).total - 1)
        assert with_levels(folder, before, describe("llama"), WINDOWS) == before
    config = with_levels(folder, before, describe("llama"), WINDOWS)
    rule = next(variant for variant in before.variants.values() if variant.channel_density == 0.5)
    share = MlpSizes.of(before).share(DensityLevels(rule.active_up, rule.active_down))
    found = find_levels(engine, WINDOWS, (share,), 4)[share]
    for key, variant in config.variants.items():
        if variant.channel_density == 0.5:
            assert (variant.active_up, variant.active_down) == (found.active_up, found.active_down)
            assert (variant.active_qkv, variant.active_o) == (rule.active_qkv, rule.active_o)
            assert abs(variant.weight_bytes / before.variants[key].weight_bytes - 1) < 0.05
        else:
            assert variant == before.variants[key]
    seal(folder, config)
    opened = Engine(Bundle.open(folder), provider="cpu")
    assert np.isfinite(opened.forward(WINDOWS[0], Action(1.0, 0.5, 8)).logits).all()
