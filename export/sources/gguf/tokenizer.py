"""Rebuilds the tokenizer of a GGUF file as `tokenizer.json`, with the `tokenizers` library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from sol_rt.errors import CheckpointError
from sol_rt.export.sources.families import FAMILIES
from sol_rt.export.sources.tokenizer_files import TOKENIZER, quick_form, write_generation, write_settings

_NORMAL, _CONTROL, _USER_DEFINED = 1, 3, 4  # llama.cpp's token types
_SPACE = "▁"  # SentencePiece's character for a space

_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_WORDS = _QWEN2_WORDS.replace(r"\p{N}|", r"\p{N}{1,3}|")
_ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}|{_REST}"
_GPT4O_WORDS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_ENDS}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_ENDS}"
    rf"|\p{{N}}{{1,3}}|{_REST}"
)
_HUNYUAN_WORDS = (
    r"\p{N}{1,3}",
    r"[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)
"""Three splits, one after the other."""


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _words(*patterns: str) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False) for pattern in patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


@dataclass(frozen=True)
class _WordSplit:
    """Rules for one value of `tokenizer.ggml.pre`.

    Attributes:
        make: builds the pre-tokenizer.
        whole_words: a word that is in the vocabulary becomes one token without merges.
        begins: the tokenizer puts the first token before a text, where the file does not say whether it does.
        nfc: texts are brought into Unicode's normalization form C first.
    """

    make: Callable[[], pre_tokenizers.PreTokenizer]
    whole_words: bool = False
    begins: bool = False
    nfc: bool = False


_LLAMA3 = _WordSplit(lambda: _words(_LLAMA3_WORDS), whole_words=True, begins=True)
_PRE_TOKENIZERS = {
    "default": _WordSplit(_gpt2),
    "gpt-2": _WordSplit(_gpt2),
    "phi-2": _WordSplit(_gpt2),
    "exaone4": _WordSplit(_gpt2),
    "olmo": _WordSplit(_gpt2, nfc=True),  # GPT-NeoX's: Pythia
    "smollm": _WordSplit(_smollm),
    "refact": _WordSplit(_smollm),  # Granite
    "qwen2": _WordSplit(lambda: _words(_QWEN2_WORDS), nfc=True),
    "deepseek-r1-qwen": _WordSplit(lambda: _words(_QWEN2_WORDS)),
    "stablelm2": _WordSplit(lambda: _words(_QWEN2_WORDS)),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "lfm2": _LLAMA3,
    "dbrx": _WordSplit(lambda: _words(_LLAMA3_WORDS)),  # OLMo 2 and 3
    "smaug-bpe": _WordSplit(lambda: _words(_LLAMA3_WORDS)),
    "gpt-4o": _WordSplit(lambda: _words(_GPT4O_WORDS)),  # Phi-4-mini
    "tekken": _WordSplit(lambda: _words(_TEKKEN_WORDS), whole_words=True, begins=True),  # Ministral 3
    "hunyuan-dense": _WordSplit(lambda: _words(*_HUNYUAN_WORDS)),
}
"""By `tokenizer.ggml.pre`."""


def write(metadata: Mapping[str, Any], config: Mapping[str, Any], folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja.

    Args:
        metadata: GGUF key -> value.
        config: the model's Hugging Face config.
        folder: where to write.

    Raises:
        CheckpointError: the tokenizer is of an unknown kind, or its lists are damaged.
    """
    # not by the library's own save, which does not raise OSError when the disk is full
    (folder / TOKENIZER).write_text(quick_form(build(metadata)), encoding="utf-8")
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
    """The tokenizer that the metadata describes, byte-level BPE or SentencePiece's BPE.

    Raises CheckpointError for other kinds and for damaged lists.
    """
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        raise CheckpointError(
            f"GGUF key tokenizer.ggml.model: got {model!r}, expected 'gpt2', byte-level BPE, or 'llama', that of "
            "SentencePiece; export from the checkpoint folder"
        )
    tokens = metadata.get("tokenizer.ggml.tokens") or ()
    types = metadata.get("tokenizer.ggml.token_type") or [_NORMAL] * len(tokens)
    if not (isinstance(tokens, list) and isinstance(types, list) and tokens and len(types) == len(tokens)):
        raise CheckpointError("GGUF tokenizer: lists of tokens and token types are missing or of different length")
    try:
        tokenizer = (_byte_level if model == "gpt2" else _sentence_piece)(metadata, tokens, types)
    except CheckpointError:
        raise
    except Exception as error:  # the library raises plain Exception, and damaged lists may hold anything
        raise CheckpointError(f"GGUF tokenizer: {' '.join(str(error).split())[:120]}; the file is damaged") from error
    for kind, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, t in zip(tokens, types, strict=True)
            if t == kind
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    return tokenizer


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
    pre = metadata.get("tokenizer.ggml.pre", _family_pre_tokenizer(metadata))
    split = _PRE_TOKENIZERS.get(pre) if isinstance(pre, str) else None
    if split is None:
        raise CheckpointError(
            f"GGUF key tokenizer.ggml.pre: got {pre!r}, expected one of {', '.join(_PRE_TOKENIZERS)}; "
            "export from the checkpoint folder"
        )
    merges = metadata.get("tokenizer.ggml.merges")
    if merges is None:
        raise CheckpointError("GGUF tokenizer: the list of merges is missing; the file is damaged")
    pairs = [tuple(merge.split(" ", 1)) for merge in merges]
    tokenizer = _tokenizer(tokens, pairs, ignore_merges=split.whole_words)
    if split.nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split.make()
    tokenizer.decoder = decoders.ByteLevel()
    byte_level, template = processors.ByteLevel(trim_offsets=False), _template(metadata, split.begins)
    tokenizer.post_processor = byte_level if template is None else processors.Sequence([byte_level, template])
    return tokenizer


