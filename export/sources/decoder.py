"""The description of a decoder, from its config.json and the facts of its family.

`Decoder` is the envelope: what the graph builder, the weight exporter and the reference model can express. Facts of the
families are data in the package `families`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from sol_rt.bundle.config import BLOCK, LONGEST_FILTER, KvLayout, ModelDims
from sol_rt.errors import CheckpointError, brief
from sol_rt.export.sources.families import FAMILIES, Family, GgufForm, LayerKind, NormPlace, QkNorm
from sol_rt.export.sources.refusals import (
    SourceSettings,
    gguf_unknown,
    has_experts,
    layer_trait,
    nearest,
    refusal,
    where_of,
    wrong,
)
from sol_rt.export.sources.rope import NO_ROTATION, Rope, make_rope

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
    Norms may also come after attention and MLP, instead or as well: x += norm(attention(x)).
    In layers of the kind `conv`, which are sequential with the norms before, a gated short convolution stands in the
    place of attention. What that needs of earlier tokens is a state of a fixed size.

    Attributes:
        family: the family's key in FAMILIES, its `model_type`.
        hidden_size, num_layers, num_heads, num_kv_heads, head_dim, intermediate_size, vocab_size: dimensions.
        max_context: longest context of the bundle in tokens; the rope tables have as many rows.
        norm: `rms` (weight only) or `layer` (weight and bias).
        norm_eps: number added to the variance.
        norm_offset: number added to norm weights. weights.bin holds the sums, so graphs add nothing.
        norm_place: whether the inputs of attention and MLP are normalized (`before`), their outputs (`after`), or both
            (`around`). Parallel blocks have it `before`.
        parallel_residual: attention and MLP of a block read the same input.
        shared_norm: a parallel block has one norm for both, so there is no mlp_norm.
        rotary_dim: number of a head's first channels that are rotated, in the half-split form.
        ropes: the angles of the rotary embeddings. Most models have one.
        rope_of_layer: the index in `ropes` of each layer's.
        windows: how many tokens each layer attends to, the new one included; 0: all. Empty: all layers attend to all.
        qk_norm: q and k are normalized, every `head` of them or the whole `row` of all heads, like the blocks' inputs
            but without a bias. Every channel has a weight of its own.
        qk_norm_after_rope: they are normalized after the rotary embedding, not before.
        qkv_bias, output_bias, mlp_bias, head_bias: which projections have a bias.
        gated: the MLP computes act(gate) * up; otherwise act(up).
        activation: `silu`, `gelu`, `gelu_tanh`, `relu` or `relu2`, the square of `relu`.
        tied: the LM head is the embedding matrix.
        softmax_scale: factor on the products of q and k.
        embedding_scale: factor on embedding rows.
        residual_scale: factor on what attention and MLP add. weights.bin holds the matrices times it.
        logits_scale: factor on logits. weights.bin holds the final norm times it, so hidden states have it too.
        attention_cap, logits_cap: soft caps c, c * tanh(x / c), on the products of q and k, after their factor, and on
            the logits; 0: none.
        interleaved_rope: the checkpoint's rotary embedding rotates neighbouring channels. weights.bin has the rows of
            q and k in the order of the half-split form.
        qkv_by_head: the checkpoint's joint matrix has q, k and v head by head. weights.bin has all of q first.
        layer_kinds: what each layer has in front of its MLP; empty: attention in all layers.
        conv_size: tokens that the filter of a short convolution reads, the new one included; 0 without such layers.
        conv_bias: whether the short convolutions' projections and filters have a bias. The bundle's matrix `qkv` of
            such a layer is the input projection, [3 hidden] outputs, and `o` the output projection.
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
    ropes: tuple[Rope, ...]
    rope_of_layer: tuple[int, ...]
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    head_bias: bool
    gated: bool
    activation: str
    tied: bool
    softmax_scale: float
    embedding_scale: float
    norm_place: NormPlace = "before"
    windows: tuple[int, ...] = ()
    qk_norm: QkNorm = "none"
    qk_norm_after_rope: bool = False
    residual_scale: float = 1.0
    logits_scale: float = 1.0
    attention_cap: float = 0.0
    logits_cap: float = 0.0
    interleaved_rope: bool = False
    qkv_by_head: bool = False
    layer_kinds: tuple[LayerKind, ...] = ()
    conv_size: int = 0
    conv_bias: bool = False
    unpadded: Sizes | None = None

    def window(self, layer: int) -> int:
        """Number of tokens that a layer attends to, the new one included; 0: all."""
        return self.windows[layer] if self.windows else 0

    def kind(self, layer: int) -> LayerKind:
        """Kind of a layer, by the part before its MLP."""
        return self.layer_kinds[layer] if self.layer_kinds else "attention"

    def kind_of(self, tensor: str) -> LayerKind:
        """The kind of the layer that a tensor of the bundle belongs to, such as `layers.0.qkv` or a bias of it."""
        parts = tensor.split(".")
        return self.kind(int(parts[1])) if parts[0] == "layers" else "attention"

    @property
    def lm_head(self) -> str:
        """The name of the LM head's matrix in the weights file."""
        return "embed" if self.tied else "head"

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms of a layer, in the order of the operators' inputs."""
        mlp = () if self.shared_norm else ("mlp_norm",)
        return {
            "before": ("attn_norm", *mlp),
            "after": ("attn_post_norm", "mlp_post_norm"),
            "around": ("attn_norm", "attn_post_norm", *mlp, "mlp_post_norm"),
        }[self.norm_place]

    @property
    def qk_size(self) -> int:
        """The number of channels of q and k of all heads."""
        return (self.num_heads + self.num_kv_heads) * self.head_dim

    @property
    def source(self) -> Decoder:
        """The decoder with the sizes of the checkpoint, not padded."""
        return self if self.unpadded is None else replace(self, **vars(self.unpadded), unpadded=None)

    @property
    def qkv_size(self) -> int:
        """The number of outputs of the joint q, k and v projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    def biased(self, kind: LayerKind) -> dict[str, bool]:
        """True for each matrix with a bias in a layer of a kind, by the matrix's name in the bundle."""
        conv = kind == "conv"
        qkv, o = (self.conv_bias if conv else own for own in (self.qkv_bias, self.output_bias))
        return {"qkv": qkv, "o": o, "up": self.mlp_bias, "down": self.mlp_bias}

    def mixer_shapes(self, kind: LayerKind) -> tuple[tuple[int, int], tuple[int, int]]:
        """The shapes (K, N), input channels and outputs, of the matrices `qkv` and `o` of a layer of a kind."""
        hidden, attended = self.hidden_size, self.num_heads * self.head_dim
        if kind == "conv":
            return (hidden, 3 * hidden), (hidden, hidden)
        return (hidden, self.qkv_size), (attended, hidden)

    @property
    def up_size(self) -> int:
        """The number of outputs of the first MLP matrix, the gate's included."""
        return self.intermediate_size * (2 if self.gated else 1)

    @property
    def weights(self) -> int:
        """The number of weights that a token is multiplied with: those of the layers' matrices and the LM head."""
        mixers = [math.prod(shape) for layer in range(self.num_layers) for shape in self.mixer_shapes(self.kind(layer))]
        mlp = self.hidden_size * (self.up_size + self.intermediate_size)
        return sum(mixers) + self.num_layers * mlp + self.hidden_size * self.vocab_size

    def kv(self, dtype: str) -> KvLayout:
        """The `kv` section of sol_config.json, of a cache of this type."""
        return KvLayout(dtype, windows=self.windows, layers=self.layer_kinds, conv_size=self.conv_size)

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
    "relu2": "relu2",
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
                raise wrong(config, f"model_type: got {brief(kind)}, {expected}")
            return family
    raise CheckpointError(refusal(config, FAMILIES))


