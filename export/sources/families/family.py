"""The fields that describe a model family. Each family is an entry of data; no code asks for a family's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

NormPlace = Literal["before", "after", "around"]
QkNorm = Literal["none", "head", "row"]
LayerKind = Literal["attention", "conv"]
"""`conv`: a gated short convolution stands in the place of attention."""


@dataclass(frozen=True, kw_only=True)
class TensorNames:
    """Names of a checkpoint's modules, without `.weight` or `.bias`; `{i}` stands for the index of the layer.

    Where a field holds several names, the bundle joins their rows in this order.
    """

    embed: str
    final_norm: str
    head: str
    attn_norm: str | None
    """None: attention's input is not normalized."""
    mlp_norm: str | None
    """None: the MLP's input is not normalized, or a parallel block has one norm, which attention and MLP share."""
    attn_post_norm: str | None = None
    """The norm of attention's output, before it is added to the residual."""
    mlp_post_norm: str | None = None
    """The same for the MLP's output."""
    qkv: tuple[str, ...]
    q_norm: str | None = None
    """The norm of q. `{h}` stands for the index of the head where every head has a norm of its own."""
    k_norm: str | None = None
    o: str
    up: tuple[str, ...]
    """Of a gated MLP the gate comes first."""
    down: str
    conv_in: str = ""
    """Of layers of the kind `conv`: the projection to the gates B and C and to the filtered channels, in this order."""
    conv: str = ""
    """The filters, one a channel."""
    conv_out: str = ""

    @property
    def norm_place(self) -> NormPlace:
        """Place of the norms: at the inputs of attention and MLP, at their outputs, or both."""
        if self.attn_post_norm is None:
            return "before"
        return "after" if self.attn_norm is None else "around"

    def matrices(self, kind: LayerKind) -> dict[str, tuple[str, ...]]:
        """The modules of a layer's matrices, by the matrices' names in the bundle."""
        mixer = {"attention": (self.qkv, (self.o,)), "conv": ((self.conv_in,), (self.conv_out,))}[kind]
        return dict(zip(("qkv", "o", "up", "down"), (*mixer, self.up, (self.down,)), strict=True))


