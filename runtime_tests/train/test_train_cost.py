"""Cost of training a policy on 8 GPUs, for a model of 8B parameters: counted on the `meta` device, without weights.

Every operator of a pass takes  max(operations / peak, bytes / bandwidth) / EFFICIENCY + LAUNCH  seconds. Operations are
those of matrix products, bytes those of all inputs and outputs, as eager PyTorch reads and writes them. Peaks are those
of NVIDIA's data sheet of the H100 SXM; efficiency and launch are assumed.
"""

from __future__ import annotations

import math
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from torch.utils.flop_counter import flop_registry  # noqa: E402

from sol_rt.bundle.actions import Action  # noqa: E402
from sol_rt.bundle.bits import THREE  # noqa: E402
from sol_rt.bundle.config import BLOCK, Variant  # noqa: E402
from sol_rt.export.graphs.graph import LayerShapes, active_counts  # noqa: E402
from sol_rt.export.sources.checkpoint import matrices, matrix_shape, vectors  # noqa: E402
from sol_rt.export.sources.decoder import Decoder, from_hf_config  # noqa: E402
from sol_rt.export.sources.families import FAMILIES  # noqa: E402
from sol_rt.export.sources.rope import table_names  # noqa: E402
from sol_rt.train.config import TrainConfig  # noqa: E402
from sol_rt.train.reference_model.branch_cache import BranchCache, Prefix  # noqa: E402
from sol_rt.train.reference_model.model import Arithmetic, ReferenceModel  # noqa: E402
from sol_rt.train.reference_model.weights import (  # noqa: E402
    CodedMatrix,
    Matrix,
    ModelWeights,
    NestedMatrix,
    TwoFoldMatrix,
)

DOCS = Path(__file__).resolve().parents[2] / "docs" / "design" / "policy-training.md"
GPUS, MEMORY, BANDWIDTH = 8, 80e9, 3.35e12
PEAK = {torch.bfloat16: 989e12, torch.float32: 67e12}
EFFICIENCY, LAUNCH = 0.5, 10e-6
CONTEXT, CHUNK, ROWS = 2048, 256, 64
"""Tokens of a window; tokens and positions that ReferenceRollouts runs at once."""
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
"""The shape of Llama-3.1-8B."""
DENSE = Action(1.0, 1.0, 8)
CHEAP = [
    *(Action(1.0, channels, 4) for channels in (1.0, 0.75)),
    *(Action(kv, channels, THREE) for channels in (0.75, 0.5) for kv in (1.0, 0.5, 0.1)),
]


