"""policy.onnx against the network of sol_rt.export.graphs.policy_graph's docstring in NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from helpers import reference
from helpers.random_decoder import WEIGHTS, RandomDecoder, describe
from helpers.reference import Array
from sol_rt.errors import CheckpointError
from sol_rt.export.graphs.policy_graph import PolicyShape, build_policy, random_policy_parameters
from sol_rt.ops import library_path

import onnxruntime as ort

SHAPE = PolicyShape(hidden_size=64, num_scalars=7, num_actions=5, horizon=4, width=32, heads=4)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RandomDecoder]:
    folder = tmp_path_factory.mktemp("policy")
    return folder, RandomDecoder.write(describe("llama"), folder)


def _parameters(seed: int = 0) -> dict[str, Array]:
    """Random ones whose norms and biases count, too."""
    rng = np.random.default_rng(seed)
    return {
        name: (value + 0.3 * rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in random_policy_parameters(seed, SHAPE).items()
    }


class _Policy:
    """The same network, steps of one episode kept in lists."""

    def __init__(self, parameters: dict[str, Array], embedding: reference.Nested) -> None:
        self.p = {name: value.astype(np.float64) for name, value in parameters.items()}
        self.embedding = embedding.weights(8).T
        self.keys: list[Array] = []
        self.values: list[Array] = []

    def linear(self, name: str, x: Array) -> Array:
        return self.p[f"{name}.weight"] @ x + self.p[f"{name}.bias"]

    def norm(self, name: str, x: Array) -> Array:
        x = (x - x.mean()) / np.sqrt(x.var() + 1e-5)
        return x * self.p[f"{name}.weight"] + self.p[f"{name}.bias"]

    def two_layers(self, name: str, x: Array) -> Array:
        return self.linear(f"{name}.2", reference.activation(self.linear(f"{name}.0", x), "gelu"))

    def step(self, hidden: Array, token: int, scalars: Array, previous: int) -> Array:
        parts = [
            hidden,
            self.embedding[token],
            self.two_layers("scalars", scalars),
            self.p["previous.weight"][previous + 1],
        ]
        x = self.linear("input", np.concatenate(parts)) + self.p["position.weight"][len(self.keys)]
        q, k, v = self.linear("qkv", self.norm("norm1", x)).reshape(3, SHAPE.heads, -1)
        self.keys.append(k)
        self.values.append(v)
        scores = np.einsum("hd,thd->ht", q, np.array(self.keys)) / np.sqrt(q.shape[1])
        attention = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        x = x + self.linear("output", np.einsum("ht,thd->hd", attention, np.array(self.values)).ravel())
        x = x + self.linear("down", reference.activation(self.linear("up", self.norm("norm2", x)), "gelu"))
        return self.linear("actions", self.norm("norm", x)) + self.two_layers("direct", scalars)


def _session(path: Path, model: onnx.ModelProto, *, native: bool) -> ort.InferenceSession:
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)
    options = ort.SessionOptions()
    if native:
        options.register_custom_ops_library(str(library_path()))
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("native", [False, True], ids=["body", "kernel"])
def test_an_episode_equals_the_network(weights: tuple[Path, RandomDecoder], native: bool) -> None:
    if native and library_path() is None:
        pytest.skip("the native operators are not built")
    folder, decoder = weights
    parameters, rng = _parameters(), np.random.default_rng(3)
    session = _session(folder / "policy.onnx", build_policy(SHAPE, parameters, decoder.tensors, WEIGHTS), native=native)
    state = np.full(SHAPE.state_shape, 7.0, np.float32)  # what an earlier episode left
    shared = ort.OrtValue.ortvalue_from_numpy(state)
    for _episode in range(2):
        expected, previous = _Policy(parameters, decoder.matrices["embed"]), -1
        for step in range(SHAPE.horizon):
            hidden = rng.standard_normal(SHAPE.hidden_size).astype(np.float32)
            scalars = rng.standard_normal(SHAPE.num_scalars).astype(np.float32)
            token = int(rng.integers(0, 90))
            binding = session.io_binding()
            feed = {
                "hidden_states": hidden[None],
                "input_ids": np.array([[token]]),
                "scalars": scalars[None],
                "previous_action": np.array([previous]),
                "step": np.array([step]),
            }
            for name, value in feed.items():
                binding.bind_cpu_input(name, value)
            binding.bind_ortvalue_input("past_state", shared)
            binding.bind_ortvalue_output("present_state", shared)
            binding.bind_output("action_logits")
            session.run_with_iobinding(binding)
            logits = binding.copy_outputs_to_cpu()[-1]
            np.testing.assert_allclose(logits[0], expected.step(hidden, token, scalars, previous), rtol=1e-4, atol=1e-4)
            previous = int(rng.integers(0, SHAPE.num_actions))


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("embedding", [False, True])
def test_without_the_layer_a_policy_is_two_linear_ones(
    weights: tuple[Path, RandomDecoder], hidden: bool, embedding: bool
) -> None:
    """The policy returns its state unchanged, and inputs that it doesn't read change no logit."""
    folder, decoder = weights
    shape = replace(SHAPE, width=0, use_hidden=hidden, use_embedding=embedding)
    parameters = random_policy_parameters(0, shape)
    session = _session(folder / "policy.onnx", build_policy(shape, parameters, decoder.tensors, WEIGHTS), native=False)
    rng, network = np.random.default_rng(4), _Policy(parameters, decoder.matrices["embed"])
    scalars = rng.standard_normal(SHAPE.num_scalars).astype(np.float32)
    state = rng.standard_normal(shape.state_shape).astype(np.float32)
    for token in (0, 17):
        last = rng.standard_normal(SHAPE.hidden_size).astype(np.float32)
        feed = {
            "hidden_states": last[None],
            "input_ids": np.array([[token]]),
            "scalars": scalars[None],
            "previous_action": np.array([token % 3 - 1]),
            "step": np.array([token % SHAPE.horizon]),
        }
        binding = session.io_binding()
        for name, value in feed.items():
            binding.bind_cpu_input(name, value)
        shared = ort.OrtValue.ortvalue_from_numpy(state.copy())  # both states in one buffer, as hosts bind them
        binding.bind_ortvalue_input("past_state", shared)
        binding.bind_ortvalue_output("present_state", shared)
        binding.bind_output("action_logits")
        session.run_with_iobinding(binding)
        logits, after = binding.copy_outputs_to_cpu()[-1], shared.numpy()
        read = [scalars, *([last] if hidden else []), *([network.embedding[token]] if embedding else [])]
        expected = network.two_layers("direct", np.concatenate(read))
        np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-4)
        assert np.array_equal(after, state)


def test_policies_of_another_shape_are_refused(weights: tuple[Path, RandomDecoder]) -> None:
    _, decoder = weights
    parameters = _parameters()
    with pytest.raises(CheckpointError, match=r"actions\.bias: got \(5,\), expected \(6,\)"):
        build_policy(
            PolicyShape(64, 7, 6, 4, 32),
            {**random_policy_parameters(0, PolicyShape(64, 7, 6, 4, 32)), "actions.bias": parameters["actions.bias"]},
            decoder.tensors,
            WEIGHTS,
        )
    with pytest.raises(CheckpointError, match="extra: got"):
        build_policy(SHAPE, {**parameters, "extra": parameters["norm.bias"]}, decoder.tensors, WEIGHTS)
    larger = PolicyShape(128, 7, 5)
    with pytest.raises(CheckpointError, match="hidden size 128, the bundle's model has 64"):
        build_policy(larger, random_policy_parameters(0, larger), decoder.tensors, WEIGHTS)