def family_of_gguf(metadata: Mapping[str, Any]) -> tuple[Family, GgufForm]:
    """The family of a GGUF file with this metadata, and its GGUF form.

    Raises CheckpointError if its `general.architecture` is unknown.
    """
    architecture = str(metadata.get("general.architecture"))
    forms = [(family, family.gguf) for family in FAMILIES.values() if family.gguf is not None]
    for family, form in forms:
        marked = form.marker is None or f"{architecture}.{form.marker}" in metadata
        if form.architecture == architecture and marked:
            return family, form
    raise CheckpointError(gguf_unknown(metadata, FAMILIES))


def from_hf_config(config: Mapping[str, Any], max_context: int | None = None) -> Decoder:
    """Describes the decoder of a checkpoint.

    Args:
        config: the content of its Hugging Face `config.json`, as `SourceSettings` where it was read elsewhere. Rotary
            settings are in `rope_parameters`, or in the older keys `rope_theta`, `rope_scaling` and
            `partial_rotary_factor`.
        max_context: longest context of the bundle in tokens; by default the model's own.

    Raises:
        CheckpointError: the architecture is unknown, the model has an unsupported feature, or its dimensions are out of
            range.
    """
    family = family_of(config)
    given = {name: config[other] for other, name in family.other_keys.items() if config.get(other) is not None}
    where = where_of(config)
    config = SourceSettings({**family.defaults, **config, **given, "model_type": family.model_type}, where)
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    num_layers = _size(config, "num_hidden_layers", most=MOST_LAYERS)
    intermediate, trained_context = _mlp_width(config, family), _size(config, "max_position_embeddings")
    head_dim = _size(config, "head_dim", hidden // heads)
    kv_heads = _size(config, "num_key_value_heads", heads, most=MOST_KV_HEADS)
    rope_parameters = _rope_parameters(config, family)
    rotary_dim = _rotary_dim(rope_parameters, head_dim)
    context = _context(rope_parameters, trained_context, max_context)
    windows, layer_kinds = _windows(config, family, num_layers), _layer_kinds(config, family, num_layers)
    activation = config.get("hidden_act") or config.get("hidden_activation") or family.default_activation
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise wrong(config, f"hidden_act: got {brief(activation)}, expected one of {', '.join(_ACTIVATIONS)}")
    if family.qk_norm == "none" and _flag(config, "qk_layernorm"):
        raise wrong(
            config,
            "qk_layernorm: got true, expected false; models of this family that normalize q and k are not supported",
        )
    for key in ("num_local_experts", "num_experts"):
        experts = config.get(key)
        if has_experts(experts):
            raise wrong(
                config,
                f"{key}: got {brief(experts)}, not supported: a mixture of experts; nearest that works: "
                f"{nearest(config, FAMILIES)}",
            )
    if _flag(config, "use_bidirectional_attention"):
        raise wrong(
            config,
            "use_bidirectional_attention: got true, expected false; a model that attends to later tokens "
            "embeds texts, and can't generate them",
        )
    normalizes_qk = family.qk_norm != "none" and (family.qk_norm_key is None or _flag(config, family.qk_norm_key))
    parallel = _holds(config, family.parallel_residual)
    ropes, rope_of_layer = _ropes(
        config,
        family,
        rope_parameters,
        windows,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        context=context,
        trained=trained_context,
    )
    windows = tuple(window if window < context else 0 for window in windows)
    if head_dim > LARGEST_HEAD:
        raise wrong(
            config,
            f"head_dim: got {head_dim}, expected at most {LARGEST_HEAD}, the most that the attention "
            f"kernels take; nearest that works: {nearest(config, FAMILIES)}",
        )
    own = Sizes(hidden, head_dim, intermediate)
    sizes = own.padded(heads)
    tied = _flag(config, "tie_word_embeddings")
    if sizes.hidden_size != hidden and family.norm == "layer" and tied:
        raise wrong(
            config,
            f"hidden_size: got {hidden}, expected a multiple of {BLOCK}; models with LayerNorm whose head "
            "is the embedding can't be padded",
        )
    if sizes.head_dim != head_dim and family.norm == "layer" and normalizes_qk:
        raise wrong(
            config,
            f"head_dim: got {head_dim}, expected an even number whose product with the {heads} heads is a "
            f"multiple of {BLOCK}; models with LayerNorm of q and k can't be padded",
        )
    if layer_kinds and heads * sizes.head_dim != sizes.hidden_size:  # `o` has as many inputs in every layer
        raise wrong(
            config,
            f"hidden_size: got {hidden} with {heads} heads of {head_dim}, expected heads that fill the "
            f"hidden state, and a multiple of {BLOCK}; models with short convolutions can't have others",
        )
    if heads % kv_heads or rotary_dim % 2 or not rotary_dim:
        raise wrong(
            config,
            f"got {heads} heads over {kv_heads} KV heads with {rotary_dim} rotated channels, "
            "expected whole groups and an even number of channels",
        )
    most_context = MOST_PAIRS // kv_heads - KvLayout.capacity_step  # a cache's capacity is rounded up to whole steps
    if context > most_context:
        raise wrong(
            config,
            f"max_position_embeddings: got a context of {context} with {kv_heads} KV heads, expected at "
            f"most {most_context}; use --ctx-size {most_context} or less",
        )
    by_width = math.sqrt(hidden) if family.scales_embedding_by_width else 1.0
    return Decoder(
        family=family.model_type,
        hidden_size=sizes.hidden_size,
        num_layers=num_layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=sizes.head_dim,
        intermediate_size=sizes.intermediate_size,
        vocab_size=_size(config, "vocab_size"),
        max_context=context,
        norm=family.norm,
        norm_eps=_epsilon(config, family) * hidden / sizes.hidden_size,
        norm_offset=family.norm_offset,
        norm_place=family.names.norm_place,
        parallel_residual=parallel,
        shared_norm=parallel and (family.names.mlp_norm is None or family.parallel_shares_norm),
        rotary_dim=rotary_dim,
        ropes=ropes,
        rope_of_layer=rope_of_layer,
        windows=windows if any(windows) else (),
        qk_norm=family.qk_norm if normalizes_qk else "none",
        qk_norm_after_rope=family.qk_norm_after_rope,
        qkv_bias=_holds(config, family.qkv_bias),
        output_bias=_holds(config, family.output_bias),
        mlp_bias=_holds(config, family.mlp_bias),
        head_bias=family.head_bias,
        gated=family.gated,
        activation=_ACTIVATIONS[activation],
        tied=tied,
        softmax_scale=_softmax_scale(config, family, head_dim),
        embedding_scale=_factor(config, family.embedding_key, by_width),
        residual_scale=_factor(config, family.residual_key),
        logits_scale=1.0 / _factor(config, family.logits_divisor_key),
        attention_cap=_factor(config, family.attention_cap_key, 0.0),
        logits_cap=_factor(config, family.logits_cap_key, 0.0),
        interleaved_rope=family.interleaved_rope,
        qkv_by_head=family.qkv_by_head,
        layer_kinds=layer_kinds,
        conv_size=_conv_size(config, family) if layer_kinds else 0,
        conv_bias=bool(layer_kinds) and family.conv is not None and _flag(config, family.conv.bias_key),
        unpadded=None if sizes == own else own,
    )


def _mlp_width(config: Mapping[str, Any], family: Family) -> int:
    """The channels between the MLP's two matrices."""
    width, rule = _size(config, family.intermediate_key), family.adjusted_width
    if rule is None or not _flag(config, rule.flag_key):
        return width
    width = 2 * width // 3
    if config.get(rule.factor_key) is not None:
        multiple = _size(config, rule.multiple_key)
        wider = min(_factor(config, rule.factor_key) * width, 2.0 * LARGEST_SIZE)  # refused below, where it is too wide
        width = -(-int(wider) // multiple) * multiple
    if not 1 <= width <= LARGEST_SIZE:
        raise wrong(config, f"{family.intermediate_key}: got an MLP of {width} channels, expected 1 to {LARGEST_SIZE}")
    return width


def _layer_kinds(config: Mapping[str, Any], family: Family, layers: int) -> tuple[LayerKind, ...]:
    """Kinds of the layers, by the part before the MLP; empty if that is attention in all layers."""
    if family.conv is None:
        return ()
    key, kinds = _layer_types(config, layers)
    attending = config.get(family.conv.attention_key)
    if kinds is not None:
        convolves = [kind == _CONV for kind in kinds]
    elif attending is None:
        return ()
    else:
        key = family.conv.attention_key
        right = isinstance(attending, list)
        if not right or not all(type(layer) is int and 0 <= layer < layers for layer in attending):
            raise wrong(config, f"{key}: got {brief(attending)}, expected indices of the {layers} layers")
        convolves = [layer not in attending for layer in range(layers)]
    if all(convolves):
        raise wrong(config, f"{key}: got no layer that attends, expected one or more")
    return tuple("conv" if one else "attention" for one in convolves) if any(convolves) else ()


def _conv_size(config: Mapping[str, Any], family: Family) -> int:
    assert family.conv is not None
    size = _size(config, family.conv.size_key, most=LONGEST_FILTER)
    if size < 2:
        raise wrong(config, f"{family.conv.size_key}: got {size}, expected 2 to {LONGEST_FILTER} tokens")
    return size


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _size(config: Mapping[str, Any], key: str, default: int | None = None, most: int = LARGEST_SIZE) -> int:
    value = config.get(key)
    value = default if value is None else value
    if value is None:
        raise wrong(config, f"key {key} is missing; the checkpoint is incomplete")
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise wrong(config, f"{key}: got {brief(value)}, expected a whole number from 1 to {most}")
    return value


def _holds(config: Mapping[str, Any], rule: bool | str) -> bool:
    """Value of a field such as `Family.qkv_bias` or `Family.parallel_residual` for one checkpoint."""
    return _flag(config, rule) if isinstance(rule, str) else rule


def _flag(config: Mapping[str, Any], key: str) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise wrong(config, f"{key}: got {brief(value)}, expected true or false")
    return bool(value)


def _epsilon(config: Mapping[str, Any], family: Family) -> float:
    value = config.get(family.eps_key)
    value = family.default_eps if value is None else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise wrong(config, f"{family.eps_key}: got {brief(value)}, expected a number from 0 to 1")
    return float(value)


def _rotary_dim(rope_parameters: Mapping[str, Any], head_dim: int) -> int:
    """The number of a head's rotated channels. A proportional rope has all of them, some with a frequency of 0."""
    fraction = _rotary_fraction(rope_parameters)
    if rope_parameters["rope_type"] == "proportional":
        return head_dim
    channels = head_dim * fraction
    return round(channels) if math.isclose(channels, round(channels), rel_tol=1e-9) else int(channels)


def _rotary_fraction(rope_parameters: Mapping[str, Any]) -> float:
    value = rope_parameters["partial_rotary_factor"]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise wrong(
            rope_parameters, f"partial_rotary_factor: got {brief(value)}, expected a number above 0 and up to 1"
        )
    return float(value)


def _factor(config: Mapping[str, Any], key: str | None, default: float = 1.0) -> float:
    """A factor or cap of the config, above 0; `default` where the family or the config has none."""
    value = None if key is None else config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise wrong(config, f"{key}: got {brief(value)}, expected a number above 0")
    return float(value)


def _softmax_scale(config: Mapping[str, Any], family: Family, head_dim: int) -> float:
    if family.softmax_key is not None:
        return _factor(config, family.softmax_key)
    return 1.0 / math.sqrt(_factor(config, family.softmax_size_key, float(head_dim)))


def _rope_parameters(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """The rotary settings of layers that attend to all tokens, in the newer form of `rope_parameters`.

    `partial_rotary_factor` is included.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise wrong(config, f"rope settings: got {brief(given)}, expected an object")
    by_kind = {kind: given[kind] for kind in ("full_attention", _SLIDING_ATTENTION) if given.get(kind) is not None}
    for kind in ("full_attention", *by_kind) if by_kind else ():
        if not isinstance(given.get(kind), Mapping):
            got = f"rope settings: {kind}: got {brief(given.get(kind))}"
            raise wrong(config, f"{got}, expected an object; complete the checkpoint's config")
    given = by_kind.get("full_attention", given)
    return _complete_rope(config, family, given)


def _complete_rope(config: Mapping[str, Any], family: Family, given: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings with what the config says elsewhere, or the family does."""
    parameters = SourceSettings(given, where_of(config))
    config = {**config, **{new: config[old] for old, new in family.rope_keys.items() if config.get(old) is not None}}
    parameters.setdefault("rope_type", parameters.pop("type", None) or "default")
    kind = parameters["rope_type"]
    if kind == "dynamic" and parameters.get("alpha"):  # a stretched base, the same for every length of text
        kind = "ntk_alpha"
    if isinstance(kind, str):  # anything else is refused by make_rope
        parameters["rope_type"] = family.rope_types.get(kind, kind)
    base = config.get("rope_theta")
    parameters.setdefault("rope_theta", 10000.0 if base is None else base)
    fraction = config.get("partial_rotary_factor")
    parameters.setdefault("partial_rotary_factor", family.default_rotary_fraction if fraction is None else fraction)
    # where neither says it, transformers takes the model's own context
    original = config.get("original_max_position_embeddings") or config.get("max_position_embeddings")
    if parameters["rope_type"] in ("llama3", "yarn", "longrope") and original:
        parameters.setdefault("original_max_position_embeddings", original)
    return parameters


def _ropes(
    config: Mapping[str, Any],
    family: Family,
    parameters: Mapping[str, Any],
    windows: tuple[int, ...],
    *,
    head_dim: int,
    rotary_dim: int,
    context: int,
    trained: int,
) -> tuple[tuple[Rope, ...], tuple[int, ...]]:
    """The rotary embeddings of a model, and which of them each layer has.

    Args:
        parameters: the settings of layers that attend to all tokens.
        windows: the layers' windows as the config has them, 0 for none.
        head_dim, rotary_dim: channels of a head, and how many of them are rotated.
        context, trained: the bundle's longest context, and the checkpoint's.
    """
    full = make_rope(parameters, rotary_dim, context, trained)
    local = full
    if family.rope_by_kind:
        given = config.get("rope_parameters")
        of_kind = given.get("sliding_attention") if isinstance(given, Mapping) else None
        if not isinstance(of_kind, Mapping):
            base = config.get(family.local_theta_key) if family.local_theta_key else parameters["rope_theta"]
            of_kind = {"rope_type": "default", "rope_theta": base}
        of_kind = _complete_rope(config, family, of_kind)
        local_dim = _rotary_dim(of_kind, head_dim)
        if local_dim != rotary_dim:
            raise wrong(
                config,
                f"rope settings: sliding_attention: got {local_dim} rotated channels, expected "
                f"{rotary_dim} as in full_attention; layers that rotate other channels are not supported",
            )
        local = make_rope(of_kind, rotary_dim, context, trained)
    none = Rope((NO_ROTATION,) * (rotary_dim // 2), 1.0)
    ropes = [
        (local if window else full) if rotates else none
        for rotates, window in zip(_rotating_layers(config, family, windows), windows, strict=True)
    ]
    distinct = tuple(dict.fromkeys(ropes))
    return distinct, tuple(distinct.index(rope) for rope in ropes)


def _rotating_layers(config: Mapping[str, Any], family: Family, windows: tuple[int, ...]) -> list[bool]:
    """Marks the layers that have a rotary embedding."""
    layers = len(windows)
    if family.rope_if is not None and config.get(family.rope_if[0]) != family.rope_if[1]:
        return [False] * layers
    if family.nope_every is not None:
        flags = config.get("no_rope_layers")
        if flags is None:
            every = _size(config, *family.nope_every)
            return [(layer + 1) % every != 0 for layer in range(layers)]
        if not isinstance(flags, list) or len(flags) != layers or not all(flag in (0, 1) for flag in flags):
            raise wrong(config, f"no_rope_layers: got {brief(flags)}, expected 0 or 1 for each layer")
        return [bool(flag) for flag in flags]
    if family.nope_full_layers and config.get("sliding_window") is not None:
        return [window > 0 for window in windows]
    return [True] * layers


_FULL_ATTENTION = ("full_attention", "attention")
_SLIDING_ATTENTION, _CONV = "sliding_attention", "conv"


def _windows(config: Mapping[str, Any], family: Family, layers: int) -> tuple[int, ...]:
    """The window of every layer in tokens, 0 where it attends to all."""
    (key, kinds), rule = _layer_types(config, layers), family.windows
    other = _SLIDING_ATTENTION if family.conv is None else _CONV
    for kind in kinds or ():
        if what := layer_trait([kind]):
            raise wrong(
                config,
                f"{key}: got {brief(kind)}, not supported: {what}; nearest that works: {nearest(config, FAMILIES)}",
            )
        if kind not in (*_FULL_ATTENTION, other):
            raise wrong(config, f"{key}: got {brief(kind)}, expected full_attention or {other}")
    wanted = config.get("use_sliding_window")
    used = _flag(config, "use_sliding_window") if rule.opt_in or wanted is not None else True
    if not config.get("sliding_window") or not used:
        return (0,) * layers
    window = _size(config, "sliding_window")
    if kinds is not None:
        return tuple(window * (kind == _SLIDING_ATTENTION) for kind in kinds)
    if rule.full_every is not None:
        key, default = rule.full_every
        pattern = config.get(key)
        if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:  # local and global layers in turn
            return tuple(window * (pattern[layer % len(pattern)] == "L") for layer in range(layers))
        every = _size(config, key, default)
        return tuple(window * ((layer + 1) % every != 0) for layer in range(layers))
    if family.nope_every is not None:  # layers with a rotary embedding have no window
        rotating = _rotating_layers(config, family, (0,) * layers)
        return tuple(window * (not rotates) for rotates in rotating)
    first = 0
    if rule.first_key is not None and config.get(rule.first_key) is not None:
        first = config[rule.first_key]
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise wrong(config, f"{rule.first_key}: got {brief(first)}, expected a layer's index")
    return tuple(window * (layer >= first) for layer in range(layers))


def _layer_types(config: Mapping[str, Any], layers: int) -> tuple[str, list[Any] | None]:
    """The list of the layers' kinds, or None if config.json has none, and the key that it stands under."""
    key = next((key for key in ("layer_types", "layers_block_type") if config.get(key) is not None), "layer_types")
    kinds = config.get(key)
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != layers):
        raise wrong(config, f"{key}: got {brief(kinds)}, expected one entry for each layer")
    return key, kinds


def short_context(config: Mapping[str, Any]) -> int | None:
    """The longest context at which a model with longrope has its short factors; None for other models."""
    parameters = _rope_parameters(config, family_of(config))
    if parameters["rope_type"] != "longrope" or not parameters.get("original_max_position_embeddings"):
        return None
    return _size(parameters, "original_max_position_embeddings")


def scaled_from(config: Mapping[str, Any]) -> int | None:
    """The context that bundles of a model end at, as it scales q by the position from there on; None if it has more."""
    family = family_of(config)
    config = SourceSettings({**family.defaults, **config}, where_of(config))
    trained = _size(config, "max_position_embeddings")
    limit = _unscaled(_rope_parameters(config, family), trained)
    return limit if limit < trained else None


def _unscaled(rope_parameters: Mapping[str, Any], trained: int) -> int:
    """The longest context in tokens whose positions leave q as it is."""
    original = rope_parameters.get("original_max_position_embeddings")
    if original is None or not rope_parameters.get("llama_4_scaling_beta"):
        return trained
    return min(trained, _size(rope_parameters, "original_max_position_embeddings"))


def _context(rope_parameters: Mapping[str, Any], trained: int, wanted: int | None) -> int:
    """The bundle's longest context in tokens."""
    most = _unscaled(rope_parameters, trained)
    if wanted is None:
        return most
    if not 1 <= wanted <= most:
        reason = "the model's own context"
        if most < trained:
            reason = (
                f"as positions from {most} on scale q (llama_4_scaling_beta), which is not supported; use -c {most}"
            )
        raise CheckpointError(f"maximum context: got {wanted}, expected 1 to {most}, {reason}")
    return wanted
