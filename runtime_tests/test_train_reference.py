"""The reference's arithmetic by its definition in NumPy, and its costs and scalars."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from train_fixtures import make_bundle  # noqa: E402

from sol_rt.actions import Action  # noqa: E402
from sol_rt.train.branch_cache import BranchCache, Prefix  # noqa: E402
from sol_rt.train.reference import (  # noqa: E402
    PAGE,
    NominalCost,
    ReferenceTwin,
    axis_scalars,
    fake_quantized,
    grid,
    shares,
)
from sol_rt.train.twin import UNROUNDED, Twin  # noqa: E402
from sol_rt.train.weights import read_bundle  # noqa: E402

DENSE, TOKENS = Action(100, 100, 16), 53


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("reference") / "tiny")


@pytest.fixture(scope="module")
def twin(folder: Path) -> ReferenceTwin:
    return ReferenceTwin.from_bundle(folder)


def _text(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 86, (1, TOKENS + 1), generator=torch.Generator().manual_seed(seed))


def test_dense_is_the_unrounded_model(twin: ReferenceTwin, folder: Path) -> None:
    plain, text = Twin(read_bundle(folder), UNROUNDED), _text()
    expected, _ = plain(text, Action(100, 100, 8), plain.new_cache(1))
    got, _ = twin(text, DENSE, twin.new_cache(1))
    torch.testing.assert_close(got, expected, atol=2e-3, rtol=1e-3)  # 16 bits are 65535 values


def test_fake_quantization_has_the_values_of_its_bits() -> None:
    x = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    for bits in (2, 5, 8):
        got = fake_quantized(x, bits).double().numpy()
        step = x.abs().amax(-1, keepdim=True).double().numpy() / (2 ** (bits - 1) - 1)
        assert np.abs(got / step - np.round(got / step)).max() < 1e-3
        assert np.abs(got - x.double().numpy()).max() <= step.max() / 2 * (1 + 1e-5)
        assert len(np.unique(np.round(got[0] / step[0]))) <= 2**bits - 1
    assert not fake_quantized(torch.zeros(1, 4), 5).any()


@pytest.mark.parametrize("keep", [10, 40, 70])
@pytest.mark.parametrize("branches", [False, True], ids=["cache", "branches"])
def test_the_best_quest_pages_are_read(twin: ReferenceTwin, keep: int, branches: bool) -> None:
    text, seen = _text(1), []
    cache = twin.new_cache(1)
    twin(text[:, :TOKENS], DENSE, cache)
    read, past = twin._read, cache if not branches else None
    if past is None:
        past = BranchCache(Prefix.of(cache), torch.tensor([TOKENS]), twin.decoder, torch.float32)

    def spy(q, past, layer, pages, slots):  # type: ignore[no-untyped-def]
        seen.append((q, past.read_keys(layer, slots), read(q, past, layer, pages, slots)))
        return seen[-1][2]

    twin._read = spy  # type: ignore[method-assign]
    try:
        twin.step(text[:, TOKENS], [Action(keep, 100, 16)], past)
    finally:
        del twin._read
    total = TOKENS + 1
    count = math.ceil(math.ceil(keep / 100 * total) / PAGE)
    assert len(seen) == twin.decoder.num_layers
    for q, keys, mask in seen:
        queries, held = q[0, :, 0].double().numpy(), keys[0].double().numpy()
        for head, query in enumerate(queries):
            own = held[head * len(held) // len(queries)]
            assert len(own) == total
            scores = []
            for page in range(math.ceil(total / PAGE)):
                part = own[page * PAGE : (page + 1) * PAGE]
                scores.append(np.maximum(query * part.min(0), query * part.max(0)).sum())
            scores[-1] = np.inf
            kept = set(np.argsort(scores)[-count:].tolist())
            expected = [position // PAGE in kept for position in range(total)]
            assert mask[0, head].tolist() == expected


def test_pruning_zeroes_the_mlp_s_input_alone(twin: ReferenceTwin) -> None:
    counts = twin.weights.keep_counts(Action(100, 41, 16))
    assert counts[0] == (math.ceil(0.41 * 64),) * 2
    assert all(set(others) == {0} for others in counts[1:])


def test_costs_are_kept_shares() -> None:
    actions = grid((10, 100), (40, 100), (5, 16))
    assert actions[0] == DENSE
    assert len(actions) == 8
    cost = NominalCost(DENSE)
    assert cost.dense(700) == 1
    assert cost.step(Action(10, 40, 5), 3) == pytest.approx((0.1 + 0.4 + 5 / 16) / 3)
    table = cost.table(actions)(np.array([5, 900]))
    np.testing.assert_allclose(table, [[cost.step(action, 5) for action in actions]] * 2)


def test_scalars_of_the_axes_by_definition() -> None:
    kept, draw = shares(grid((10, 100), (40, 100), (5, 16))), torch.Generator().manual_seed(0)
    action = torch.randint(0, 8, (3, 6), generator=draw)
    previous = torch.cat([torch.full((3, 1), -1), action[:, :-1]], 1)
    budgets = torch.rand(3, 3, generator=draw)
    got = axis_scalars(kept, budgets, previous)
    for row in range(3):
        for step in range(6):
            so_far = kept[action[row, :step]].mean(0) - budgets[row] if step else torch.zeros(3)
            torch.testing.assert_close(got[row, step], torch.cat([budgets[row], so_far]))
