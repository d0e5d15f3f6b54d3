"""Model families as data: one entry a family, and nothing else in the code names one.

To add a family whose decoder is like those here, that is, has the fields of `Decoder` in decoder.py:
1. Add a `Family(...)` entry to `FAMILIES` below. The docstring of `Family` explains each field.
2. Add a tiny checkpoint to `PRESETS` in runtime_tests/helpers/random_checkpoint.py, and its name to `FAMILY_PRESETS`.
3. If its GGUF files name a new pre-tokenizer, add that to `_PRE_TOKENIZERS` in gguf/tokenizer.py.
4. Optional: add a recipe, models/NAME.json, which makes NAME an alias for `sol-rt pull` and `sol-rt export`.
5. Run `sol-rt export`. It compares the graph with the family's implementation in transformers and fails if they differ.

A family outside the envelope, for example one that normalizes q and k, needs more: a field of `Decoder`, its tensors in
checkpoint.py, the function body in graphs/layer.py, the CPU and CUDA kernels under sol_rt/ops, the reference model in
train/reference_model, runtime_tests/helpers/random_decoder.py, and section 3 of docs/bundle.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class TensorNames:
    """Names of a checkpoint's modules, without `.weight` or `.bias`; `{i}` stands for the index of the layer.

    Where a field holds several names, the bundle joins their rows in this order.
    """

    embed: str
    final_norm: str
    head: str
    attn_norm: str
    mlp_norm: str | None
    """None: the block has one norm, which attention and MLP share."""
    qkv: tuple[str, ...]
    o: str
    up: tuple[str, ...]
    """Of a gated MLP the gate comes first."""
    down: str


@dataclass(frozen=True, kw_only=True)
class GgufForm:
    """How llama.cpp writes checkpoints of a family.

    Attributes:
        architecture: the file's `general.architecture`, which also starts the names of its metadata keys.
        names: its modules, field by field the counterparts of `Family.names`.
        interleaves_qk: llama.cpp reorders the rows of q and k for its interleaved rotary embedding; the reader undoes
            that.
        config_keys: further entries of the HF config: config.json key -> GGUF keys without the architecture, of which
            the first that the file has is copied. The entry is left out where the file has none of them.
        pre_tokenizer: what `tokenizer.ggml.pre` would say in files that lack it, as older ones do. None: models of the
            family split words in different ways, so such a file is refused.
    """

    architecture: str
    names: TensorNames
    interleaves_qk: bool = False
    config_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pre_tokenizer: str | None = None


@dataclass(frozen=True, kw_only=True)
class Family:
    """What all checkpoints of one architecture have in common. What differs between them is in their config.json.

    Attributes:
        architecture: class name in transformers, which `architectures` of config.json gives.
        model_type: `model_type` of config.json; also the family's key in `FAMILIES`.
        names: modules of a checkpoint folder.
        gguf: the same for GGUF files. None: the family has no GGUF form of its own.
        norm: `rms` (weight only) or `layer` (weight and bias).
        eps_key: config.json key of the number added to a norm's variance.
        gated: the MLP computes act(gate) * up; otherwise act(up).
        parallel_residual: attention and MLP of a block read the same input.
        qkv_bias, output_bias, mlp_bias, head_bias: whether the q, k and v projections, the attention's output
            projection, both MLP matrices and the LM head have a bias. A string is the config.json key that says so for
            each checkpoint, absent meaning no bias. GGUF files have no such key; there the tensors say it.
        rope_types: older names of rotary scalings in this family's configs -> the names that rope.py knows.
        default_activation, default_rotary_fraction, default_eps: what holds where config.json does not say. The
            rotary fraction is the share of a head's channels that are rotated.
    """

    architecture: str
    model_type: str
    names: TensorNames
    gguf: GgufForm | None
    norm: Literal["rms", "layer"]
    eps_key: str
    gated: bool
    parallel_residual: bool = False
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    head_bias: bool = False
    rope_types: Mapping[str, str] = field(default_factory=dict)
    default_activation: str = "silu"
    default_rotary_fraction: float = 1.0
    default_eps: float = 1e-6


_LAYER = "model.layers.{i}."
_BLOCK = "blk.{i}."

# separate q, k and v, gate and up
_SPLIT = TensorNames(
    embed="model.embed_tokens",
    final_norm="model.norm",
    head="lm_head",
    attn_norm=_LAYER + "input_layernorm",
    mlp_norm=_LAYER + "post_attention_layernorm",
    qkv=tuple(_LAYER + f"self_attn.{part}_proj" for part in "qkv"),
    o=_LAYER + "self_attn.o_proj",
    up=(_LAYER + "mlp.gate_proj", _LAYER + "mlp.up_proj"),
    down=_LAYER + "mlp.down_proj",
)
_GGUF_SPLIT = TensorNames(
    embed="token_embd",
    final_norm="output_norm",
    head="output",
    attn_norm=_BLOCK + "attn_norm",
    mlp_norm=_BLOCK + "ffn_norm",
    qkv=tuple(_BLOCK + f"attn_{part}" for part in "qkv"),
    o=_BLOCK + "attn_output",
    up=(_BLOCK + "ffn_gate", _BLOCK + "ffn_up"),
    down=_BLOCK + "ffn_down",
)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family(
            architecture="LlamaForCausalLM",
            model_type="llama",
            names=_SPLIT,
            gguf=GgufForm(architecture="llama", names=_GGUF_SPLIT, interleaves_qk=True),
            norm="rms",
            eps_key="rms_norm_eps",
            gated=True,
            qkv_bias="attention_bias",
            output_bias="attention_bias",
            mlp_bias="mlp_bias",
        ),
        Family(
            architecture="Qwen2ForCausalLM",
            model_type="qwen2",
            names=_SPLIT,
            gguf=GgufForm(architecture="qwen2", names=_GGUF_SPLIT, pre_tokenizer="qwen2"),
            norm="rms",
            eps_key="rms_norm_eps",
            gated=True,
            qkv_bias=True,
        ),
        Family(
            architecture="Phi3ForCausalLM",
            model_type="phi3",
            names=TensorNames(
                embed="model.embed_tokens",
                final_norm="model.norm",
                head="lm_head",
                attn_norm=_LAYER + "input_layernorm",
                mlp_norm=_LAYER + "post_attention_layernorm",
                qkv=(_LAYER + "self_attn.qkv_proj",),
                o=_LAYER + "self_attn.o_proj",
                up=(_LAYER + "mlp.gate_up_proj",),
                down=_LAYER + "mlp.down_proj",
            ),
            gguf=GgufForm(
                architecture="phi3",
                names=TensorNames(
                    embed="token_embd",
                    final_norm="output_norm",
                    head="output",
                    attn_norm=_BLOCK + "attn_norm",
                    mlp_norm=_BLOCK + "ffn_norm",
                    qkv=(_BLOCK + "attn_qkv",),
                    o=_BLOCK + "attn_output",
                    up=(_BLOCK + "ffn_up",),
                    down=_BLOCK + "ffn_down",
                ),
                config_keys={
                    "sliding_window": ("attention.sliding_window",),
                    "original_max_position_embeddings": ("rope.scaling.original_context_length", "context_length"),
                },
            ),
            norm="rms",
            eps_key="rms_norm_eps",
            gated=True,
            rope_types={"su": "longrope", "yarn": "longrope"},
            default_eps=1e-5,
        ),
        Family(
            architecture="PhiForCausalLM",
            model_type="phi",
            names=TensorNames(
                embed="model.embed_tokens",
                final_norm="model.final_layernorm",
                head="lm_head",
                attn_norm=_LAYER + "input_layernorm",
                mlp_norm=None,
                qkv=tuple(_LAYER + f"self_attn.{part}_proj" for part in "qkv"),
                o=_LAYER + "self_attn.dense",
                up=(_LAYER + "mlp.fc1",),
                down=_LAYER + "mlp.fc2",
            ),
            gguf=GgufForm(
                architecture="phi2",
                names=TensorNames(
                    embed="token_embd",
                    final_norm="output_norm",
                    head="output",
                    attn_norm=_BLOCK + "attn_norm",
                    mlp_norm=None,
                    qkv=tuple(_BLOCK + f"attn_{part}" for part in "qkv"),
                    o=_BLOCK + "attn_output",
                    up=(_BLOCK + "ffn_up",),
                    down=_BLOCK + "ffn_down",
                ),
                pre_tokenizer="phi-2",
            ),
            norm="layer",
            eps_key="layer_norm_eps",
            gated=False,
            parallel_residual=True,
            qkv_bias=True,
            output_bias=True,
            mlp_bias=True,
            head_bias=True,
            default_activation="gelu_new",
            default_rotary_fraction=0.5,
            default_eps=1e-5,
        ),
    )
}
"""By `model_type`."""
