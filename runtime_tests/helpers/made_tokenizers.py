"""Small tokenizers of every style that the native core reads, trained on a few words."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from helpers.native_text import WORDS

BEHAVIORS = ("removed", "isolated", "merged_with_previous", "merged_with_next", "contiguous")
PATTERNS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|"
    r"\s+(?!\S)|\s+",
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t)?",
    r"\p{N}{1,2}+|\w+\b|\W|^.|.$",
    r"[\w\-]+|\S{2,4}?|[^\S\n]+",
    r"\b\d+\b|[\p{Han}\p{Hiragana}ー]+|\h{2}",
    r"(?=\p{Lu})|(?<!\d)\d{,2}",
    r"\B.|\p{^L}+",
    r"(?i)straße|k+|s|ǆ|[a-f]+",
    r"\A.|.\z|.\Z|x?",
    r"(?:ab|a)+|(b|c)?",
    r"[^\x{300}-\x{36f}]\u0301*",
    r"$|^",
    r"[\t-\r ]+|[\]\[{}^-]+|\x41",
    "a*?",
)
_ADDED = (
    AddedToken("<|im_start|>", special=True, normalized=False),
    AddedToken("</s>", special=True, normalized=False, lstrip=True),
    AddedToken("<r>", special=True, normalized=False, rstrip=True),
    AddedToken("<b>", special=True, normalized=False, lstrip=True, rstrip=True),
    AddedToken("<N>", special=True, normalized=True),
    AddedToken("Foo", special=False, normalized=True),
    AddedToken("é", special=False, normalized=True),
    AddedToken("foo_bar", special=False, normalized=True, single_word=True),
    AddedToken("the", special=False, normalized=True, single_word=True, lstrip=True, rstrip=True),
    AddedToken("  ", special=False, normalized=False),
    AddedToken("\n", special=False, normalized=False),
    AddedToken("<|im", special=False, normalized=False),
    AddedToken("\u3000", special=False, normalized=False, lstrip=True, rstrip=True),
)


def write_tokenizers(folder: Path) -> list[Path]:
    """Writes one file for each tokenizer and returns their paths."""
    paths = []
    for name, tokenizer in _all():
        path = folder / f"{name}.json"
        path.write_text(tokenizer.to_str(), encoding="utf-8")
        paths.append(path)
    return paths


def byte_level(pre: Any = None, normalizer: Any = None, **model: Any) -> Tokenizer:
    """A byte-level tokenizer. `pre` replaces the usual split into words; `model` are fields of the model."""
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre is None)
    steps = last if pre is None else pre_tokenizers.Sequence([pre, last])
    made = _trained(steps, normalizer, {}, pre_tokenizers.ByteLevel.alphabet(), model)
    made.decoder = decoders.ByteLevel()
    return made


def sentence_pieces(pre: Any = None, normalizer: Any = None, **model: Any) -> Tokenizer:
    """A tokenizer in the style of SentencePiece, with an unknown token and tokens for bytes."""
    made = _trained(pre, normalizer, {"unk_token": "<unk>"}, [], {"fuse_unk": True, "byte_fallback": True} | model)
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return made


def _trained(pre: Any, normalizer: Any, text: dict[str, str], alphabet: list[str], fields: dict[str, Any]) -> Tokenizer:
    """A tokenizer trained on random sentences.

    Args:
        pre, normalizer: its first steps.
        text: affixes and the unknown token.
        alphabet: characters that it knows in any case.
        fields: further fields of the model.
    """
    draw = random.Random(7)
    sentences = [
        " ".join(draw.choice([*WORDS, "hello", "there", "running", "  12 34"]) for _ in range(12)) for _ in range(200)
    ]
    made = Tokenizer(models.BPE(**text))
    if normalizer is not None:
        made.normalizer = normalizer
    if pre is not None:
        made.pre_tokenizer = pre
    affixes = {key: value for key, value in text.items() if key != "unk_token"}
    unknown = [text["unk_token"]] if "unk_token" in text else []
    limit = 300 if alphabet else 80
    made.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=unknown,
            initial_alphabet=alphabet,
            limit_alphabet=limit,
            show_progress=False,
            **affixes,
        ),
    )
    document = json.loads(made.to_str())
    document["model"] |= fields
    if fields.get("byte_fallback"):
        vocabulary = document["model"]["vocab"]
        vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    made = Tokenizer.from_str(json.dumps(document))
    made.add_tokens(list(_ADDED))
    return made


def _all() -> Iterator[tuple[str, Tokenizer]]:
    bos = processors.TemplateProcessing(
        single="<|im_start|> $A </s>", special_tokens=[("<|im_start|>", 7), ("</s>", 8)]
    )
    first = pre_tokenizers.Metaspace(prepend_scheme="first")

    made = _trained(pre_tokenizers.ByteLevel(), None, {}, pre_tokenizers.ByteLevel.alphabet(), {})
    made.decoder, made.post_processor = decoders.ByteLevel(), processors.ByteLevel(trim_offsets=False)
    yield "prefix-space", made

    for name in ("NFC", "NFD", "NFKC", "NFKD"):
        made = byte_level(normalizer=getattr(normalizers, name)(), ignore_merges=name == "NFKC")
        made.post_processor = bos
        yield name, made
    lowercase = [normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()]
    yield "lowercase", byte_level(normalizer=normalizers.Sequence(lowercase))
    replaced = [normalizers.Strip(), normalizers.Replace(Regex(r"\s{2,}|\d"), "_"), normalizers.Prepend("^^")]
    yield "replace", byte_level(normalizer=normalizers.Sequence(replaced))
    removed = [normalizers.Strip(left=True, right=False), normalizers.Replace("a", "")]
    yield "remove", byte_level(normalizer=normalizers.Sequence(removed))

    marks = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made = sentence_pieces(normalizer=marks)
    made.post_processor = processors.Sequence([processors.ByteLevel(), bos])
    yield "pieces", made
    for scheme in ("first", "never", "always"):
        for split in (True, False):
            made = sentence_pieces(pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split), byte_fallback=split)
            made.decoder = decoders.Metaspace(prepend_scheme=scheme)
            yield f"metaspace-{scheme}-{split}", made
    grown = normalizers.Sequence([normalizers.NFC(), normalizers.Prepend("ab"), normalizers.Replace("a", "xyz")])
    yield (
        "first-grown",
        sentence_pieces(pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\d"), "isolated"), first]), grown),
    )
    shrunk = normalizers.Sequence([normalizers.NFKD(), normalizers.Lowercase(), normalizers.Strip()])
    yield "first-shrunk", sentence_pieces(pre_tokenizers.Sequence([pre_tokenizers.Punctuation(), first]), shrunk)

    yield "unfused", sentence_pieces(pre_tokenizers.WhitespaceSplit(), fuse_unk=False, byte_fallback=False)
    made = _trained(
        pre_tokenizers.Whitespace(),
        normalizers.Lowercase(),
        {"unk_token": "<unk>", "end_of_word_suffix": "</w>"},
        [],
        {},
    )
    made.decoder = decoders.BPEDecoder("</w>")
    yield "suffix", made
    for unknown in ({"unk_token": "<unk>"}, {}):
        text = {"continuing_subword_prefix": "##", **unknown}
        made = _trained(pre_tokenizers.BertPreTokenizer(), None, text, [], {"byte_fallback": bool(unknown)})
        if unknown:
            made.decoder = decoders.Sequence([decoders.Replace("##", ""), decoders.Fuse(), decoders.Strip("a", 2, 0)])
        yield "prefix" if unknown else "dropped", made

    for behavior in BEHAVIORS:
        for invert in (True, False):
            split = pre_tokenizers.Split(Regex(r"\s+|\d|(?<=a)"), behavior, invert=invert)
            steps = [split, pre_tokenizers.Punctuation(behavior)]
            yield f"split-{behavior}-{invert}", byte_level(pre_tokenizers.Sequence(steps))
            steps = [pre_tokenizers.Split("a", behavior, invert=invert), pre_tokenizers.Digits(invert)]
            yield f"text-{behavior}-{invert}", byte_level(pre_tokenizers.Sequence(steps))
    for number, pattern in enumerate(PATTERNS):
        yield f"pattern-{number}", byte_level(pre_tokenizers.Split(Regex(pattern), "isolated"))
