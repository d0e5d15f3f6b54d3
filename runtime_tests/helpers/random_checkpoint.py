"""Checkpoints of random weights in Hugging Face's format: for tests, for trying things out, for measuring an export.

    python runtime_tests/helpers/random_checkpoint.py FOLDER --preset tiny-llama

The folder has config.json, model.safetensors, generation_config.json, tokenizer_config.json and a tokenizer.json of its
own (byte-level BPE with a chat template). Weights are written piece by piece: a 2.7B checkpoint needs little memory.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sol_rt.export.sources.decoder import Decoder, from_hf_config
from sol_rt.export.sources.families import FAMILIES

_PIECE = 1 << 22  # values drawn at once
_TEXT = """The quick brown fox jumps over the lazy dog. A language model reads the text so far and says what may come
next; the more it computes, the better it knows. Once upon a time there was a small model with a small budget, and
every token had its price. It learned where to spend and where to save, and the story went on and on and on."""
_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class RandomCheckpoint:
    """Sizes as in config.json; `family` is a key of FAMILIES, `dtype` float32 or float16, `config` has more entries."""

    family: str
    hidden_size: int = 64
    num_layers: int = 2
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 96
    vocab_size: int = 320
    max_context: int = 1024
    tied: bool = True
    rotary_fraction: float = 1.0
    dtype: str = "float32"
    config: Mapping[str, Any] = field(default_factory=dict)


_YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 256,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
_GRANITE = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.1,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
    "attention_bias": False,
}
# the tiny ones avoid sizes of 128, at which WebGPU's products round activations more coarsely than the CPU's
PRESETS = {
    "tiny-llama": RandomCheckpoint("llama"),
    "tiny-qwen2": RandomCheckpoint("qwen2", num_kv_heads=1, tied=False),
    "tiny-phi3": RandomCheckpoint("phi3", tied=False),
    "tiny-phi": RandomCheckpoint("phi", num_kv_heads=4, intermediate_size=224, tied=False, rotary_fraction=0.5),
    "tiny-qwen3": RandomCheckpoint("qwen3", config={"head_dim": 32, "attention_bias": False}),
    "tiny-gemma3": RandomCheckpoint(
        "gemma3_text",
        num_layers=3,
        config={
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 24,
            "sliding_window_pattern": 3,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
        },
    ),
    "tiny-gemma2": RandomCheckpoint(
        "gemma2",
        config={
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "tiny-smollm3": RandomCheckpoint(
        "smollm3", num_layers=4, config={"sliding_window": None, "use_sliding_window": False}
    ),
    "tiny-mistral": RandomCheckpoint("mistral", tied=False, config={"sliding_window": 24}),
    "tiny-ministral3": RandomCheckpoint(
        "ministral3",
        tied=False,
        config={
            "head_dim": 16,
            "original_max_position_embeddings": 256,
            "rope_parameters": {**_YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
        },
    ),
    "tiny-granite": RandomCheckpoint("granite", config=_GRANITE),
    "tiny-granite4": RandomCheckpoint(
        "granitemoehybrid",
        config={
            **_GRANITE,
            "shared_intermediate_size": 96,
            "num_local_experts": 0,
            "position_embedding_type": "rope",
            "layer_types": ["attention", "attention"],
        },
    ),
    "tiny-olmo2": RandomCheckpoint("olmo2", tied=False),
    "tiny-olmo3": RandomCheckpoint(
        "olmo3",
        tied=False,
        config={
            "sliding_window": 24,
            "layer_types": ["sliding_attention", "full_attention"],
            "original_max_position_embeddings": 256,
            "rope_scaling": {key: value for key, value in _YARN.items() if key != "rope_theta"},
            "rope_theta": 5e5,
        },
    ),
    "tiny-exaone4": RandomCheckpoint(
        "exaone4", tied=False, config={"head_dim": 16, "sliding_window": 24, "sliding_window_pattern": 2}
    ),
    "tiny-ernie": RandomCheckpoint("ernie4_5", config={"head_dim": 32, "use_bias": False}),
    "tiny-hunyuan": RandomCheckpoint(
        "hunyuan_v1_dense",
        config={
            "head_dim": 16,
            "rope_scaling": {"type": "dynamic", "alpha": 128.0, "factor": 1.0, "beta_fast": 32, "beta_slow": 1},
        },
    ),
    "tiny-stablelm": RandomCheckpoint(
        "stablelm", tied=False, rotary_fraction=0.25, config={"use_qkv_bias": True, "qk_layernorm": True}
    ),
    "tiny-gpt-neox": RandomCheckpoint(
        "gpt_neox", num_kv_heads=4, tied=False, rotary_fraction=0.25, config={"rotary_pct": 0.25}
    ),
    "tiny-arcee": RandomCheckpoint("arcee", tied=False),
    "tiny-lfm2": RandomCheckpoint(
        "lfm2",
        num_layers=4,
        intermediate_size=96,
        config={
            "block_ff_dim": 136,
            "block_multiple_of": 32,
            "conv_L_cache": 3,
            "full_attn_idxs": [1, 3],
            "rope_theta": 1e6,
        },
    ),
    # sizes that are no multiples of 32
    "odd-gemma3": RandomCheckpoint(
        "gemma3_text", 60, 2, 3, 1, 90, config={"head_dim": 18, "sliding_window": 24, "sliding_window_pattern": 2}
    ),
    "odd-olmo2": RandomCheckpoint("olmo2", 72, 2, 3, 1, 100, tied=False),
    "odd-ernie": RandomCheckpoint("ernie4_5", 60, 2, 3, 1, 90, config={"head_dim": 20, "use_bias": False}),
    "odd-lfm2": RandomCheckpoint(
        "lfm2",
        56,
        3,
        4,
        2,
        90,
        config={
            "block_auto_adjust_ff_dim": False,
            "conv_bias": True,
            "conv_L_cache": 4,
            "layer_types": ["conv", "full_attention", "conv"],
        },
    ),
    "odd-gpt-neox": RandomCheckpoint(
        "gpt_neox", 48, 2, 4, 4, 100, tied=False, rotary_fraction=0.5, config={"rotary_pct": 0.5}
    ),
    "phi-2": RandomCheckpoint(
        "phi", 2560, 32, 32, 32, 10240, 51200, 2048, tied=False, rotary_fraction=0.4, dtype="float16"
    ),
}


def write_random_checkpoint(folder: Path, shape: RandomCheckpoint, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder`, made where it is missing, and returns it; equal seeds give equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_ids = _write_tokenizer(folder, shape)
    config = _config(shape, tokenizer_ids)
    _write_json(folder / "config.json", config)
    end = [tokenizer_ids["<|endoftext|>"], tokenizer_ids["<|im_end|>"]]
    generation = {"bos_token_id": end[0], "eos_token_id": end, "pad_token_id": end[0], "do_sample": False}
    _write_json(folder / "generation_config.json", generation)
    _write_weights(
        folder / "model.safetensors", from_hf_config(config).source, shape.dtype, np.random.default_rng(seed)
    )
    return folder


def _config(shape: RandomCheckpoint, ids: dict[str, int]) -> dict[str, Any]:
    family = FAMILIES[shape.family]
    config = {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "intermediate_size": shape.intermediate_size,
        "vocab_size": shape.vocab_size,
        "max_position_embeddings": shape.max_context,
        "original_max_position_embeddings": shape.max_context,
        "hidden_act": family.default_activation,
        family.eps_key: 1e-5,
        "partial_rotary_factor": shape.rotary_fraction,
        "rope_theta": 10000.0,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": ids["<|endoftext|>"],
        "eos_token_id": ids["<|endoftext|>"],
        "pad_token_id": ids["<|endoftext|>"],
        "torch_dtype": shape.dtype,
        **shape.config,
    }
    # Gemma's configuration class has its own name for it
    return config | {"hidden_activation": config["hidden_act"]} if family.scales_embedding_by_width else config


def _write_tokenizer(folder: Path, shape: RandomCheckpoint) -> dict[str, int]:
    """Trains the tokenizer on a few lines; returns the ids of its special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=shape.vocab_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([_TEXT], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.max_context,
        "chat_template": _CHAT_TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", settings)
    return {token: tokenizer.get_vocab()[token] for token in _SPECIAL}


def _tensor_shapes(decoder: Decoder) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the checkpoint, layer by layer."""
    names, hidden, inner = FAMILIES[decoder.family].names, decoder.hidden_size, decoder.num_heads * decoder.head_dim
    inner_kv = decoder.num_kv_heads * decoder.head_dim

    def linear(name: str, outputs: int, inputs: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (outputs, inputs)
        if bias:
            yield f"{name}.bias", (outputs,)

    def norm(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", (hidden,)
        if decoder.norm == "layer":
            yield f"{name}.bias", (hidden,)

    yield f"{names.embed}.weight", (decoder.vocab_size, hidden)
    for layer in range(decoder.num_layers):

        def at(name: str, layer: int = layer) -> str:
            return name.replace("{i}", str(layer))

        for kind in decoder.norms:
            yield from norm(at(getattr(names, kind)))
        if decoder.kind(layer) == "conv":
            yield from linear(at(names.conv_in), 3 * hidden, hidden, decoder.conv_bias)
            yield f"{at(names.conv)}.weight", (hidden, 1, decoder.conv_size)
            if decoder.conv_bias:
                yield f"{at(names.conv)}.bias", (hidden,)
            yield from linear(at(names.conv_out), hidden, hidden, decoder.conv_bias)
        elif decoder.qk_norm != "none":
            for name, size in ((names.q_norm, inner), (names.k_norm, inner_kv)):
                for head in range(size // decoder.head_dim if "{h}" in name else 1):
                    length = decoder.head_dim if decoder.qk_norm == "head" else size
                    yield f"{at(name).replace('{h}', str(head))}.weight", (length,)
        rows = [inner, inner_kv, inner_kv] if len(names.qkv) == 3 else [decoder.qkv_size]
        if decoder.kind(layer) == "attention":
            for name, outputs in zip(names.qkv, rows, strict=True):
                yield from linear(at(name), outputs, hidden, decoder.qkv_bias)
            yield from linear(at(names.o), hidden, inner, decoder.output_bias)
        for name in names.up:
            yield from linear(at(name), decoder.up_size // len(names.up), hidden, decoder.mlp_bias)
        yield from linear(at(names.down), hidden, decoder.intermediate_size, decoder.mlp_bias)
    yield from norm(names.final_norm)
    if not decoder.tied:
        yield from linear(names.head, decoder.vocab_size, hidden, decoder.head_bias)


def _write_weights(path: Path, decoder: Decoder, dtype: str, rng: np.random.Generator) -> None:
    """The safetensors format: header length, JSON header, data. Its own library would want all tensors in memory."""
    size, shapes = np.dtype(dtype).itemsize, dict(_tensor_shapes(decoder))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * size
        header[name] = {"dtype": f"F{8 * size}", "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            mean, deviation = _distribution(name, shape)
            offset = decoder.norm_offset if mean else 0.0
            _write_random(file, math.prod(shape), (mean - offset, deviation), dtype, rng)


def _distribution(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and deviation that keep activations near 1 through any number of layers, and logits apart."""
    if len(shape) > 1:
        return 0.0, 1.0 / math.sqrt(shape[-1])
    return (1.0, 0.1) if name.endswith(".weight") else (0.0, 0.1)


def _write_random(
    file: BinaryIO, count: int, distribution: tuple[float, float], dtype: str, rng: np.random.Generator
) -> None:
    mean, deviation = distribution
    for start in range(0, count, _PIECE):
        values = rng.standard_normal(min(_PIECE, count - start), dtype=np.float32)
        file.write((mean + deviation * values).astype(dtype).tobytes())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a checkpoint of random weights.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="tiny-llama")
    parser.add_argument("--layers", type=int, help="instead of the preset's number")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shape = PRESETS[arguments.preset]
    if arguments.layers:
        shape = replace(shape, num_layers=arguments.layers)
    print(write_random_checkpoint(arguments.folder, shape, arguments.seed))


if __name__ == "__main__":
    main()
