"""Writes a Llama-like checkpoint as the ONNX files that transformers.js loads: float32, q8 and q4.

    python bench/transformers_model.py CHECKPOINT FOLDER

CHECKPOINT is a folder or a .gguf file. The graph is the one that is usual for transformers.js: GroupQueryAttention, and
MatMulNBits (q4) or dynamically quantized MatMuls (q8), as `onnxruntime.quantization` makes them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from sol_rt.export.sources import tokenizer_files
from sol_rt.export.sources.checkpoint import Checkpoint
from sol_rt.export.sources.open_checkpoint import open_checkpoint

from onnxruntime.quantization import QuantType, quantize_dynamic

BLOCK = 32


class Writer:
    """Collects nodes and weights. Matrices are [inputs, outputs]."""

    def __init__(self, *, four_bits: bool) -> None:
        self.four_bits = four_bits
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, outputs: list[str] | None = None, **attributes: Any) -> str:
        names = outputs or [f"v{len(self.nodes)}"]
        self.nodes.append(helper.make_node(kind, inputs, names, **attributes))
        return names[0]

    def weight(self, name: str, array: np.ndarray) -> str:
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def product(self, x: str, name: str, matrix: np.ndarray, outputs: list[str] | None = None) -> str:
        if not self.four_bits:
            return self.op("MatMul", x, self.weight(name, matrix), outputs=outputs)
        inputs, columns = matrix.shape
        blocks = matrix.T.reshape(columns, inputs // BLOCK, BLOCK)
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(2)[..., None], 2)[..., 0]
        scale = largest / -8
        codes = np.clip(np.round(blocks / np.where(scale == 0, 1, scale)[..., None]) + 8, 0, 15).astype(np.uint8)
        packed = codes[..., ::2] | codes[..., 1::2] << 4
        names = self.weight(f"{name}.codes", packed), self.weight(f"{name}.scale", scale.astype(np.float32))
        sizes = {"K": inputs, "N": columns, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
        return self.op("MatMulNBits", x, *names, outputs=outputs, domain="com.microsoft", **sizes)


def build(checkpoint: Checkpoint, *, four_bits: bool) -> onnx.ModelProto:
    config = checkpoint.config
    heads, kv_heads, layers = (
        config[f"num_{what}"] for what in ("attention_heads", "key_value_heads", "hidden_layers")
    )
    size, epsilon = config["hidden_size"] // heads, config["rms_norm_eps"]
    writer = Writer(four_bits=four_bits)
    op, weight, product = writer.op, writer.weight, writer.product
    read = checkpoint.read
    angles = np.outer(np.arange(2048), config["rope_parameters"]["rope_theta"] ** (-np.arange(0, size, 2) / size))
    cos, sin = (
        weight(name, function(angles).astype(np.float32)) for name, function in (("cos", np.cos), ("sin", np.sin))
    )
    one = weight("one", np.array([1], np.int64))
    seen = op("Cast", op("Sub", op("ReduceSum", "attention_mask", one, keepdims=0), one), to=TensorProto.INT32)
    total = op("Cast", op("Shape", "attention_mask", start=1), to=TensorProto.INT32)
    total = op("Squeeze", total)
    x = op("Gather", weight("embed", read("model.embed_tokens.weight")), "input_ids")

    def norm(x: str, name: str) -> str:
        return op("SimplifiedLayerNormalization", x, weight(name, read(name)), axis=-1, epsilon=epsilon)

    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        normed = norm(x, f"{prefix}input_layernorm.weight")
        q, k, v = (
            product(normed, f"{prefix}{part}", read(f"{prefix}self_attn.{part}_proj.weight").T) for part in "qkv"
        )
        cache = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        attended = op(
            "GroupQueryAttention", q, k, v, *cache, seen, total, cos, sin, outputs=[f"attended.{layer}", *present],
            domain="com.microsoft", num_heads=heads, kv_num_heads=kv_heads, do_rotary=1,
        )  # fmt: skip
        x = op("Add", x, product(attended, f"{prefix}o", read(f"{prefix}self_attn.o_proj.weight").T))
        normed = norm(x, f"{prefix}post_attention_layernorm.weight")
        gate, up = (
            product(normed, f"{prefix}{part}", read(f"{prefix}mlp.{part}_proj.weight").T) for part in ("gate", "up")
        )
        h = op("Mul", op("Mul", gate, op("Sigmoid", gate)), up)
        x = op("Add", x, product(h, f"{prefix}down", read(f"{prefix}mlp.down_proj.weight").T))
    head = read("model.embed_tokens.weight" if config.get("tie_word_embeddings") else "lm_head.weight")
    product(norm(x, "model.norm.weight"), "lm_head", head.T, ["logits"])

    info = helper.make_tensor_value_info
    past = ["batch_size", kv_heads, "past_sequence_length", size]
    names = [(layer, part) for layer in range(layers) for part in ("key", "value")]
    inputs = [
        info(name, TensorProto.INT64, ["batch_size", length])
        for name, length in (("input_ids", "sequence_length"), ("attention_mask", "total_sequence_length"))
    ]
    inputs += [info(f"past_key_values.{layer}.{part}", TensorProto.FLOAT, past) for layer, part in names]
    outputs = [info("logits", TensorProto.FLOAT, ["batch_size", "sequence_length", config["vocab_size"]])]
    outputs += [
        info(f"present.{layer}.{part}", TensorProto.FLOAT, ["batch_size", kv_heads, "total_sequence_length", size])
        for layer, part in names
    ]
    graph = helper.make_graph(writer.nodes, "llama", inputs, outputs, writer.weights)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    checkpoint, folder = open_checkpoint(arguments.checkpoint), arguments.folder
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    checkpoint.write_tokenizer(folder)
    tokenizer_files.write_json(folder / "config.json", checkpoint.config)
    onnx.save(build(checkpoint, four_bits=False), folder / "onnx" / "model.onnx")
    onnx.save(build(checkpoint, four_bits=True), folder / "onnx" / "model_q4.onnx")
    plain, quantized = (folder / "onnx" / name for name in ("model.onnx", "model_quantized.onnx"))
    options = {"DefaultTensorType": TensorProto.FLOAT, "MatMulConstBOnly": True}
    quantize_dynamic(
        plain,
        quantized,
        per_channel=True,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
        extra_options=options,
    )


if __name__ == "__main__":
    main()
