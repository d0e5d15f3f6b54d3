"""The inputs and outputs that a graph has to have, derived from the bundle's config, and the check that it has them."""

from __future__ import annotations

from collections.abc import Collection

from sol_rt.bundle.cache_layout import CacheLayout
from sol_rt.bundle.config import SolConfig
from sol_rt.errors import BundleError

import onnxruntime as ort

CHANNEL_INPUTS = ("active_up", "active_down", "active_qkv", "active_o")
"""Graph inputs that hold the active channels, int64 [L] each, in the order of `ModelDims.channels`."""
SPARSE_DIMS = SPARSE_KV, SPARSE_CHANNELS = ("sparse_kv_layers", "sparse_channel_layers")
"""Dims of `kv_pages` and of CHANNEL_INPUTS: the number of layers, or 0 if the graph is to choose nothing."""
GATHER_CAPACITY = "gather_capacity"
"""Attribute of layers, read by function bodies alone: how many pairs of a row they gather at most."""
Signature = tuple[dict[str, tuple[str, list[int | None]]], dict[str, tuple[str, list[int | None]]]]
"""Inputs and outputs of a graph, each as name -> (ONNX Runtime's type, shape). None is a dim that varies."""


_TYPES = {"float32": "float"}
"""ONNX Runtime's names of NumPy types, where the two differ."""


def step_signature(config: SolConfig, cache: CacheLayout) -> Signature:
    """Inputs and outputs of docs/reference/bundle-details.md section 1, with this model's sizes and cache tensors."""
    model = config.model
    inputs: dict[str, tuple[str, list[int | None]]] = {
        "input_ids": ("tensor(int64)", [1, None]),
        "past_length": ("tensor(int64)", [1]),
        **dict.fromkeys(("kv_pages", *CHANNEL_INPUTS), ("tensor(int64)", [None])),
        "num_logits": ("tensor(int64)", [1]),
        "total_length": ("tensor(int32)", [1]),
    }
    outputs: dict[str, tuple[str, list[int | None]]] = {
        "logits": ("tensor(float)", [None, model.vocab_size]),
        "hidden_states": ("tensor(float)", [None, model.hidden_size]),
    }
    for tensor in cache.tensors():
        shape = [1, model.num_kv_heads, None, *([tensor.width] if tensor.width else [])]
        kind = f"tensor({_TYPES.get(tensor.dtype, tensor.dtype)})"
        inputs[tensor.past] = outputs[tensor.present] = (kind, shape)
    for layer in config.kv.convolving:
        past, present = state_names(layer)
        inputs[past] = outputs[present] = ("tensor(float)", [1, model.hidden_size, config.kv.conv_size - 1])
    return inputs, outputs


def state_names(layer: int) -> tuple[str, str]:
    """The graph's input and output with the state of a layer that has a short convolution."""
    return f"past_conv.{layer}", f"present_conv.{layer}"


def check_signature(
    path: object, session: ort.InferenceSession, expected: Signature, ignored: Collection[str] = ()
) -> None:
    """Compares a session's inputs and outputs with the `expected` ones; names in `ignored` may be there or not.

    Raises BundleError at the first difference. `path` is the graph file, for the message.
    """
    for found, wanted in zip((session.get_inputs(), session.get_outputs()), expected, strict=True):
        got = {node.name: (node.type, list(node.shape)) for node in found if node.name not in ignored}
        for name in wanted.keys() | got.keys():
            text = [
                f"{kind} {shape}" if (kind, shape) != ("", []) else "nothing"
                for kind, shape in (got.get(name, ("", [])), wanted.get(name, ("", [])))
            ]
            if name not in got or name not in wanted or not _fits(got[name], wanted[name]):
                raise BundleError(path, name, text[0], text[1], "the graph belongs to another bundle: export again")


def _fits(got: tuple[str, list[object]], wanted: tuple[str, list[int | None]]) -> bool:
    if got[0] != wanted[0] or len(got[1]) != len(wanted[1]):
        return False
    return all(not isinstance(a, int) or b is None or a == b for a, b in zip(got[1], wanted[1], strict=True))