class Counter(TorchDispatchMode):
    """Adds up what the operators run under it would take on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.operations = dict.fromkeys(PEAK, 0)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        read, made = ([t for t in tree_leaves(part) if isinstance(t, torch.Tensor)] for part in ((args, kwargs), out))
        if func.is_view or all(t.device.type != "meta" for t in made):
            return out
        picks = func._opname in ("index", "index_put", "index_put_", "embedding", "gather", "scatter", "scatter_")
        moved = sum(min(t.nbytes, t.untyped_storage().nbytes()) for t in (read[1:] if picks else read) + made)
        seconds = moved / BANDWIDTH
        if func._overloadpacket in flop_registry:
            count, dtype = flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out), made[0].dtype
            self.operations[dtype] += count
            seconds = max(seconds, count / PEAK[dtype])
        self.seconds += seconds / EFFICIENCY + LAUNCH
        return out


def on_meta(decoder: Decoder) -> ModelWeights:
    """The weights of a bundle that has every layer at 3, 4 and 8 bits, without values."""

    def empty(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def matrix(name: str) -> Matrix:
        n, k = matrix_shape(decoder, name)
        blocks = k // BLOCK
        nested = NestedMatrix(empty(n, k), empty(n, blocks, dtype=torch.float16), empty(n, blocks), 8)
        if not name.startswith("layers."):
            return nested
        scales, codebook = empty(n, dtype=torch.float16), empty(4, 8, dtype=torch.int8)
        return TwoFoldMatrix(nested, CodedMatrix(empty(n, k), empty(n, blocks), empty(n, blocks), scales, codebook))

    names = FAMILIES[decoder.family].names
    held = {name: empty(decoder.hidden_size, dtype=torch.float32) for name in vectors(decoder, names)}
    for name in table_names(0):
        held[name] = empty(decoder.max_context, decoder.rotary_dim // 2, dtype=torch.float32)
    variants = {}
    for action in (DENSE, *CHEAP):
        channels = active_counts(action.channel_density, LayerShapes.of(decoder))
        counts = ((count,) * decoder.num_layers for count in channels)
        variants[action.variant] = Variant(
            action.variant, "", action.channel_density, action.bits, *counts, weight_bytes=0, lm_head_bits=8
        )
    return ModelWeights(decoder, {name: matrix(name) for name in matrices(decoder, names)}, held, variants)


class Training:
    """Seconds and bytes of a training of the default config on GPUS GPUs, with a window of an update on each."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.config = decoder, TrainConfig()
        self.model = ReferenceModel(on_meta(decoder), Arithmetic(products=torch.bfloat16))
        for action in (DENSE, CHEAP[0], CHEAP[-1]):  # dequantizes every level, which a training does once
            self.model(self.tokens(1, 1), action, self.model.new_cache(1))
        cache = self.model.new_cache(1)
        cache.reserve(CONTEXT, step=1)
        self.chunks = Counter(), Counter()  # the first and the last; cost rises evenly between them
        for counter, start in zip(self.chunks, (0, CONTEXT - CHUNK), strict=True):
            cache.lengths[:] = start
            with counter:
                self.model(self.tokens(1, CHUNK), DENSE, cache)
        self.prefix = Prefix.of(cache)
        self.dense_pass = sum(counter.seconds for counter in self.chunks) / 2 * (CONTEXT // CHUNK)

    def tokens(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.int64, device="meta")

    def step(self, actions: list[Action]) -> float:
        """Seconds of one decode step of as many rows, on a shared text."""
        starts = torch.full((len(actions),), CONTEXT)
        cache = BranchCache(self.prefix, starts, self.decoder, self.model.arithmetic.kv_dtype, 1)
        with Counter() as counter:
            self.model.step(self.tokens(len(actions)), actions, cache)
        return counter.seconds

    @property
    def bytes(self) -> int:
        """Weights, levels and the shared text of one GPU."""
        weights = self.model.weights
        held = [
            *weights.buffers(),
            *(level for part in weights.modules() for level in getattr(part, "_kept", {}).values()),
        ]
        prefix = [tensor for tensor in vars(self.prefix).values() if isinstance(tensor, torch.Tensor)]
        logits = 4 * ROWS * self.decoder.vocab_size * 4  # of a block, its reference, and what the divergence makes
        return sum(tensor.nbytes for tensor in (*held, *prefix)) + logits

    @cached_property
    def window(self) -> float:
        """Seconds of measuring a window."""
        blocks = math.ceil(self.config.warm_start.positions / ROWS)
        return self.dense_pass + blocks * sum(self.step([action] * ROWS) for action in CHEAP)

    @cached_property
    def update(self) -> float:
        """Seconds of a GRPO update: on each GPU the episodes of one window, rows of two actions."""
        grpo, steps = self.config.grpo, self.config.policy.horizon
        pair = [DENSE, CHEAP[1]] * (grpo.schedules // 2)
        return self.dense_pass + grpo.episodes * steps * self.step(pair)

    @property
    def hours(self) -> float:
        """Hours of measuring, GRPO and comparisons."""
        config, evaluation = self.config, self.config.evaluation
        rounds = math.ceil((config.warm_start.windows + evaluation.windows) / GPUS)
        runs = 3 * len(evaluation.budgets) * evaluation.positions
        comparison = math.ceil(evaluation.windows / GPUS) * (self.dense_pass + runs * self.step([DENSE]))
        comparisons = 1 + config.grpo.updates // evaluation.every
        return (rounds * self.window + config.grpo.updates * self.update + comparisons * comparison) / 3600


@pytest.mark.slow
def test_the_docs_tell_what_8b_parameters_cost() -> None:
    training = Training(from_hf_config(LLAMA_8B))
    decoder, names = training.decoder, FAMILIES[training.decoder.family].names
    sizes = {name: math.prod(matrix_shape(decoder, name)) for name in matrices(decoder, names)}
    of_layers = sum(size for name, size in sizes.items() if name.startswith("layers."))
    for operations in (counter.operations for counter in training.chunks):
        assert operations[torch.bfloat16] == 2 * of_layers * CHUNK
        assert sizes["head"] < operations[torch.float32] / (2 * CHUNK) < 1.3 * sizes["head"] + 0.1 * of_layers
    assert 3 * 2 * of_layers < training.bytes < MEMORY
    figures = (
        f"{training.bytes / 1e9:.0f} GB | {training.window:.1f} s | {training.update:.1f} s | {training.hours:.1f}"
    )
    assert f"| {figures} |" in DOCS.read_text(encoding="utf-8"), figures
