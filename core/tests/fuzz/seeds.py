"""Writes what a fuzz target begins with, mostly files that tests keep: `seeds.py TARGET FOLDER`."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LONGEST = 4096  # bytes: what run.sh lets an input have, because longer ones take time and show nothing more
TESTS = Path(__file__).resolve().parents[3] / "runtime_tests"
GOLDEN = TESTS / "golden" / "tiny"
_REPLACED: list[tuple[dict[str, str], str]] = [
    ({"String": " "}, "▁"),
    ({"String": "ab"}, ""),
    ({"Regex": r"\s+|b"}, "aa"),
    ({"Regex": "(?=a)"}, "1"),
]
_PATTERNS = (
    r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+",
    r"(?>a|b)*+[^\w\-\x41]{,2}?|\P{L}$|^\h{1,2}+",
    r"\b\d+\B|(?<=a)|(?<!\W)[\t-\r ]",
    r"\A.\z|\Z|x?|\u0301|\x{e9}",
    r"(?i)[a-f\D\S]+?|\H|[^\p{^L}]",
    r"(?-i:(a)b|c{2}){2}{3}",
)


def small_configs() -> list[dict[str, Any]]:
    """Configs that the reader takes, with each optional part in one of them, and few entries: short inputs run fast."""
    config = json.loads((GOLDEN / "sol_config.json").read_text(encoding="utf-8"))
    variants = config["variants"] = {key: config["variants"][key] for key in ("s100-q8", "s060-q4")}
    config["actions"] = [action for action in config["actions"] if action["tag"][5:] in variants][:3]
    config["policy"]["actions"] = [action["tag"] for action in config["actions"]]
    config["policy"]["scalars"] = config["policy"]["scalars"][:2]
    tensors = ("embed.scale", "layers.1.down.scale", "embed.plane1", "embed.plane2")
    config["weights"]["tensors"] = {name: config["weights"]["tensors"][name] for name in tensors}
    wanted = {config["weights"]["file"], config["policy"]["file"], *(variant["file"] for variant in variants.values())}
    config["files"] = {name: entry for name, entry in config["files"].items() if name in wanted}
    full = variants["s100-q8"]

    mixed = copy.deepcopy(config)
    mixed["variants"]["s100-qmix"] = full | {"bits": "mixed", "lm_head_bits": 6, "file": "policy.onnx"}
    mixed["variants"]["s100-qmix"]["layer_bits"] = [[8, 4, 4, 6], [4, 6, 8, 4]]
    mixed["policy"] = None

    three = copy.deepcopy(config)
    three["variants"]["s100-q3"] = full | {"bits": 3, "file": "policy.onnx"}
    three["variants"]["s100-q3"] |= {"layer_bits": [[3, 4, 3, 3], [3, 3, 3, 4]]}
    three["variants"]["s100-q3"] |= {"lm_head_screen": {"tail_offset": 0.5, "bits": 3, "candidates": 32}}
    three["weights"]["tensors"]["codebook"] = {"dtype": "int8", "shape": [4, 8], "offset": 0, "bytes": 32}
    three["weights"]["tensors"]["layers.0.up.low"] = {"dtype": "uint8", "shape": [32, 8], "offset": 0, "bytes": 256}
    three["policy"] = None

    states = copy.deepcopy(config)
    states["kv"] |= {"layers": ["conv", "attention"], "conv_size": 3, "dense_layers": [1]}

    windows = copy.deepcopy(config)
    windows["kv"] |= {"windows": [0, 512], "dtype": "int8"}
    return [config, mixed, three, states, windows]


def _bpe(tokens: list[str], merges: list[Any]) -> dict[str, Any]:
    return {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}


def small_tokenizers() -> list[tuple[dict[str, Any], str]]:
    """Documents of a `tokenizer.json` and texts, one pair for each step that the core reads and each way to set it."""
    plain = _bpe(["a", "b", " ", "ab", " ab", "1"], [["a", "b"], [" ", "ab"]])
    pieces = _bpe(["<unk>", "▁", "a", "b", "ab", "▁ab"], ["a b", "▁ ab"])
    byte_level = _bpe(["Ġ", "a", "b", "ab", "Ġab", "Ã", "©"], ["a b", "Ġ ab"])
    with_bytes = _bpe([*pieces["vocab"], *(f"<0x{byte:02X}>" for byte in "é▁\n".encode()), "<0x"], ["a b", "▁ ab"])
    with_bytes["byte_fallback"] = True
    special = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    text, words = " ab, A1b  \u00e9e\u0301\u00bd\uac00\u0130 ", "ab a b ab 1 ab é ab b é  ab,a"
    found: list[tuple[dict[str, Any], str]] = []

    def add(model: dict[str, Any], text: str, tokens: list[dict[str, Any]] | None = None, **steps: Any) -> None:
        fields = [special | {"id": 90 + i} | token for i, token in enumerate(tokens or [])]
        found.append(({"model": model, "added_tokens": fields} | steps, text))

    for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "ByteLevel"):
        add(plain, text, normalizer={"type": name})
    for left, right in ((True, True), (True, False), (False, True)):
        add(plain, " \u3000ab\t", normalizer={"type": "Strip", "strip_left": left, "strip_right": right})
    replaced = [{"type": "Replace", "pattern": pattern, "content": new} for pattern, new in _REPLACED]
    for step in replaced:
        add(plain, text, normalizer=step)
    prepended = {"type": "Prepend", "prepend": "▁"}
    add(pieces, " ab", normalizer={"type": "Sequence", "normalizers": [prepended, replaced[0]]})
    steps = [{"type": "NFD"}, prepended, {"type": "StripAccents"}]
    add(pieces, "éab", normalizer={"type": "Sequence", "normalizers": steps})

    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            split = {"type": "Split", "pattern": {"String": "b"}, "behavior": behavior, "invert": invert}
            add(plain, "abba b", pre_tokenizer=split)
        add(plain, "a,b!?", pre_tokenizer={"type": "Punctuation", "behavior": behavior})
    for pattern in _PATTERNS:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        add(plain, text, pre_tokenizer=split)
    bytes_first = {"type": "ByteLevel", "trim_offsets": True}
    for space in (False, True):
        for regex in (False, True):
            add(byte_level, words, pre_tokenizer=bytes_first | {"add_prefix_space": space, "use_regex": regex})
    for scheme in ("first", "never", "always"):
        for whole in (False, True):
            metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": not whole}
            add(pieces, "ab  ab", [{"content": "<s>"}], pre_tokenizer=metaspace, decoder=metaspace)
    for alone in (False, True):
        add(plain, "a12b½", pre_tokenizer={"type": "Digits", "individual_digits": alone})
    for name in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer"):
        add(plain, words, pre_tokenizer={"type": name})
    steps = [{"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}]
    add(pieces, words, pre_tokenizer={"type": "Sequence", "pretokenizers": steps})

    unknown = {"unk_token": "<unk>"}
    fused = unknown | {"fuse_unk": True}
    for change in (unknown, fused, {"unk_token": "none"}, {"ignore_merges": True}, {"dropout": 0.0}):
        add(pieces | change, "xab中中b")
    add(with_bytes | unknown, "abé\n▁x", decoder={"type": "ByteFallback"})
    affixed = ["<unk>", "a", "##b", "b</w>", "##b</w>", "ab</w>", "##bb</w>", "abb</w>"]
    merges = ["a ##b</w>", "##b ##b</w>", "a ##bb</w>"]
    affixes = {"continuing_subword_prefix": "##", "end_of_word_suffix": "</w>"}
    add(_bpe(affixed, merges) | affixes, "abb ab b", decoder={"type": "BPEDecoder", "suffix": "</w>"})
    for name, affix in affixes.items():
        add(_bpe(["a", "##b", "b", "b</w>", "##a</w>"], []) | {name: affix}, "abab")
    chain = _bpe(["a", "aa", "aaaa"], ["aa aa", "a a", "aa a"])
    chain["vocab"]["aaa"] = 7  # ids with a hole
    add(chain, "aaaaaaaaaaa")

    for decoder in (
        bytes_first | {"add_prefix_space": False, "use_regex": False},
        {"type": "Fuse"},
        *({"type": "Strip", "content": "a", "start": start, "stop": stop} for start, stop in ((1, 0), (0, 1), (2, 2))),
        *replaced,
        {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, replaced[1]]},
    ):
        add(byte_level, "aababa", decoder=decoder)
        add(with_bytes, "a éab▁ab", decoder=decoder)

    single = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    template: dict[str, Any] = {"type": "TemplateProcessing", "single": single, "pair": []}
    template["special_tokens"] = {"<s>": {"id": "<s>", "ids": [6, 5], "tokens": ["<s>", "1"]}}
    bytes_last = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    pair = {"sep": ["1", 5], "cls": ["<s>", 6]}
    roberta = {"type": "RobertaProcessing", "add_prefix_space": True, "trim_offsets": True} | pair
    both_steps = {"type": "Sequence", "processors": [bytes_last, template]}
    for post in (template, roberta, {"type": "BertProcessing"} | pair, bytes_last, both_steps):
        add(plain, "ab<s>", [{"content": "<s>"}], post_processor=post)

    for flag in ("lstrip", "rstrip", "single_word", "normalized"):
        add(plain, "a <s> ab<s><s>  <s>é<s>", [{"content": "<s>", flag: True}])
    both = {"lstrip": True, "rstrip": True}
    add(plain, "a  <s>  <t>  b", [{"content": "<s>"} | both, {"content": "<t>", "special": False} | both])
    add(plain, "<s><s></s><s", [{"content": "<s"}, {"content": "<s>"}, {"content": "<s></s>"}, {"content": "a"}])
    folded = [{"content": "AÉ", "normalized": True, "special": False}, {"content": "<S>", "normalized": True}]
    add(plain, "xAé aé<s>", folded, normalizer={"type": "Lowercase"})
    return found


def _beyond(value: Any) -> Iterator[Any]:
    """Copies of a document with one of the numbers outside of vocabularies replaced by the first beyond 32 bits."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield 2**31
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        for changed in _beyond(value[key]) if key != "vocab" else ():
            copied = value.copy()
            copied[key] = changed
            yield copied


