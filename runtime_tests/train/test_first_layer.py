"""A training of two linear layers begins at the policy that the export fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from helpers.train_fixtures import make_bundle  # noqa: E402
from sol_rt.bundle.bundle import Bundle  # noqa: E402
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS  # noqa: E402
from sol_rt.cli.app import run  # noqa: E402
from sol_rt.export.actions.readout import SCALARS, Readout, plain_actions  # noqa: E402
from sol_rt.export.graphs.policy_graph import PolicyShape  # noqa: E402
from sol_rt.export.policy_file import readout_policy, write_policy  # noqa: E402
from sol_rt.train.policy_network import PolicyNetwork  # noqa: E402
from sol_rt.train.run.first_layer import FirstLayer  # noqa: E402


def fitted(folder: Path, weights: Sequence[float]) -> Bundle:
    """A bundle with the policy of a readout."""
    bundle = Bundle.open(make_bundle(folder / "tiny", losses=True))
    actions, order = [entry.action for entry in bundle.config.actions], plain_actions(bundle.config)
    policy = readout_policy(Readout(tuple(weights), 0.1), actions, order, bundle.config.model.name)
    write_policy(folder / "policy.safetensors", policy)
    assert run(["export", "-m", str(bundle.path), "--policy", str(folder / "policy.safetensors")]) == 0
    return Bundle.open(bundle.path)


def test_a_network_begins_at_the_bundle_s_score(tmp_path: Path) -> None:
    assert FirstLayer.of(Bundle.open(make_bundle(tmp_path / "none", losses=True))) is None
    random, drawn = np.random.default_rng(0), torch.Generator().manual_seed(1)
    size = Bundle.open(tmp_path / "none").config.model.hidden_size
    weights = random.normal(size=len(SCALARS) + size).astype(np.float32)
    first = FirstLayer.of(fitted(tmp_path, weights.tolist()))
    assert first is not None
    shape = PolicyShape(size, len(KNOWN_SCALARS), 3, width=0, scalar_size=8)
    assert first.inputs(shape, KNOWN_SCALARS[:3]) is None
    assert first.inputs(replace(shape, width=16), KNOWN_SCALARS) is None
    weight = first.inputs(shape, KNOWN_SCALARS)
    assert weight is not None

    scalars, hidden, embedding = (
        torch.randn(400, n, generator=drawn) * 3 + 1 for n in (len(KNOWN_SCALARS), size, size)
    )
    network = PolicyNetwork(shape)
    network.standardise(hidden, embedding, scalars)
    network.take_units(weight, first.bias)
    # the score, from the readout's own order of inputs
    score = torch.cat([scalars[:, [KNOWN_SCALARS.index(name) for name in SCALARS]], hidden], 1) @ torch.tensor(weights)
    wanted = torch.stack([0 * score, -0.1 * score - 2, -0.3 * score + 1], 1)
    network.fit_units(2, scalars, hidden, embedding, wanted)
    with torch.no_grad():
        found = network(hidden[None], embedding[None], scalars[None], torch.zeros(1, 400, dtype=torch.int64))[0]
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
    assert np.allclose(network.exported()["direct.0.weight"][:2], weight, atol=1e-5)
