"""Tiny GGUF files for tests, made as llama.cpp's converter makes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from helpers.random_checkpoint import PRESETS, write_random_checkpoint
from sol_rt.export.sources.decoder import family_of, from_hf_config
from sol_rt.export.sources.families import TensorNames
from sol_rt.export.sources.families.stored import head_by_head
from sol_rt.export.sources.open_checkpoint import open_checkpoint


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of q and k as llama.cpp's converter does for Llama models."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


_NORMS = ("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm", "q_norm", "k_norm")


class GgufFile:
    """Writes a tiny checkpoint as llama.cpp's converter would."""

    def __init__(self, path: Path, source: Path) -> None:
        self.path, self.source = path, open_checkpoint(source)
        self.config = self.source.config
        self.family = family_of(self.config)
        self.form = self.family.gguf
        self.writer = gguf.GGUFWriter(str(path), self.form.architecture)

    def metadata(self, rotary_dim: int, pre: str = "gpt-2") -> GgufFile:
        w, config = self.writer, self.config
        w.add_context_length(config["max_position_embeddings"])
        w.add_embedding_length(config["hidden_size"])
        w.add_block_count(config["num_hidden_layers"])
        decoder = from_hf_config(config)
        w.add_feed_forward_length(decoder.source.intermediate_size)
        w.add_head_count(config["num_attention_heads"])
        kv_heads = config["num_key_value_heads"]
        w.add_head_count_kv([kv_heads * (kind == "attention") for kind in decoder.layer_kinds] or kv_heads)
        w.add_rope_dimension_count(rotary_dim)
        settings = {**self.family.defaults, **config}
        w.add_rope_freq_base(self._rope_base(settings))
        if "head_dim" in config:
            w.add_key_length(config["head_dim"])
            w.add_value_length(config["head_dim"])
        for key, names in self.form.config_keys.items():
            name, value = f"{self.form.architecture}.{names[0]}", settings.get(key)
            if value is not None and name not in w.kv_data[0]:
                add = {bool: w.add_bool, int: w.add_uint32, float: w.add_float32}[type(value)]
                add(name, value)
        if "sliding_window" in self.form.config_keys and (windows := decoder.windows):
            w.add_sliding_window_pattern([window > 0 for window in windows])
        self._rope_scaling(settings)
        (w.add_layer_norm_eps if self.family.norm == "layer" else w.add_layer_norm_rms_eps)(1e-5)
        w.add_license("apache-2.0")
        tokenizer = json.loads((self.source.path / "tokenizer.json").read_text())
        vocabulary = {**tokenizer["model"]["vocab"], **{t["content"]: t["id"] for t in tokenizer["added_tokens"]}}
        tokens = sorted(vocabulary, key=vocabulary.__getitem__)
        special = {t["content"] for t in tokenizer["added_tokens"]}
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre(pre)
        w.add_token_list(tokens)
        w.add_token_types([3 if token in special else 1 for token in tokens])
        w.add_token_merges(
            [merge if isinstance(merge, str) else " ".join(merge) for merge in tokenizer["model"]["merges"]]
        )
        w.add_bos_token_id(0)
        w.add_eos_token_id(2)
        w.add_chat_template("{{ messages[0]['content'] }}")
        return self

    def _rope_base(self, settings: dict[str, Any]) -> float:
        """The converter evaluates Hunyuan's stretched base."""
        rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
        base = rope.get("rope_theta") or settings.get("rope_theta") or 1e4
        size = settings.get("head_dim") or 16
        return float(base * rope["alpha"] ** (size / (size - 2)) if rope.get("alpha") else base)

    def _rope_scaling(self, settings: dict[str, Any]) -> None:
        rope = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
        if rope.get("rope_type") == "yarn":
            self.writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
            self.writer.add_rope_scaling_factor(rope["factor"])
            self.writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
            self.writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
            self.writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])

    def tensors(self, kind: str | None = None, packed_qkv: bool = False, leave_out: tuple[str, ...] = ()) -> GgufFile:
        heads = {"q": self.config["num_attention_heads"], "k": self.config["num_key_value_heads"]}
        for name, module in self._pairs(self.family.names, self.form.names):
            if module.rsplit(".", 1)[0] in leave_out:
                continue
            values = self.source.read(name)
            part = module.split(".")[-2][-1]
            if self.form.interleaves_qk and "attn_" in module and part in heads and "norm" not in module:
                values = interleave(values, heads[part])
            if self.family.qkv_by_head and "attn_qkv" in module:
                values = values[head_by_head(len(values), heads["q"])]
            if values.ndim == 3:  # filters: the converter leaves out their one input channel
                values = values[:, 0]
            if "norm" in module:
                values = values + np.float32(self.form.norm_offset)
            if packed_qkv and module.split(".")[-2] in ("attn_q", "attn_k", "attn_v"):
                continue
            self.add(module, values, kind)
        if packed_qkv:
            for i in range(self.config["num_hidden_layers"]):
                for suffix in ("weight", "bias"):
                    parts = [self.source.read(f"{m.format(i=i)}.{suffix}") for m in self.family.names.qkv]
                    self.add(f"blk.{i}.attn_qkv.{suffix}", np.concatenate(parts), kind)
        return self

    def head_norms(self) -> GgufFile:
        """The norms of q and k where every head has one: a row for each."""
        hf, own, config = self.family.names, self.form.names, self.config
        counts = {"q_norm": config["num_attention_heads"], "k_norm": config["num_key_value_heads"]}
        for i in range(config["num_hidden_layers"]):
            for field, heads in counts.items():
                name = getattr(hf, field)
                if name and "{h}" in name:
                    rows = [self.source.read(f"{name.format(i=i, h=head)}.weight") for head in range(heads)]
                    self.add(f"{getattr(own, field).format(i=i)}.weight", np.stack(rows))
        return self

    def add(self, name: str, values: np.ndarray, kind: str | None = None) -> None:
        if kind is None or values.ndim == 1 or values.shape[1] % 32:  # as filters, which no block of a type fits
            self.writer.add_tensor(name, values)
            return
        quantized_type = gguf.GGMLQuantizationType[kind]
        self.writer.add_tensor(name, gguf.quants.quantize(values, quantized_type), raw_dtype=quantized_type)

    def _pairs(self, hf: TensorNames, own: TensorNames) -> list[tuple[str, str]]:
        pairs = [(hf.embed, own.embed), (hf.final_norm, own.final_norm), (hf.head, own.head)]
        for i in range(self.config["num_hidden_layers"]):
            fields = (*_NORMS, "o", "down", "conv_in", "conv", "conv_out")
            one = [*(getattr(hf, field) for field in fields), *hf.qkv, *hf.up]
            other = [*(getattr(own, field) for field in fields), *own.qkv, *own.up]
            named = [(a, b) for a, b in zip(one, other, strict=True) if a and b and "{h}" not in a]
            pairs += [(a.format(i=i), b.format(i=i)) for a, b in named]
        full = [(f"{a}.{kind}", f"{b}.{kind}") for a, b in pairs for kind in ("weight", "bias")]
        return [pair for pair in full if pair[0] in self.source.names()]

    def write(self) -> Path:
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_tensors_to_file()
        self.writer.close()
        return self.path


