"""The first layer of a bundle's own policy, which a training of two linear layers begins with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from onnx import load_from_string, numpy_helper
from torch import Tensor

from sol_rt.bundle.bundle import Bundle
from sol_rt.export.graphs.policy_graph import PolicyShape


@dataclass(frozen=True)
class FirstLayer:
    """Units that read scalars and hidden state.

    Attributes:
        scalars: names of the scalars.
        weight: float32 [units, scalars + H].
        bias: float32 [units].
    """

    scalars: tuple[str, ...]
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, bundle: Bundle) -> FirstLayer | None:
        """None where the bundle has no policy of two linear layers that read scalars and hidden state alone.

        Raises BundleError if the policy's file was replaced.
        """
        spec = bundle.config.policy
        if spec is None:
            return None
        initializers = load_from_string(bundle.read(spec.file)).graph.initializer
        found = {
            each.name: torch.from_numpy(numpy_helper.to_array(each).astype(np.float32))
            for each in initializers
            if each.name in ("direct.0.weight", "direct.0.bias")
        }
        reads = len(spec.scalars) + bundle.config.model.hidden_size
        if len(found) < 2 or found["direct.0.weight"].shape[1] != reads:
            return None
        return cls(spec.scalars, found["direct.0.weight"], found["direct.0.bias"])

    def inputs(self, shape: PolicyShape, columns: Sequence[str]) -> Tensor | None:
        """`weight` for the inputs of a network, float32 [units, scalars + observed]; None where the network has none.

        Args:
            shape: the network's.
            columns: names of the network's scalars.
        """
        fits = not shape.width and shape.use_hidden and len(self.bias) <= shape.scalar_size
        if not fits or not set(self.scalars) <= set(columns):
            return None
        weight = self.weight.new_zeros(len(self.bias), len(columns) + shape.observed_size)
        places = [*map(columns.index, self.scalars), *range(len(columns), len(columns) + shape.hidden_size)]
        weight[:, places] = self.weight
        return weight
