"""The description of a decoder, from its config.json and the facts of its family.

`Decoder` is the envelope: what the graph builder, the weight exporter and the reference model can express. Facts of the
families are data in families.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from sol_rt.bundle.config import BLOCK, KvLayout, ModelDims
from sol_rt.errors import CheckpointError, brief
from sol_rt.export.sources.families import FAMILIES, Family, GgufForm
from sol_rt.export.sources.refusals import nearest, refusal
from sol_rt.export.sources.rope import Rope, make_rope

LARGEST_HEAD = 256  # channels: what the attention kernels' buffers hold (kMaxHeadDim)
LARGEST_SIZE, MOST_LAYERS = 1 << 24, 1 << 12  # larger than any model has: a config that says more is damaged
MOST_KV_HEADS = 1 << 11  # function bodies sort this many (KV head, token) pairs at once: at least those of one token
MOST_PAIRS = 1 << 23  # pairs of a whole cache: function bodies count them, and halves of them, in float32


@dataclass(frozen=True)
class Sizes:
    """Sizes that may be padded: channels of the hidden state, of a head, and of the MLP."""

    hidden_size: int
    head_dim: int
    intermediate_size: int

    def padded(self, num_heads: int) -> Sizes:
        """The next sizes that the quantization blocks divide. A head's own need not be such a size."""
        head_dim = self.head_dim
        while num_heads * head_dim % BLOCK or head_dim % 2:
            head_dim += 1
        return Sizes(_whole_blocks(self.hidden_size), head_dim, _whole_blocks(self.intermediate_size))


@dataclass(frozen=True)
class Decoder:
    """A decoder-only transformer.

    Sequential blocks: x += attention(norm(x)); x += mlp(norm(x)).
    Parallel blocks: x += attention(norm(x)) + mlp(norm(x)).

    Attributes:
        family: the family's key in FAMILIES, its `model_type`.
        hidden_size, num_layers, num_heads, num_kv_heads, head_dim, intermediate_size, vocab_size: dimensions.
        max_context: longest context of the bundle in tokens; the rope tables have as many rows.
        norm: `rms` (weight only) or `layer` (weight and bias).
        norm_eps: number added to the variance.
        norm_offset: number added to norm weights. weights.bin holds the sums, so graphs add nothing.
        parallel_residual: attention and MLP of a block read the same input.
        shared_norm: a parallel block has one norm for both, so there is no mlp_norm.
        rotary_dim: number of a head's first channels that are rotated, in the half-split form.
        rope: the rotary embedding's angles.
        qkv_bias, output_bias, mlp_bias, head_bias: which projections have a bias.
        gated: the MLP computes act(gate) * up; otherwise act(up).
        activation: `silu`, `gelu`, `gelu_tanh` or `relu`.
        tied: the LM head is the embedding matrix.
        softmax_scale: factor on the products of q and k.
        embedding_scale: factor on embedding rows.
        unpadded: the checkpoint's sizes, where the sizes above are padded; None: they are the checkpoint's.
    """

    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_context: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    norm_offset: float
    parallel_residual: bool
    shared_norm: bool
    rotary_dim: int
    rope: Rope
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    head_bias: bool
    gated: bool
    activation: str
    tied: bool
    softmax_scale: float
    embedding_scale: float
    unpadded: Sizes | None = None

    @property
    def source(self) -> Decoder:
        """The decoder with the sizes of the checkpoint, not padded."""
        return self if self.unpadded is None else replace(self, **vars(self.unpadded), unpadded=None)

    @property
    def qkv_size(self) -> int:
        """The number of outputs of the joint q, k and v projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def up_size(self) -> int:
        """The number of outputs of the first MLP matrix, the gate's included."""
        return self.intermediate_size * (2 if self.gated else 1)

    @property
    def weights(self) -> int:
        """The number of weights that a token is multiplied with: those of the layers' matrices and the LM head."""
        attention = self.hidden_size * (self.qkv_size + self.num_heads * self.head_dim)
        layer = attention + self.hidden_size * (self.up_size + self.intermediate_size)
        return self.num_layers * layer + self.hidden_size * self.vocab_size

    def dims(
        self,
        *,
        name: str,
        architecture: str,
        source: str,
        license: str,
        bos_token_id: int | None,
        eos_token_ids: tuple[int, ...],
    ) -> ModelDims:
        """The `model` section of sol_config.json: this decoder's dimensions, and the arguments."""
        return ModelDims(
            name=name,
            architecture=architecture,
            source=source,
            license=license,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            max_context=self.max_context,
            bos_token_id=bos_token_id,
            eos_token_ids=eos_token_ids,
        )