def small_chats() -> list[tuple[dict[str, Any], str]]:
    """Documents of a `chat_segments.json` and a message's text for each."""
    lists: dict[str, Any] = {"format_version": 1, "trimmed": ["user"], "filled": ["assistant"]}
    between = {"start": {"user": "<s>"}, "user": {"assistant": "b"}, "assistant": {"user": "a", "answer": "<s>"}}
    bare = between | {"user": {"user": "", "assistant": "", "answer": ""}}
    return [
        (lists | {"between": between}, " a<s> "),
        (lists | {"filled": [], "between": between}, "\u3000<s"),
        (lists | {"filled": [], "trimmed": ["user", "system", "assistant"], "between": bare}, "s>"),
    ]


def seeds(target: str) -> list[bytes]:
    """Inputs of a target. The target `bundle` chooses its reader by the first byte."""
    if target == "bundle":
        configs = [json.dumps(config, separators=(",", ":")).encode() for config in small_configs()]
        damaged = sorted((TESTS / "corpus" / "config").iterdir())
        graphs = [*sorted((TESTS / "corpus" / "graph").iterdir()), *sorted(GOLDEN.glob("*.onnx"))]
        tags = [b"k030-s050-q4", b"k100-s100-qmix", b"k100-s100-q5"]
        return [
            *(b"\0" + content for content in configs),
            *(b"\0" + path.read_bytes() for path in damaged),
            *(b"\1" + path.read_bytes() for path in graphs),
            *(b"\2" + tag for tag in tags),
        ]
    pairs = [*small_tokenizers(), *small_chats()]
    pairs += [(document, " \u3000 ") for document, _ in pairs]
    pairs += [(changed, text) for document, text in small_tokenizers() for changed in _beyond(document)]
    return [
        json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode() + b"\0" + text.encode()
        for document, text in pairs
    ]


def main() -> None:
    target, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(seeds(target)):
        if len(content) <= LONGEST:
            (folder / f"seed-{number}").write_bytes(content)


if __name__ == "__main__":
    main()
