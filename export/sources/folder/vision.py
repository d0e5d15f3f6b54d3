"""The text part of a vision checkpoint: its config, and its tensors under the names that a plain decoder has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sol_rt.errors import CheckpointError, one_line
from sol_rt.export.sources.families import FAMILIES

_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
    "model.text_model.": "model.",
    "lm_head.": "lm_head.",
}
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")


def text_config(config: Mapping[str, Any], has_head: bool) -> dict[str, Any] | None:
    """The config of the text part. None if the checkpoint is no vision model, or its text part does not stand alone.

    Args:
        config: the checkpoint's config.json.
        has_head: the checkpoint has an LM head of its own.

    Raises CheckpointError if the config of the text part has wrong values.
    """
    part = config.get("text_config")
    kind = part.get("model_type") if isinstance(part, Mapping) else None
    if "vision_config" not in config or not isinstance(part, Mapping) or str(kind) not in FAMILIES:
        return None
    from transformers import AutoConfig

    try:  # such configs leave out what the family's configuration class has by default
        whole = AutoConfig.for_model(**{**part, "model_type": kind}).to_dict()
    except Exception as error:  # classes check their values in many ways
        raise CheckpointError(f"config.json: text_config: {one_line(error)}; fetch the checkpoint again") from error
    special = {key: config[key] for key in _SPECIAL if config.get(key) is not None}
    tied = not has_head or bool(whole.get("tie_word_embeddings"))
    architecture = FAMILIES[str(kind)].architecture
    return {**whole, **special, "architectures": [architecture], "tie_word_embeddings": tied}


def text_name(name: str) -> str | None:
    """The name of a vision checkpoint's tensor in the text part; None if it does not belong there."""
    return next((new + name[len(old) :] for old, new in _PREFIXES.items() if name.startswith(old)), None)
