"""Runs the source model in float32, one decoder layer at a time, with transformers' own modules.

The model is built without storage. Each layer in turn gets its weights, runs on all tokens, and gives up its weights.
So a model of any depth needs the memory of one layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sol_rt.export.quantize.nested import not_finite
from sol_rt.export.sources.checkpoint import Checkpoint
from sol_rt.export.sources.decoder import Decoder
from sol_rt.export.sources.families import Family


class SourceModel:
    """A checkpoint's decoder, for sequences that all have T tokens.

    Args:
        checkpoint: where the weights come from.
        decoder: the checkpoint's description.
        family: the names of its modules.
        tokens: T.
    """

    def __init__(self, checkpoint: Checkpoint, decoder: Decoder, family: Family, tokens: int) -> None:
        from transformers import AutoModelForCausalLM

        self._checkpoint, self._decoder, self._family = checkpoint, decoder, family
        config = _config(checkpoint, decoder)
        with torch.device("meta"):
            self._model = AutoModelForCausalLM.from_config(
                config, attn_implementation="eager", dtype=torch.float32
            ).eval()
        self._positions = torch.arange(tokens)[None]
        # its frequencies are no weights of the checkpoint, so the module is built again, with storage
        rotary = type(self._model.model.rotary_emb)(config=config)
        self._cos_sin = rotary(torch.empty(0), self._positions)
        self._mask = torch.full((tokens, tokens), -math.inf).triu(1)[None, None]

    def embed(self, ids: Sequence[int]) -> Tensor:
        """The embeddings of tokens, float32 [len(ids), hidden]."""
        name = f"{self._family.names.embed}.weight"
        rows = {token: self._checkpoint.read(name, token, token + 1) for token in sorted(set(ids))}
        return torch.from_numpy(np.concatenate([rows[token] for token in ids]))

    def layers(self) -> Iterator[nn.Module]:
        """Yields the decoder's layers in order. A layer has its weights until the next one is asked for."""
        for index, layer in enumerate(self._model.model.layers):
            self._fill(layer, f"model.layers.{index}.")
            yield layer
            layer.to("meta")

    def run(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Runs a layer on x float32 [B, T, hidden]; returns its output, of the same shape."""
        out = layer(
            x,
            attention_mask=self._mask,
            position_ids=self._positions,
            position_embeddings=self._cos_sin,
            use_cache=False,
        )
        hidden: Tensor = out[0] if isinstance(out, tuple) else out
        return hidden

    def final_norm(self, x: Tensor) -> Tensor:
        """The input of the LM head, float32 [B, T, hidden], from the last layer's output of the same shape."""
        norm = self._model.get_submodule(self._family.names.final_norm)
        self._fill(norm, f"{self._family.names.final_norm}.")
        normed: Tensor = norm(x)
        return normed

    def module(self, name: str) -> nn.Module:
        """The module that has this name in the checkpoint."""
        module: nn.Module = self._model.get_submodule(name)
        return module

    def _fill(self, module: nn.Module, prefix: str) -> None:
        """Loads the weights of a module that was built without storage."""
        weights = {}
        for name in module.state_dict():
            weights[name] = torch.from_numpy(self._checkpoint.read(prefix + name))
            if not all(map(math.isfinite, torch.aminmax(weights[name]))):  # a NaN weight makes both NaN
                raise not_finite(prefix + name)
        module.load_state_dict(weights, strict=True, assign=True)


def _config(checkpoint: Checkpoint, decoder: Decoder) -> Any:
    from transformers import AutoConfig

    config = AutoConfig.for_model(**{"model_type": decoder.family, **checkpoint.config})
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope" and decoder.max_context > rope["original_max_position_embeddings"]:
        rope["short_factor"] = rope["long_factor"]  # as in the bundle, which has one table
    return config