@dataclass(frozen=True, kw_only=True)
class GgufForm:
    """Form of a family's checkpoints by llama.cpp.

    Attributes:
        architecture: the file's `general.architecture`, which also starts the names of its metadata keys.
        names: its modules, field by field the counterparts of `Family.names`.
        interleaves_qk: llama.cpp reorders the rows of q and k for its interleaved rotary embedding; the reader undoes
            that.
        norm_offset: number that llama.cpp adds to the weights of norms; the reader subtracts it.
        config_keys: further entries of the HF config: config.json key -> GGUF keys without the architecture, of which
            the first that the file has is copied. The entry is left out where the file has none of them.
        config_values: entries of the HF config that hold for all files of the form, unless `config_keys` has others.
        marker: GGUF key without the architecture, which separates this family from others of the same architecture.
        softmax_by_width_layers: number of layers of the model whose `Family.softmax_size_key` is the hidden size
            divided by the heads. In others it is the head size. llama.cpp tells that model by its layers, too.
        pre_tokenizer: what `tokenizer.ggml.pre` would say in files that lack it, as older ones do. None: models of the
            family split words in different ways, so such a file is refused.
        marks_attention: the number of KV heads is a list with an entry for each layer, 0 in those of the kind `conv`.
    """

    architecture: str
    names: TensorNames
    interleaves_qk: bool = False
    norm_offset: float = 0.0
    config_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    config_values: Mapping[str, Any] = field(default_factory=dict)
    marker: str | None = None
    softmax_by_width_layers: int | None = None
    pre_tokenizer: str | None = None
    marks_attention: bool = False


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Layers that have the config's `sliding_window`, where the config has no `layer_types`.

    Attributes:
        full_every: every layer of this number attends to all tokens: the config.json key that says it, and what holds
            where it does not. None: all layers have the window, from layer `first_key` on.
        first_key: config.json key of the first layer with a window.
        opt_in: the window counts only if `use_sliding_window` is true. Otherwise it counts unless that is false.
    """

    full_every: tuple[str, int] | None = None
    first_key: str | None = None
    opt_in: bool = False


@dataclass(frozen=True, kw_only=True)
class ShortConv:
    """The gated short convolutions of a family, which `layer_types` of config.json calls `conv`.

    Attributes:
        size_key: config.json key of the number of tokens that a filter reads, the new one included.
        bias_key: config.json key of the flag that says whether both projections and the filters have a bias.
        attention_key: where config.json has no `layer_types`, its key of the list of layers that attend; all others
            have a convolution.
    """

    size_key: str
    bias_key: str
    attention_key: str


@dataclass(frozen=True, kw_only=True)
class AdjustedWidth:
    """An MLP that is narrower than config.json says: 2/3 of that width, times a factor, rounded up.

    Attributes:
        flag_key: config.json key of the flag that says whether the width is adjusted at all.
        factor_key: that of the factor. Where it is null, the width is not rounded up either.
        multiple_key: that of the number whose multiple the width becomes.
    """

    flag_key: str
    factor_key: str
    multiple_key: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """Properties of all checkpoints of one architecture. Differences between checkpoints are in their config.json.

    Attributes:
        architecture: class name in transformers, which `architectures` of config.json gives.
        model_type: `model_type` of config.json; also the family's key in `FAMILIES`.
        names: modules of a checkpoint folder.
        gguf: the same for GGUF files. None: the family has no GGUF form of its own.
        defaults: what holds where config.json lacks a key, as in the family's configuration class in transformers.
        norm: `rms` (weight only) or `layer` (weight and bias).
        norm_offset: number added to the weights of norms.
        eps_key: config.json key of the number added to a norm's variance.
        qk_norm: q and k are normalized: every `head` of them, or the whole `row` of all heads. The norm is that of the
            blocks, without a bias.
        qk_norm_key: config.json key of the flag that says whether they are. None: always.
        qk_norm_after_rope: they are normalized after the rotary embedding.
        gated: the MLP computes act(gate) * up; otherwise act(up).
        parallel_residual: attention and MLP of a block read the same input. A string is the config.json key that says
            so for each checkpoint.
        parallel_shares_norm: in parallel blocks they also share the norm.
        qkv_bias, output_bias, mlp_bias, head_bias: whether the q, k and v projections, the attention's output
            projection, both MLP matrices and the LM head have a bias. A string is the config.json key that says so for
            each checkpoint, absent meaning no bias. GGUF files have no such key; there the tensors say it.
        qkv_by_head: the rows of the one q, k and v matrix are q, k and v of the first head, then those of the next.
        interleaved_rope: the rotary embedding rotates neighbouring channels, not those of a head's two halves.
        intermediate_key: config.json key of the MLP's width.
        adjusted_width: how the MLP's width follows from that number; None: it is that number.
        conv: which layers have a gated short convolution instead of attention; None: none.
        other_keys: other names of config.json keys -> the names here. Where config.json has both, the other one counts.
        scales_embedding_by_width: embedding rows are multiplied by the square root of the hidden size.
        embedding_key, softmax_key, residual_key: config.json keys of the factors on embedding rows, on the products of
            q and k, and on what a block adds to the residual.
        softmax_size_key: config.json key of a number whose inverse square root is the factor on the products of q and
            k, by default the head size.
        logits_divisor_key: config.json key of the number that logits are divided by.
        attention_cap_key, logits_cap_key: config.json keys of the soft caps c, c * tanh(x / c), on the products of q
            and k and on the logits.
        windows: which layers have a sliding window.
        rope_by_kind: layers with a window have rotary settings of their own. Where config.json does not give them, they
            are unscaled, with the base of `local_theta_key`.
        local_theta_key: config.json key of that base. None: the base of the other layers.
        nope_full_layers: where config.json has a window, layers without one have no rotary embedding.
        nope_every: every layer of this number has no rotary embedding: the config.json key that says it, and what
            holds where it does not. A list `no_rope_layers` (0: none) in config.json goes before.
        rope_if: config.json key and the value with which the model has a rotary embedding at all.
        rope_keys: older names of rotary settings -> their names here.
        rope_types: older names of rotary scalings in this family's configs -> the names that rope.py knows.
        default_activation, default_rotary_fraction, default_eps: what holds where config.json does not say. The
            rotary fraction is the share of a head's channels that are rotated.
    """

    architecture: str
    model_type: str
    names: TensorNames
    gguf: GgufForm | None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    norm: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    eps_key: str = "rms_norm_eps"
    qk_norm: QkNorm = "none"
    qk_norm_key: str | None = None
    qk_norm_after_rope: bool = False
    gated: bool = True
    parallel_residual: bool | str = False
    parallel_shares_norm: bool = False
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    head_bias: bool = False
    qkv_by_head: bool = False
    interleaved_rope: bool = False
    intermediate_key: str = "intermediate_size"
    adjusted_width: AdjustedWidth | None = None
    conv: ShortConv | None = None
    other_keys: Mapping[str, str] = field(default_factory=dict)
    scales_embedding_by_width: bool = False
    embedding_key: str | None = None
    softmax_key: str | None = None
    softmax_size_key: str | None = None
    residual_key: str | None = None
    logits_divisor_key: str | None = None
    attention_cap_key: str | None = None
    logits_cap_key: str | None = None
    windows: Windows = Windows()
    rope_by_kind: bool = False
    local_theta_key: str | None = None
    nope_full_layers: bool = False
    nope_every: tuple[str, int] | None = None
    rope_if: tuple[str, str] | None = None
    rope_keys: Mapping[str, str] = field(default_factory=dict)
    rope_types: Mapping[str, str] = field(default_factory=dict)
    default_activation: str = "silu"
    default_rotary_fraction: float = 1.0
    default_eps: float = 1e-6
