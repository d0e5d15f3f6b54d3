"""The schema of `sol_config.json`: frozen dataclasses that mirror the file, and how they are written as JSON.

docs/reference/bundle-details.md section 4 specifies the format. config_reader.py reads the file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import THREE, LayerBits, Precision, Screen, bits_name, is_of_screen
from sol_rt.errors import UsageError, brief

FORMAT = "sol_rt.bundle"
FORMAT_VERSION = 1
CONFIG_NAME = "sol_config.json"
BLOCK = 32
"""Input channels that share one scale."""
PAGE_SIZE = 4
ALIGNMENT = 4096
MATRIX_BITS = (4, 6, 8)
"""Levels of nested weights, which every matrix may have."""
CODEBOOK = "codebook"
"""Name of the tensor with the tables of the 3-bit level, int8 [4, 8], one for a model."""
CODEBOOK_SHAPE = (4, 8)
KV_DTYPES = ("float16", "int8")
"""Types of cached keys and values. int8 has one float16 scale per token and KV head."""
LONGEST_FILTER = 32
"""Tokens that a short convolution reads at most."""
_BEHIND_WINDOWS = 256  # tokens that every cache keeps behind a window
_CACHE_LINE = 64
DTYPE_BITS = {"float32": 32, "float16": 16, "int64": 64, "int32": 32, "int8": 8, "uint8": 8, "uint4": 4}


@dataclass(frozen=True)
class ModelDims:
    """Names, sizes (in elements) and special token ids of the model."""

    name: str
    architecture: str
    source: str
    license: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_context: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def channels(self) -> dict[str, int]:
        """Number of input channels of a layer's matrices, by the name of Variant's field that counts active ones."""
        attended = self.num_heads * self.head_dim
        return {
            "active_up": self.hidden_size,
            "active_down": self.intermediate_size,
            "active_qkv": self.hidden_size,
            "active_o": attended,
        }

    def context_limit(self, wanted: int | None) -> int:
        """Tokens that a cache may hold: `wanted`, at most what the model takes. Raises UsageError for another type."""
        if wanted is not None and (type(wanted) is not int or wanted < 1):
            raise UsageError(f"context size: got {brief(wanted)}, expected 1 or more tokens")
        return min(self.max_context, wanted or self.max_context)


@dataclass(frozen=True)
class KvLayout:
    """Layout of the KV cache.

    Attributes:
        dtype: type of keys and values, one of KV_DTYPES.
        page_size: tokens per page.
        sinks: number of first tokens that attention always reads.
        capacity_step: the capacity in tokens is a multiple of this.
        dense_layers: layers whose attention reads all pages under any action.
        windows: how many tokens each layer attends to, the new one included; 0: all. Empty: all layers attend to all.
        layers: each layer's kind: `attention`, or `conv`, a gated short convolution, which keeps a state. Empty: all
            layers attend.
        conv_size: tokens that a short convolution reads, the new one included; 0 without layers of that kind.
    """

    dtype: str = "float16"
    page_size: int = PAGE_SIZE
    sinks: int = 4
    capacity_step: int = 256
    dense_layers: tuple[int, ...] = ()
    windows: tuple[int, ...] = ()
    layers: tuple[str, ...] = ()
    conv_size: int = 0

    @cached_property
    def layer_kinds(self) -> Counter[tuple[int, bool]]:
        """Number of layers that attend, by (window, True if they attend densely); empty without windows."""
        return Counter(
            (window, layer in self.dense_layers)
            for layer, window in enumerate(self.windows)
            if not self.layers or self.layers[layer] == "attention"
        )

    def goes_back(self, held: int, length: int) -> bool:
        """True if a cache of `held` tokens has all that layers read after its first `length` ones, without the rest."""
        narrowest = min(filter(None, self.windows), default=held)
        return held <= narrowest or held - length <= _BEHIND_WINDOWS

    def attending(self, num_layers: int) -> tuple[int, ...]:
        """The indices of the layers that attend, which have keys and values in the cache."""
        return tuple(layer for layer in range(num_layers) if not self.layers or self.layers[layer] == "attention")

    @property
    def convolving(self) -> tuple[int, ...]:
        """The indices of the layers with a short convolution, which have a state."""
        return tuple(layer for layer, kind in enumerate(self.layers) if kind == "conv")

    def state_bytes(self, hidden_size: int) -> int:
        """Bytes of the states of all layers: float32 [1, hidden, conv_size - 1] each."""
        return 4 * len(self.convolving) * hidden_size * max(self.conv_size - 1, 0)

    def capacity_for(self, tokens: int) -> int:
        """The smallest capacity that holds `tokens`. Function bodies need a multiple of `capacity_step`."""
        return -(-tokens // self.capacity_step) * self.capacity_step

    def token_bytes(self, head_dim: int) -> int:
        """Bytes of one token's key and value in one KV head."""
        return 2 * (head_dim + 2 if self.dtype == "int8" else 2 * head_dim)


