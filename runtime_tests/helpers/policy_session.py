"""A policy's graph in ONNX Runtime, which keeps its recurrent state between runs: the reference of the core's.

docs/reference/bundle-details.md section 5 has the contract of the graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.weights import SharedWeights
from sol_rt.engine import providers
from sol_rt.engine.signature import check_signature
from sol_rt.errors import NumericError, SolError, UsageError, one_line

import onnxruntime as ort


class PolicySession:
    """Runs a bundle's policy.onnx, always on the CPU.

    Args:
        bundle: a bundle with a policy.
        native_ops: register the native operators.
        weights: the engine's mapped weights file; by default the file is mapped again.

    Attributes:
        spec: the policy's actions, scalars and horizon.

    Raises UsageError if the bundle has no policy, BundleError if the graph is not the one that the config describes.
    """

    def __init__(self, bundle: Bundle, *, native_ops: bool = True, weights: SharedWeights | None = None) -> None:
        spec = bundle.config.policy
        if spec is None:
            raise UsageError(f"schedule sol: {bundle.path} has no policy; choose another schedule, such as uniform")
        self.spec = spec
        provider = providers.choose("cpu", native_ops=native_ops)
        self._weights = weights or SharedWeights(bundle)
        options = provider.options()
        graph, path = self._weights.attach(options, spec.file, by_name=not provider.native), bundle.path / spec.file
        self._session = provider.session(path, options, graph)
        hidden, state = bundle.config.model.hidden_size, list(spec.state_shape)
        check_signature(
            path,
            self._session,
            (
                {
                    "hidden_states": ("tensor(float)", [1, hidden]),
                    "input_ids": ("tensor(int64)", [1, 1]),
                    "scalars": ("tensor(float)", [1, len(spec.scalars)]),
                    "previous_action": ("tensor(int64)", [1]),
                    "step": ("tensor(int64)", [1]),
                    "past_state": ("tensor(float)", [*state]),
                },
                {
                    "action_logits": ("tensor(float)", [1, len(spec.actions)]),
                    "present_state": ("tensor(float)", [*state]),
                },
            ),
        )
        self._hidden = np.zeros((1, hidden), np.float32)
        self._token = np.zeros((1, 1), np.int64)
        self._scalars = np.zeros((1, len(spec.scalars)), np.float32)
        self._previous = np.zeros(1, np.int64)
        self._step = np.zeros(1, np.int64)
        self._state = np.zeros(spec.state_shape, np.float32)
        self._logits = np.zeros((1, len(spec.actions)), np.float32)
        self._row: np.ndarray = self._logits[0]
        wrap = ort.OrtValue.ortvalue_from_numpy
        state_value = wrap(self._state)
        self._binding = self._session.io_binding()
        for name, array in (
            ("hidden_states", self._hidden),
            ("input_ids", self._token),
            ("scalars", self._scalars),
            ("previous_action", self._previous),
            ("step", self._step),
        ):
            self._binding.bind_ortvalue_input(name, wrap(array))
        self._binding.bind_ortvalue_input("past_state", state_value)
        self._binding.bind_ortvalue_output("action_logits", wrap(self._logits))
        self._binding.bind_ortvalue_output("present_state", state_value)

    def reset(self) -> None:
        """Forgets the episode: the recurrent state becomes zero."""
        self._state.fill(0)

    def decide(
        self, hidden: np.ndarray, token: int, scalars: Mapping[str, float], previous_action: int, step: int
    ) -> np.ndarray:
        """Runs the policy. Returns logits over `spec.actions`, float32 [A]: a view that the next call overwrites.

        Args:
            hidden: float32 [1, hidden] of the step that produced `token`.
            token: the token about to be processed.
            scalars: a value for each name in `spec.scalars`.
            previous_action: index into `spec.actions`, -1 at the start.
            step: position within the episode, 0 to horizon - 1.

        Raises NumericError if a logit is not finite.
        """
        self._hidden[...] = hidden
        self._token[0, 0] = token
        for index, name in enumerate(self.spec.scalars):
            self._scalars[0, index] = scalars[name]
        self._previous[0] = previous_action
        self._step[0] = step
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # ONNX Runtime's exceptions share no useful base
            raise SolError(f"policy: ONNX Runtime failed: {one_line(error)}") from None
        if not math.isfinite(sum(self._row.tolist())):
            what = f"policy {self.spec.file}: non-finite logits at step {step}"
            raise NumericError(f"{what}; check the bundle with `sol-rt verify`, or use --schedule uniform")
        return self._row
