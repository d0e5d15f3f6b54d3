"""Writes a bundle's tokenizer, chat template and generation defaults from those of a checkpoint folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from sol_rt.errors import BundleError, CheckpointError, one_line
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.read_file import read_bytes
from sol_rt.text.chat_template import default_template
from sol_rt.text.tokenizer import Tokenizer

TOKENIZER, SETTINGS, TEMPLATE, GENERATION = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)


_USED = ("bos_token", "eos_token", "pad_token", "unk_token")


def copy_from_folder(source: Path, config: Mapping[str, Any], folder: Path, trust_remote_code: bool = False) -> None:
    """Copies the tokenizer's files. Older forms are converted to tokenizer.json.

    With `trust_remote_code`, code that comes with the checkpoint may run to convert its tokenizer.

    Raises CheckpointError if there is no usable tokenizer.
    """
    if (source / TOKENIZER).is_file():
        shutil.copyfile(source / TOKENIZER, folder / TOKENIZER)
        settings = _json(source / SETTINGS)
    else:
        settings = _convert(source, folder, trust_remote_code)
    template = _template(source, settings)
    write_settings(folder, settings, template)
    if (source / GENERATION).is_file():
        _json(source / GENERATION)
        shutil.copyfile(source / GENERATION, folder / GENERATION)
    else:
        write_generation(folder, config)


def write_settings(folder: Path, settings: Mapping[str, Any], template: str | None) -> None:
    """Writes tokenizer_config.json, and the chat template to its own file, chat_template.jinja."""
    kept = {key: value for key, value in settings.items() if key != "chat_template"}
    write_json(folder / SETTINGS, kept)
    if template:
        _write(folder / TEMPLATE, template)


def write_generation(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes a generation_config.json with the special tokens that the model's config names."""
    keys = ("bos_token_id", "eos_token_id", "pad_token_id")
    write_json(folder / GENERATION, {key: config[key] for key in keys if config.get(key) is not None})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes indented UTF-8 JSON. Raises CheckpointError for text that is not valid Unicode (lone surrogates)."""
    _write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except UnicodeEncodeError as error:
        got = f"half of a character ({error.reason}) in a value"
        raise CheckpointError(
            f"{path.name}: got {got}, expected valid Unicode; correct the checkpoint's file"
        ) from None


def quick_form(tokenizer: tokenizers.Tokenizer) -> str:
    """A tokenizer as JSON that the library reads in about 0.7 of the time: without spaces, each merge in one string as
    it was written before 2024, the vocabulary by text.

    Merges stay pairs where a token has a space in it.
    """
    plain = tokenizer.to_str()
    content = json.loads(plain)
    model = content["model"]
    if "merges" in model:
        model["vocab"] = dict(sorted(model["vocab"].items()))
        model["merges"] = [" ".join(pair) for pair in model["merges"]]
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    try:
        return text if tokenizers.Tokenizer.from_str(text).to_str() == plain else plain
    except Exception:  # a token with a space; the library raises plain Exception
        return plain


def drop_tokens_beyond(folder: Path, vocab_size: int) -> None:
    """Takes added tokens that the model has no row for out of tokenizer.json.

    The text models of Gemma 3 share their tokenizer with the larger ones, whose token for an image they lack. Tokens
    that the chat template writes, or that begin or end texts, stay, so that `check_files` refuses them.
    """
    path = folder / TOKENIZER
    template = folder / TEMPLATE
    try:
        content = json.loads(read_bytes(path))
        needed = template.read_text(encoding="utf-8") if template.is_file() else ""
        needed += json.dumps([_json(folder / SETTINGS).get(name) for name in _USED], ensure_ascii=False)
        kept = [token for token in content["added_tokens"] if token["id"] < vocab_size or token["content"] in needed]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return  # `check_files` says what is wrong
    if len(kept) < len(content["added_tokens"]):
        _write(path, json.dumps({**content, "added_tokens": kept}, ensure_ascii=False))


def check_files(folder: Path, vocab_size: int) -> None:
    """Raises CheckpointError for what a bundle would be refused for: an unreadable tokenizer, one with ids beyond the
    model's vocabulary, generation settings out of range.
    """
    try:
        last = Tokenizer.from_file(folder / TOKENIZER).last_id
    except BundleError as error:
        raise CheckpointError(f"{TOKENIZER}: got {error.got}, expected {error.expected}") from error
    try:
        GenerationConfig().with_file(folder / GENERATION)
    except BundleError as error:
        raise CheckpointError(f"{GENERATION}: got {error.got}, expected {error.expected}") from error
    if not 0 <= last < vocab_size:
        raise CheckpointError(
            f"{TOKENIZER}: got token ids up to {last}, expected 0 to {vocab_size - 1}, the model's vocabulary; "
            "tokenizer and weights are of different models"
        )


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(read_bytes(path).decode("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: got {type(content).__name__}, expected a JSON object")
    return content


def _convert(source: Path, folder: Path, trust_remote_code: bool) -> dict[str, Any]:
    """Lets transformers convert older tokenizer files to tokenizer.json; returns the tokenizer's settings."""
    settings = _json(source / SETTINGS)
    if "auto_map" in settings and not trust_remote_code:
        raise CheckpointError(
            f"{source}: no {TOKENIZER}, and the tokenizer is code that comes with the checkpoint (auto_map); read that "
            "code, then pass --trust-remote-code to run it"
        )
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(source), local_files_only=True, trust_remote_code=trust_remote_code
        )
        content = quick_form(tokenizer.backend_tokenizer)
    except Exception as error:  # which type depends on what is missing
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"{source}: no {TOKENIZER}, and none can be made ({reason})") from error
    (folder / TOKENIZER).write_text(content, encoding="utf-8")
    return {key: value for key, value in settings.items() if key != "auto_map"}


def _template(source: Path, settings: Mapping[str, Any]) -> str | None:
    if (source / TEMPLATE).is_file():
        try:
            return (source / TEMPLATE).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{source / TEMPLATE}: got no UTF-8 text ({error})") from error
    return default_template(settings.get("chat_template"))
