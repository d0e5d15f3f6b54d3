"""The torch policy against policy.onnx, and its two ways to run against each other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import onnxruntime as ort

torch = pytest.importorskip("torch")

from helpers.random_decoder import WEIGHTS, RandomDecoder, describe  # noqa: E402
from sol_rt.export.graphs.policy_graph import PolicyShape, build_policy  # noqa: E402
from sol_rt.train.policy_network import PolicyNetwork  # noqa: E402
from sol_rt.train.reference_model.weights import read_blob  # noqa: E402

SHAPE = PolicyShape(hidden_size=64, num_scalars=7, num_actions=5, horizon=6, width=32, heads=4)
WITHOUT_LAYER = replace(SHAPE, width=0)
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
SHAPES = {
    "whole": SHAPE,
    "no embedding": replace(SHAPE, use_embedding=False),
    "scalars": replace(SHAPE, use_hidden=False, use_embedding=False),
    "no layer": WITHOUT_LAYER,
    "no layer, no embedding": replace(WITHOUT_LAYER, use_embedding=False),
    "no layer, no hidden state": replace(WITHOUT_LAYER, use_hidden=False),
    "no layer, scalars": replace(WITHOUT_LAYER, use_hidden=False, use_embedding=False),
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def _network(shape: PolicyShape) -> PolicyNetwork:
    """One whose every parameter counts, with standardised inputs."""
    torch.manual_seed(0)
    network = PolicyNetwork(shape)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    network.standardise(3 * torch.randn(50, 64) + 1, torch.randn(50, 64), 2 * torch.randn(50, 7) - 1)
    return network


@every_shape
def test_exported_parameters_are_the_graph_s(shape: PolicyShape) -> None:
    shapes = {name: value.shape for name, value in _network(shape).exported().items()}
    assert shapes == shape.parameters()


@every_shape
def test_a_network_begins_at_given_logits(shape: PolicyShape) -> None:
    torch.manual_seed(0)
    network, wanted = PolicyNetwork(shape), torch.tensor([0.5, -1.0, 2.0, 0.1, 0.4])
    network.begin_at(wanted)
    with torch.no_grad():
        logits = network(torch.randn(2, 3, 64), torch.randn(2, 3, 64), torch.randn(2, 3, 7), torch.zeros(2, 3).long())
    logits = logits - logits.mean(-1, keepdim=True)
    bias = network.get_parameter("direct.2.bias").detach()
    torch.testing.assert_close(bias, wanted - wanted.mean(), **TOLERANCE)
    torch.testing.assert_close(logits, (wanted - wanted.mean()).expand_as(logits), atol=0.3, rtol=0)


def test_standardised_inputs_have_mean_0_and_deviation_1() -> None:
    network, examples = PolicyNetwork(SHAPE), torch.randn(500, 64) * 5 + 2
    examples[:, 3] = 7.0  # constant: stays as it is
    network.standardise(examples, torch.randn(500, 64), torch.randn(500, 7))
    seen = network._standardised("observed", torch.cat([examples, torch.randn(500, 64)], -1))[:, :64]
    varying = [channel for channel in range(64) if channel != 3]
    torch.testing.assert_close(seen[:, varying].mean(0), torch.zeros(63), atol=1e-4, rtol=0)
    torch.testing.assert_close(seen[:, varying].std(0), torch.ones(63), atol=1e-4, rtol=0)
    assert torch.equal(seen[:, 3], examples[:, 3])


@every_shape
def test_whole_episodes_equal_single_steps(shape: PolicyShape) -> None:
    network, generator = _network(shape), torch.Generator().manual_seed(1)
    hidden, embedding = (torch.randn(3, SHAPE.horizon, 64, generator=generator) for _ in range(2))
    scalars = torch.randn(3, SHAPE.horizon, 7, generator=generator)
    previous = torch.randint(-1, 5, (3, SHAPE.horizon), generator=generator)
    with torch.no_grad():
        together = network(hidden, embedding, scalars, previous)
        state = network.new_state(3)
        for t in range(SHAPE.horizon):
            logits, state = network.step(hidden[:, t], embedding[:, t], scalars[:, t], previous[:, t], t, state)
            torch.testing.assert_close(logits, together[:, t], **TOLERANCE)
        shorter = network(hidden[:, :2], embedding[:, :2], scalars[:, :2], previous[:, :2])
    torch.testing.assert_close(shorter, together[:, :2], **TOLERANCE)


@every_shape
def test_network_equals_the_graph_over_an_episode(shape: PolicyShape, tmp_path: Path) -> None:
    network, rng = _network(shape), np.random.default_rng(3)
    decoder = RandomDecoder.write(describe("llama"), tmp_path)
    (tmp_path / "policy.onnx").write_bytes(
        build_policy(shape, network.exported(), decoder.tensors, WEIGHTS).SerializeToString()
    )
    session = ort.InferenceSession(str(tmp_path / "policy.onnx"), providers=["CPUExecutionProvider"])
    embed = read_blob(tmp_path / WEIGHTS, decoder.tensors, decoder.decoder).matrix("embed")
    onnx_state, state, previous = np.zeros(shape.state_shape, np.float32), network.new_state(1), -1
    for step in range(SHAPE.horizon):
        hidden, scalars = (rng.standard_normal((1, size)).astype(np.float32) for size in (64, 7))
        token = int(rng.integers(0, 90))
        feed = {
            "hidden_states": hidden,
            "input_ids": np.array([[token]]),
            "scalars": scalars,
            "previous_action": np.array([previous]),
            "step": np.array([step]),
            "past_state": onnx_state,
        }
        expected, onnx_state = session.run(["action_logits", "present_state"], feed)
        with torch.no_grad():
            logits, state = network.step(
                torch.from_numpy(hidden),
                embed.rows(torch.tensor([token])),
                torch.from_numpy(scalars),
                torch.tensor([previous]),
                step,
                state,
            )
        np.testing.assert_allclose(logits.numpy(), expected, **TOLERANCE)
        np.testing.assert_allclose(state[0].numpy(), onnx_state, **TOLERANCE)
        previous = int(rng.integers(0, SHAPE.num_actions))
