"""The tokenizer of a GGUF file as `tokenizer.json`, by the `tokenizers` library alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from sol_rt.errors import CheckpointError
from sol_rt.export.tokenizer_files import TOKENIZER, write_generation, write_settings

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # llama.cpp's token types

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_WORDS = _QWEN2_WORDS.replace(r"\p{N}|", r"\p{N}{1,3}|")


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _words(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "default": _gpt2,
    "gpt-2": _gpt2,
    "phi-2": _gpt2,
    "smollm": _smollm,
    "qwen2": lambda: _words(_QWEN2_WORDS),
    "llama-bpe": lambda: _words(_LLAMA3_WORDS),
}


_UNTOLD = {"qwen2": "qwen2", "phi2": "phi-2"}
"""Of files without `tokenizer.ggml.pre`, as older ones are, by architecture: where all its models split words alike."""


def write(metadata: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja.

    Args:
        metadata: GGUF key -> value.
        config: the model's HF config.
        folder: where to.

    Raises:
        CheckpointError: the tokenizer is of a kind that can't be rebuilt, or its lists are damaged.
    """
    # written here: the library's own save raises something else than OSError where the disk is full
    (folder / TOKENIZER).write_text(build(metadata).to_str(pretty=True), encoding="utf-8")
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        token = _token_of(metadata, key)
        if token is not None:
            settings[f"{name}_token"] = token
    template = metadata.get("tokenizer.chat_template")
    write_settings(folder, settings, template if isinstance(template, str) else None)
    ends = [config.get("eos_token_id"), *(metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eot", "eom"))]
    ends = list(dict.fromkeys(end for end in ends if end is not None))
    write_generation(folder, {**config, "eos_token_id": ends[0] if len(ends) == 1 else ends or None})


def build(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that the metadata describes: byte-level BPE. Raises CheckpointError for others and for damage."""
    model, architecture = metadata.get("tokenizer.ggml.model"), str(metadata.get("general.architecture"))
    pre = metadata.get("tokenizer.ggml.pre", _UNTOLD.get(architecture))
    if model != "gpt2":
        raise CheckpointError(
            f"GGUF key tokenizer.ggml.model: got {model!r}, expected 'gpt2', byte-level BPE; "
            "export from the checkpoint folder"
        )
    if pre not in _PRE_TOKENIZERS:
        raise CheckpointError(
            f"GGUF key tokenizer.ggml.pre: got {pre!r}, expected one of {', '.join(_PRE_TOKENIZERS)}; "
            "export from the checkpoint folder"
        )
    tokens, merges = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.merges")
    types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens or ())
    if not tokens or merges is None or len(types) != len(tokens):
        raise CheckpointError(
            "GGUF tokenizer: lists of tokens, token types and merges are missing or of different length"
        )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    try:
        pairs = [tuple(merge.split(" ", 1)) for merge in merges]
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre == "llama-bpe"))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"GGUF tokenizer: {' '.join(str(error).split())[:120]}; the file is damaged") from error
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = _post_processor(metadata, pre)
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, t in zip(tokens, types, strict=True)
            if t == kind
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    return tokenizer


def _post_processor(metadata: Mapping[str, Any], pre: str) -> processors.PostProcessor:
    byte_level = processors.ByteLevel(trim_offsets=False)
    first = _token_of(metadata, "bos")
    if first is None or not metadata.get("tokenizer.ggml.add_bos_token", pre == "llama-bpe"):
        return byte_level
    template = processors.TemplateProcessing(
        single=f"{first} $A",
        pair=f"{first} $A {first} $B",
        special_tokens=[(first, int(metadata["tokenizer.ggml.bos_token_id"]))],
    )
    return processors.Sequence([byte_level, template])


def _token_of(metadata: Mapping[str, Any], name: str) -> str | None:
    index, tokens = metadata.get(f"tokenizer.ggml.{name}_token_id"), metadata.get("tokenizer.ggml.tokens") or ()
    return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None