# names in transformers' ACT2FN -> names of the operators' attribute `activation`
_ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a Hugging Face config. Raises CheckpointError if it is unknown."""
    listed = config.get("architectures")
    named = listed[0] if isinstance(listed, list) and listed else None
    for family in FAMILIES.values():
        if named == family.architecture or (named is None and config.get("model_type") == family.model_type):
            kind = config.get("model_type", family.model_type)
            if kind != family.model_type:
                expected = f"expected {family.model_type!r} for {family.architecture}"
                raise CheckpointError(f"config.json: model_type: got {brief(kind)}, {expected}")
            return family
    raise CheckpointError(refusal(config, FAMILIES))


def family_of_gguf(architecture: str) -> tuple[Family, GgufForm]:
    """The family of a GGUF file's `general.architecture`, and its GGUF form.

    Raises CheckpointError if it is unknown.
    """
    forms = [(family, family.gguf) for family in FAMILIES.values() if family.gguf is not None]
    for family, form in forms:
        if form.architecture == architecture:
            return family, form
    known = ", ".join(form.architecture for _, form in forms)
    raise CheckpointError(f"GGUF architecture: got {brief(architecture)}, expected one of {known}")


def from_hf_config(config: Mapping[str, Any], max_context: int | None = None) -> Decoder:
    """Describes the decoder of a checkpoint.

    Args:
        config: the content of its Hugging Face `config.json`. Rotary settings are in `rope_parameters`, or in the older
            keys `rope_theta`, `rope_scaling` and `partial_rotary_factor`.
        max_context: longest context of the bundle in tokens; by default the model's own.

    Raises:
        CheckpointError: the architecture is unknown, the model has an unsupported feature, or its dimensions are out of
            range.
    """
    family = family_of(config)
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    intermediate, trained_context = _size(config, "intermediate_size"), _size(config, "max_position_embeddings")
    head_dim = _size(config, "head_dim", hidden // heads)
    kv_heads = _size(config, "num_key_value_heads", heads, most=MOST_KV_HEADS)
    rope_parameters = _rope_parameters(config, family)
    rotary_dim = int(head_dim * _rotary_fraction(rope_parameters))
    context = _context(config, rope_parameters, trained_context, max_context)
    activation = config.get("hidden_act") or config.get("hidden_activation") or family.default_activation
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise CheckpointError(
            f"config.json: hidden_act: got {brief(activation)}, expected one of {', '.join(_ACTIVATIONS)}"
        )
    if _flag(config, "qk_layernorm"):
        raise CheckpointError(
            "config.json: qk_layernorm: got true, expected false; models that normalize q and k are not supported"
        )
    if head_dim > LARGEST_HEAD:
        raise CheckpointError(
            f"config.json: head_dim: got {head_dim}, expected at most {LARGEST_HEAD}, the most that the attention "
            f"kernels take; nearest that works: {nearest(config, FAMILIES)}"
        )
    own = Sizes(hidden, head_dim, intermediate)
    sizes = own.padded(heads)
    tied = _flag(config, "tie_word_embeddings")
    if sizes.hidden_size != hidden and family.norm == "layer" and tied:
        raise CheckpointError(
            f"config.json: hidden_size: got {hidden}, expected a multiple of {BLOCK}; models with LayerNorm whose head "
            "is the embedding can't be padded"
        )
    if heads % kv_heads or rotary_dim % 2 or not rotary_dim:
        raise CheckpointError(
            f"config.json: got {heads} heads over {kv_heads} KV heads with {rotary_dim} rotated channels, "
            "expected whole groups and an even number of channels"
        )
    most_context = MOST_PAIRS // kv_heads - KvLayout.capacity_step  # a cache's capacity is rounded up to whole steps
    if context > most_context:
        raise CheckpointError(
            f"config.json: max_position_embeddings: got a context of {context} with {kv_heads} KV heads, expected at "
            f"most {most_context}; use --ctx-size {most_context} or less"
        )
    return Decoder(
        family=family.model_type,
        hidden_size=sizes.hidden_size,
        num_layers=_size(config, "num_hidden_layers", most=MOST_LAYERS),
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=sizes.intermediate_size,
        vocab_size=_size(config, "vocab_size"),
        max_context=context,
        norm=family.norm,
        norm_eps=_epsilon(config, family) * hidden / sizes.hidden_size,
        norm_offset=0.0,
        parallel_residual=family.parallel_residual,
        shared_norm=family.names.mlp_norm is None,
        rotary_dim=rotary_dim,
        rope=make_rope(rope_parameters, rotary_dim, context, trained_context),
        qkv_bias=_has_bias(config, family.qkv_bias),
        output_bias=_has_bias(config, family.output_bias),
        mlp_bias=_has_bias(config, family.mlp_bias),
        head_bias=family.head_bias,
        gated=family.gated,
        activation=_ACTIVATIONS[activation],
        tied=tied,
        softmax_scale=1.0 / math.sqrt(head_dim),
        embedding_scale=1.0,
        unpadded=None if sizes == own else own,
    )


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _size(config: Mapping[str, Any], key: str, default: int | None = None, most: int = LARGEST_SIZE) -> int:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise CheckpointError(f"config.json: key {key} is missing; the checkpoint is incomplete")
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise CheckpointError(f"config.json: {key}: got {brief(value)}, expected a whole number from 1 to {most}")
    return value


def _has_bias(config: Mapping[str, Any], rule: bool | str) -> bool:
    """What a field such as `Family.qkv_bias` means for one checkpoint."""
    return _flag(config, rule) if isinstance(rule, str) else rule


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key}: got {brief(value)}, expected true or false")
    return bool(value)


def _epsilon(config: Mapping[str, Any], family: Family) -> float:
    value = config.get(family.eps_key)
    value = family.default_eps if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise CheckpointError(f"config.json: {family.eps_key}: got {brief(value)}, expected a number from 0 to 1")
    return float(value)


def _rotary_fraction(rope_parameters: Mapping[str, Any]) -> float:
    value = rope_parameters["partial_rotary_factor"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise CheckpointError(
            f"config.json: partial_rotary_factor: got {brief(value)}, expected a number above 0 and up to 1"
        )
    return float(value)


def _rope_parameters(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The rotary settings in the newer form of `rope_parameters`, `partial_rotary_factor` included."""
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise CheckpointError(f"config.json: rope settings: got {brief(given)}, expected an object")
    parameters = dict(given)
    parameters.setdefault("rope_type", parameters.pop("type", None) or "default")
    kind = parameters["rope_type"]
    if isinstance(kind, str):  # anything else is refused by make_rope
        parameters["rope_type"] = family.rope_types.get(kind, kind)
    parameters.setdefault("rope_theta", config.get("rope_theta") or 10000.0)
    fraction = config.get("partial_rotary_factor")
    parameters.setdefault("partial_rotary_factor", family.default_rotary_fraction if fraction is None else fraction)
    original = config.get("original_max_position_embeddings")
    if parameters["rope_type"] != "default" and "original_max_position_embeddings" not in parameters and original:
        parameters["original_max_position_embeddings"] = original
    return parameters


def _context(config: Mapping[str, Any], rope_parameters: Mapping[str, Any], trained: int, wanted: int | None) -> int:
    """The bundle's longest context in tokens.

    Attention here is full. A model with a sliding window is computed exactly up to the window, so the window is the
    limit.
    """
    limit = trained
    if config.get("sliding_window") and config.get("use_sliding_window") is not False:
        limit = min(limit, _size(config, "sliding_window"))
    if wanted is None:
        # longrope has other factors beyond the original context, and one table of angles serves the whole bundle
        if rope_parameters["rope_type"] == "longrope" and rope_parameters.get("original_max_position_embeddings"):
            limit = min(limit, _size(rope_parameters, "original_max_position_embeddings"))
        return limit
    if not 1 <= wanted <= limit:
        longest = f"1 to {limit}, the model's own context or its sliding window"
        raise CheckpointError(f"maximum context: got {wanted}, expected {longest}")
    return wanted
