"""The `model` section of sol_config.json: dimensions, special tokens, and where the weights come from."""

from __future__ import annotations

import json
from pathlib import Path

from sol_rt.bundle.config import ModelDims
from sol_rt.errors import CheckpointError, brief
from sol_rt.export.sources.checkpoint import Checkpoint
from sol_rt.export.sources.decoder import Decoder
from sol_rt.export.sources.families import FAMILIES
from sol_rt.export.sources.tokenizer_files import GENERATION
from sol_rt.store.home import checkpoints_dir, user_path
from sol_rt.store.recipes.recipe import aliases


def model_section(checkpoint: Checkpoint, decoder: Decoder, source: str, name: str, folder: Path) -> ModelDims:
    """Describes the model of a checkpoint.

    Args:
        checkpoint: the checkpoint.
        decoder: its description.
        source: what the user asked to export.
        name: the bundle's name.
        folder: the bundle, which has its generation_config.json already.

    Raises:
        CheckpointError: a special token is outside the vocabulary.
    """
    generation = json.loads((folder / GENERATION).read_text(encoding="utf-8"))

    def special(key: str) -> list[int]:
        found = generation.get(key, checkpoint.config.get(key))
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(
            isinstance(token, int) and not isinstance(token, bool) and 0 <= token < decoder.vocab_size for token in ids
        ):
            expected = f"expected ids of the vocabulary, 0 to {decoder.vocab_size - 1}"
            raise CheckpointError(f"{checkpoint.path}: {key}: got {brief(found)}, {expected}")
        return ids

    origin, license_name = _provenance(checkpoint, source)
    return decoder.dims(
        name=name,
        architecture=FAMILIES[decoder.family].architecture,
        source=origin,
        license=license_name,
        bos_token_id=next(iter(special("bos_token_id")), None),
        eos_token_ids=tuple(special("eos_token_id")),
    )


def _provenance(checkpoint: Checkpoint, source: str) -> tuple[str, str]:
    """(source, licence) of the weights.

    A fetched checkpoint has those of its recipe; no path of this machine gets in.
    """
    path = checkpoint.path.resolve()
    if path.parent == checkpoints_dir().resolve():
        recipe = aliases().get(path.stem if path.is_file() else path.name)
        if recipe is not None:
            return recipe.hub or f"{recipe.package}: {recipe.member}", checkpoint.license or recipe.license
        return path.name.replace("--", "/"), checkpoint.license
    return path.name if user_path(source).exists() else source, checkpoint.license