# where a block of a type has float16 numbers, in bytes (ggml-common.h of llama.cpp)
_FLOAT16_AT = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
    "MXFP4": (),
}


def random_rows(kind: str, rows: int, channels: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of any bits that the type allows, scales and minima finite: uint8 [rows, bytes a row]."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    data = rng.integers(0, 256, (rows, channels // block, size), np.uint8)
    for place in _FLOAT16_AT[kind]:
        numbers = rng.standard_normal(data.shape[:2]) * 10.0 ** rng.integers(-4, 3, data.shape[:2])
        data[..., place : place + 2] = numbers.astype("<f2")[..., None].view(np.uint8)
    if kind == "MXFP4":  # scales are powers of two, of 8 bits
        data[..., 0] = rng.integers(110, 135, data.shape[:2])
    return data.reshape(rows, -1)


def write_mixed_file(path: Path, preset: str = "tiny-llama", embedding: str = "Q4_0") -> Path:
    """Of a tiny checkpoint, Q4_0 but for what llama.cpp keeps at more than 4 bits in some layers of a Q4_K_M: here
    Q8_0, in the first layer. `embedding` is the type of the embedding."""
    source = write_random_checkpoint(path.with_suffix(".source"), PRESETS[preset])
    file = GgufFile(path, source).metadata(16)
    names, own = file.family.names, file.form.names
    finer = {b.format(i=0): a.format(i=0) for a, b in ((names.qkv[-1], own.qkv[-1]), (names.down, own.down))}
    file.tensors("Q4_0", leave_out=(*finer, own.embed))
    file.add(f"{own.embed}.weight", file.source.read(f"{names.embed}.weight"), embedding)
    for name, module in finer.items():
        for kind in ("weight", "bias"):
            if f"{module}.{kind}" in file.source.names():
                file.add(f"{name}.{kind}", file.source.read(f"{module}.{kind}"), "Q8_0")
    return file.write()
