"""Writes a checkpoint as optimum does: a folder with a graph that torch exports, config.json and the tokenizer."""

from __future__ import annotations

import math
import shutil
import warnings
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

_TOKENS = 8


class _Decoder(nn.Module):
    """Logits of token ids. It makes the mask itself, because torch can't export that of transformers."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        for name, part in whole.named_children():  # their names get into the graph
            self.add_module(name, part)
        self.base = whole.base_model_prefix
        self.head = next(name for name, part in whole.named_children() if part is whole.get_output_embeddings())
        self.kinds = set(getattr(whole.config, "layer_types", None) or ())

    def forward(self, input_ids: Tensor) -> Tensor:
        mask = torch.full((_TOKENS, _TOKENS), -math.inf).triu(1)[None, None]
        masks = dict.fromkeys(self.kinds, mask) if "sliding_attention" in self.kinds else mask
        positions = torch.arange(_TOKENS)[None]
        out = self.get_submodule(self.base)(
            input_ids=input_ids, attention_mask=masks, position_ids=positions, use_cache=False
        )
        logits: Tensor = self.get_submodule(self.head)(out.last_hidden_state)
        return logits


def write_onnx_folder(source: Path, folder: Path, *, half: bool = False, external: bool = False) -> Path:
    """Writes the checkpoint in `source` as a folder with a graph.

    Args:
        source: a checkpoint in Hugging Face's layout.
        folder: where to write; made here.
        half: the graph's numbers are float16, but for the sums of norms with an offset, which torch folds in float32.
        external: the weights lie in a file of their own, model.onnx_data, as those of large models do.
    """
    folder.mkdir(parents=True)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    whole = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager").eval()
    path = folder / "model.onnx"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Decoder(whole),
            (torch.arange(_TOKENS)[None],),
            str(path),
            dynamo=False,
            input_names=["input_ids"],
            output_names=["logits"],
        )
    model = onnx.load(path)
    if half:
        for tensor in model.graph.initializer:
            if tensor.data_type == TensorProto.FLOAT and not tensor.name.startswith("onnx::Mul_"):
                values = numpy_helper.to_array(tensor).astype("float16")
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path, save_as_external_data=external, location="model.onnx_data", size_threshold=256)
    return folder