@dataclass(frozen=True)
class Variant:
    """A graph at one channel density. Variants of the same bits share one graph file.

    Attributes:
        key: name of the variant, for example `s050-q4`.
        file: name of the graph file.
        channel_density: share of the layers' base-plane weights that a step reads, the mean over layers.
        bits: bits of all matrices except the LM head, or MIXED. Of 3 bits some matrices may be read at 4.
        active_up, active_down: number of active input channels of the MLP's first and second matmul, one per layer.
        active_qkv, active_o: number of active input channels of the attention projections, one per layer.
        weight_bytes: bytes of weights that one decode step reads.
        lm_head_bits: bits of the LM head; equal in all variants of a graph.
        layer_bits: bits of every layer's matrices if `bits` is MIXED, or if some matrices of a 3-bit graph are read at
            4, else None; equal in all variants of a graph.
        lm_head_screen: how the LM head is screened, or None; equal in all variants of a graph.
        prompt_losses: nats per token that dense steps lose behind a prompt that the variant ran, by the prompt's length
            in tokens; empty if the export measured none.
    """

    key: str
    file: str
    channel_density: float
    bits: int
    active_up: tuple[int, ...]
    active_down: tuple[int, ...]
    active_qkv: tuple[int, ...]
    active_o: tuple[int, ...]
    weight_bytes: int
    lm_head_bits: int
    layer_bits: tuple[LayerBits, ...] | None = None
    lm_head_screen: Screen | None = None
    prompt_losses: Mapping[int, float] = field(default_factory=dict)

    @property
    def precision(self) -> Precision:
        """Bits at which the variant's graph reads each matrix."""
        return Precision(self.bits, self.lm_head_bits, self.layer_bits, self.lm_head_screen)


@dataclass(frozen=True)
class ActionEntry:
    """An action of the bundle, and what it loses over dense.

    Attributes:
        action: the action.
        loss: added loss in nats per token at the longest context measured; None if the export measured none.
        losses: added loss in nats per token by context in tokens; empty if the export measured none.
    """

    action: Action
    loss: float | None
    losses: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PolicySpec:
    """Inputs and outputs of policy.onnx (docs/reference/bundle-details.md section 5).

    `state_shape` is [layers, 2, heads, horizon, size].
    """

    file: str
    horizon: int
    scalars: tuple[str, ...]
    actions: tuple[Action, ...]
    state_shape: tuple[int, ...]
    description: str


@dataclass(frozen=True)
class TensorEntry:
    """Dtype and shape of a tensor, and its offset and size in the weights file, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and lower-case hex sha256 of a file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class SolConfig:
    """The whole of `sol_config.json`."""

    generator: str
    model: ModelDims
    kv: KvLayout
    dense: Action
    variants: dict[str, Variant]
    actions: tuple[ActionEntry, ...]
    policy: PolicySpec | None
    weights_file: str
    tensors: dict[str, TensorEntry]
    files: dict[str, FileEntry]

    @property
    def losses_measured(self) -> bool:
        """True if the export measured the losses of its actions."""
        return any(entry.loss is not None for entry in self.actions)

    def prefill_action(self, key: str | None) -> Action:
        """The action that runs prompts through the variant of this key; without a key the dense action.

        Raises UsageError if the bundle has no such variant.
        """
        if key is None:
            return self.dense
        if not isinstance(key, str) or key not in self.variants:
            has = ", ".join(self.variants)
            raise UsageError(f"--prefill: got {brief(key)}, expected one of the bundle's variants: {has}")
        return Action.parse(f"k100-{key}")

    def to_json_dict(self) -> dict[str, Any]:
        """The JSON object that config_reader.py reads back to an equal config."""
        model = asdict(self.model)
        model["eos_token_ids"] = list(self.model.eos_token_ids)
        kv = {**asdict(self.kv), "dense_layers": list(self.kv.dense_layers), "windows": list(self.kv.windows)}
        if not self.kv.windows:
            del kv["windows"]
        if self.kv.layers:
            kv["layers"] = list(self.kv.layers)
        else:
            del kv["layers"], kv["conv_size"]
        variants = {key: _written(variant) for key, variant in self.variants.items()}
        policy = None
        if self.policy is not None:
            policy = asdict(self.policy)
            policy["scalars"] = list(self.policy.scalars)
            policy["actions"] = [action.tag for action in self.policy.actions]
            policy["state_shape"] = list(self.policy.state_shape)
        tensors = {name: {**asdict(entry), "shape": list(entry.shape)} for name, entry in self.tensors.items()}
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "generator": self.generator,
            "model": model,
            "kv": kv,
            "dense": self.dense.tag,
            "variants": variants,
            "actions": [_written_action(entry) for entry in self.actions],
            "policy": policy,
            "weights": {"file": self.weights_file, "tensors": tensors},
            "files": {name: asdict(entry) for name, entry in self.files.items()},
        }


def screened_bytes(name: str, tensor: TensorEntry, screen: Screen) -> int:
    """Bytes that a step reads of a tensor of a screened LM head.

    What the first pass reads, it reads whole: base, scales and zero points at 4 bits, the screen's own matrix at 3. Of
    the rest a step reads a cache line for every block of a candidate.
    """
    if is_of_screen(name) or (screen.bits != THREE and ".plane" not in name):
        return tensor.bytes
    return min(tensor.bytes, screen.candidates * tensor.shape[0] * _CACHE_LINE)


def tensor_bytes(dtype: str, shape: Collection[int]) -> int:
    """Bytes of a contiguous tensor. Types of less than a byte are packed, and the last byte is padded."""
    return (math.prod(shape) * DTYPE_BITS[dtype] + 7) // 8


def _written_action(entry: ActionEntry) -> dict[str, Any]:
    losses = {str(context): loss for context, loss in entry.losses.items()}
    return {"tag": entry.action.tag, "loss": entry.loss, **({"losses": losses} if losses else {})}


def _written(variant: Variant) -> dict[str, Any]:
    entry = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(variant).items()}
    del entry["key"]
    entry["bits"] = bits_name(variant.bits)
    del entry["prompt_losses"]
    if variant.prompt_losses:
        entry["prompt_losses"] = {str(length): loss for length, loss in variant.prompt_losses.items()}
    if variant.layer_bits is None:
        del entry["layer_bits"]
    else:
        entry["layer_bits"] = [list(layer) for layer in variant.layer_bits]
    if variant.lm_head_screen is None:
        del entry["lm_head_screen"]
    else:
        entry["lm_head_screen"] = variant.lm_head_screen._asdict()
    return entry
