"""Runs the source model in float32, one decoder layer at a time, with transformers' own modules.

The model is built without storage. Each layer in turn gets its weights, runs on all tokens, and gives up its weights.
So a model of any depth needs the memory of one layer.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sol_rt.errors import CheckpointError, one_line
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

        # this logger says that a faster kernel is not installed, which no package of ours has
        logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)
        self._checkpoint, self._decoder, self._family = checkpoint, decoder, family
        config = source_config(checkpoint, decoder)
        with torch.device("meta"):
            self._model = AutoModelForCausalLM.from_config(
                config, attn_implementation="eager", dtype=torch.float32
            ).eval()
        self._base = self._model.base_model
        # its frequencies are no weights of the checkpoint, so the module is built again, with storage
        if getattr(self._base, "rotary_emb", None) is not None:
            self._base.rotary_emb = type(self._base.rotary_emb)(config=config)
        self._arguments = _layer_arguments(self._base, decoder.source, tokens)

    def embed(self, ids: Sequence[int]) -> Tensor:
        """The first layer's input for tokens: their scaled embeddings, float32 [len(ids), hidden]."""
        name = f"{self._family.names.embed}.weight"
        rows = {token: self._checkpoint.read(name, token, token + 1) for token in sorted(set(ids))}
        return torch.from_numpy(np.concatenate([rows[token] for token in ids])) * self._decoder.embedding_scale

    def layers(self) -> Iterator[nn.Module]:
        """Yields the decoder's layers in order. A layer has its weights until the next one is asked for."""
        for index, layer in enumerate(self._base.layers):
            self._fill(layer, f"{self._model.base_model_prefix}.layers.{index}.")
            yield layer
            layer.to("meta")

    def run(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Runs a layer on x float32 [B, T, hidden]; returns its output, of the same shape."""
        arguments = next(own for known, own in zip(self._base.layers, self._arguments, strict=True) if known is layer)
        out = layer(x, **arguments)
        hidden: Tensor = out[0] if isinstance(out, tuple) else out
        return hidden

    def final_norm(self, x: Tensor) -> Tensor:
        """The input of the LM head, float32 [B, T, hidden], from the last layer's output of the same shape.

        Like the bundle's, it has the factor on logits in it.
        """
        norm = self._model.get_submodule(self._family.names.final_norm)
        self._fill(norm, f"{self._family.names.final_norm}.")
        normed: Tensor = norm(x) * self._decoder.logits_scale
        return normed

    def module(self, name: str) -> nn.Module:
        """The module that has this name in the checkpoint."""
        module: nn.Module = self._model.get_submodule(name)
        return module

    def _fill(self, module: nn.Module, prefix: str) -> None:
        """Loads the weights of a module that was built without storage, on as many threads as torch has."""

        def weights(name: str) -> Tensor:
            found = torch.from_numpy(self._checkpoint.read(prefix + name))
            if not all(map(math.isfinite, torch.aminmax(found))):  # a NaN weight makes both NaN
                raise not_finite(prefix + name)
            return found

        names = list(module.state_dict())
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            read = dict(zip(names, pool.map(weights, names), strict=True))
        module.load_state_dict(read, strict=True, assign=True)


class _Recorder(nn.Module):
    """Stands in for a decoder layer and keeps the arguments that it is called with."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {}
        self._layer = [layer]  # in a list, so that it is no part of this module

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # models ask layers for their kind
            return getattr(super().__getattribute__("_layer")[0], name)

    def forward(self, x: Tensor, **arguments: Any) -> Tensor:
        self.arguments = arguments
        return x


@torch.inference_mode()
def _layer_arguments(base: Any, decoder: Decoder, tokens: int) -> list[dict[str, Any]]:
    """Collects each layer's arguments besides its input when the model runs on T tokens: masks and rotary tables."""
    layers = base.layers
    recorders = [_Recorder(layer) for layer in layers]
    names = [name for name, module in base.named_children() if name.endswith("norm")]
    norms = {name: getattr(base, name) for name in names}
    try:
        base.layers = nn.ModuleList(recorders)
        for norm in norms:
            setattr(base, norm, nn.Identity())
        base(inputs_embeds=torch.zeros(1, tokens, decoder.hidden_size), use_cache=False)
    finally:
        base.layers = layers
        for name, module in norms.items():
            setattr(base, name, module)
    return [recorder.arguments for recorder in recorders]


def source_config(checkpoint: Checkpoint, decoder: Decoder) -> Any:
    """The configuration that transformers runs a checkpoint with.

    Raises CheckpointError if transformers refuses settings that the description of the decoder has no use for.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.for_model(**{"model_type": decoder.family, **checkpoint.config})
    except Exception as error:  # classes check their values in many ways
        raise CheckpointError(
            f"{checkpoint.path}: its config is refused by transformers ({one_line(error)}), expected the settings of "
            f"a {decoder.family} model; complete the checkpoint's config, or export with --no-parity --calibration none"
        ) from error
    rope = config.rope_parameters
    if rope.get("rope_type") == "longrope" and decoder.max_context > rope["original_max_position_embeddings"]:
        rope["short_factor"] = rope["long_factor"]  # as in the bundle, which has one table
    return config