def _family_pre_tokenizer(metadata: Mapping[str, Any]) -> str | None:
    """The pre-tokenizer of files that do not name one, by their architecture."""
    forms = [family.gguf for family in FAMILIES.values() if family.gguf is not None]
    return next((f.pre_tokenizer for f in forms if f.architecture == metadata.get("general.architecture")), None)


def _sentence_piece(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
    """SentencePiece's BPE as merges.

    SentencePiece first joins the neighbours that make the piece of highest score. So the merges are all ways to make
    each piece from two others, in descending order of its score. Characters without a piece are written as bytes, such
    as `<0x0A>`.
    """
    scores = metadata.get("tokenizer.ggml.scores") or ()
    if len(scores) != len(tokens):
        raise CheckpointError("GGUF tokenizer: the list of scores is missing or of another length than the tokens")
    pieces = {
        token: score
        for token, score, kind in zip(tokens, scores, types, strict=True)
        if kind in (_NORMAL, _USER_DEFINED)
    }
    merges = [
        (piece[:at], piece[at:])
        for piece in sorted(pieces, key=lambda piece: -pieces[piece])
        for at in range(1, len(piece))
        if piece[:at] in pieces and piece[at:] in pieces
    ]
    tokenizer = _tokenizer(tokens, merges, unk_token=_token_of(metadata, "unknown"), fuse_unk=True, byte_fallback=True)
    replace, parts = normalizers.Replace(" ", _SPACE), [decoders.Replace(_SPACE, " "), decoders.ByteFallback()]
    parts.append(decoders.Fuse())
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace])
        parts.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = replace
    tokenizer.decoder = decoders.Sequence(parts)
    template = _template(metadata, True)
    if template is not None:
        tokenizer.post_processor = template
    return tokenizer


def _tokenizer(tokens: Sequence[str], merges: Sequence[tuple[str, ...]], **options: Any) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **options))


def _template(metadata: Mapping[str, Any], by_default: bool) -> processors.PostProcessor | None:
    """The step that puts the first token before a text.

    None if the file, or else `by_default`, says that none is put.
    """
    first = _token_of(metadata, "bos")
    if first is None or not metadata.get("tokenizer.ggml.add_bos_token", by_default):
        return None
    return processors.TemplateProcessing(
        single=f"{first} $A",
        pair=f"{first} $A {first} $B",
        special_tokens=[(first, int(metadata["tokenizer.ggml.bos_token_id"]))],
    )


def _token_of(metadata: Mapping[str, Any], name: str) -> str | None:
    index, tokens = metadata.get(f"tokenizer.ggml.{name}_token_id"), metadata.get("tokenizer.ggml.tokens") or ()
    return tokens[index] if isinstance(index, int) and 0 <= index < len(tokens) else None
