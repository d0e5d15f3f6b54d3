"""The text part of the native core, against `tokenizers` and the Python runtime: tokens, streams, stop strings."""

from __future__ import annotations

import itertools
import json
import random
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from helpers.core_build import ADDRESS
from helpers.made_tokenizers import byte_level, write_tokenizers
from helpers.native_text import NativeError, NativeText, differences, driver, random_text
from helpers.places import ROOT
from sol_rt.errors import BundleError
from sol_rt.text.tokenizer import Tokenizer

USAGE, BUNDLE, TEXT = 1, 2, 10  # of enum sol_code in sol_rt.h
_FAULTS = (
    pytest.param("", id="plain"),
    pytest.param(ADDRESS, id="sanitized", marks=pytest.mark.slow),
)


@pytest.fixture(scope="module", params=_FAULTS)
def program(request: pytest.FixtureRequest) -> Path:
    return driver(request.param)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {path.stem: path for path in write_tokenizers(tmp_path_factory.mktemp("tokenizers"))}


@pytest.fixture
def pieces(program: Path, files: dict[str, Path]) -> Iterator[tuple[NativeText, Tokenizer]]:
    with NativeText(program, files["pieces"]) as native:
        yield native, Tokenizer.from_file(files["pieces"])


def _write(path: Path, document: dict[str, Any]) -> Path:
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.mark.slow
def test_random_texts_have_the_tokens_of_tokenizers(program: Path, files: dict[str, Path]) -> None:
    for name, path in files.items():
        reference = Tokenizer.from_file(path)
        with NativeText(program, path) as native:
            found = list(differences(native, reference._inner, 500, seed=11))
            assert native.ask("last_id") == reference.last_id
            assert native.ask("size") == reference.vocab_size
        assert not found, f"{name}: {len(found)} differ\n" + "\n".join(found[:5])


def test_the_seeds_of_the_fuzz_target_are_read(program: Path, tmp_path: Path) -> None:
    """Mutations of a file that is refused at once would reach none of the later steps."""
    seeds = runpy.run_path(str(ROOT / "core" / "tests" / "fuzz" / "seeds.py"))
    for document, text in seeds["small_tokenizers"]():
        path = _write(tmp_path / "tokenizer.json", document)
        with NativeText(program, path) as native:
            if document["model"].get("unk_token") == "none":
                with pytest.raises(NativeError, match=r"model\.unk_token: got 'none'"):
                    native.ask("encode", texts=[text], add=True, parse=True)
                continue
            reference = Tokenizer.from_file(path)
            for add, parse in itertools.product((True, False), repeat=2):
                expected = reference.encode(text, add_special_tokens=add, parse_special=parse)
                assert native.ask("encode", texts=[text], add=add, parse=parse) == [expected], document


def test_a_difference_is_noticed(program: Path, files: dict[str, Path]) -> None:
    with NativeText(program, files["NFC"]) as native:
        assert list(differences(native, Tokenizer.from_file(files["NFKC"])._inner, 500))


@pytest.mark.slow
def test_every_character_is_what_tokenizers_takes_it_for(files: dict[str, Path]) -> None:
    """One text for a character, with a mark of an early and one of a late combining class around it.

    Every fifth also with sanitizers, which take five times as long.
    """
    programs = driver(), driver(ADDRESS)
    names = ("NFC", "NFD", "NFKC", "NFKD", "lowercase", "text-isolated-True", "split-isolated-True", "suffix", "prefix")
    alike = (
        (0x3400, 0xA000),
        (0xAC00, 0xF900),
        (0x17000, 0x18D00),
        (0x20000, 0x110000),
    )  # ideographs, syllables, private use
    codes = [code for code in range(0x110000) if code % 61 == 0 or not any(first <= code < end for first, end in alike)]
    characters = [chr(code) for code in codes if not 0xD800 <= code < 0xE000]
    for name in (*names, *(f"pattern-{number}" for number in range(4))):
        reference = Tokenizer.from_file(files[name])._inner
        reference.encode_special_tokens = False
        with NativeText(programs[0], files[name]) as plain, NativeText(programs[1], files[name]) as sanitized:
            for begin in range(0, len(characters), 20000):
                texts = [f"x\u0315{each}\u0334 a{each}b" for each in characters[begin : begin + 20000]]
                sanitized.pose("encode", texts=texts[::5], add=False, parse=True)
                plain.pose("encode", texts=texts, add=False, parse=True)
                expected = [encoding.ids for encoding in reference.encode_batch(texts, add_special_tokens=False)]
                assert plain.answer() == expected, f"{name}: from {begin} on"
                assert sanitized.answer() == expected[::5], f"{name}: from {begin} on, sanitized"


def test_special_tokens_in_a_text_stay_text_unless_asked_for(pieces: tuple[NativeText, Tokenizer]) -> None:
    native, reference = pieces
    text = "<|im_start|>a </s> b<N><|im_start|"
    special = reference.token_id("<|im_start|>")
    for parse in (True, False):
        (tokens,) = native.ask("encode", texts=[text], add=False, parse=parse)
        assert tokens == reference.encode(text, add_special_tokens=False, parse_special=parse)
        assert (special in tokens) is parse


def test_a_special_token_of_the_models_own_vocabulary_is_refused_in_plain_text(program: Path, tmp_path: Path) -> None:
    vocabulary = {"<unk>": 0, "</s>": 1, "a": 2}
    inner = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", ignore_merges=True))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["</s>"])
    inner.save(str(tmp_path / "tokenizer.json"))
    with NativeText(program, tmp_path / "tokenizer.json") as native:
        assert native.ask("encode", texts=["a </s>"], add=False, parse=True) == [[2, 1]]
        assert native.ask("encode", texts=["a b"], add=False, parse=False) == [[2, 0]]
        with pytest.raises(NativeError, match="prompt: got text that is the special token '</s>'") as error:
            native.ask("encode", texts=["a </s>"], add=False, parse=False)
        assert error.value.code == USAGE


def test_end_tokens_count_as_special(program: Path, files: dict[str, Path]) -> None:
    end = Tokenizer.from_file(files["NFC"]).token_id("Foo")
    assert end is not None
    reference = Tokenizer.from_file(files["NFC"], [end])
    with NativeText(program, files["NFC"], [end]) as native:
        for parse in (True, False):
            expected = reference.encode("a Foo b", add_special_tokens=False, parse_special=parse)
            assert native.ask("encode", texts=["a Foo b"], add=False, parse=parse) == [expected]
        assert native.ask("decode", tokens=[[end]], skip=True) == [""]


@pytest.mark.parametrize("name", ["prefix-space", "pieces", "metaspace-first-True", "suffix", "dropped", "first-grown"])
def test_streams_give_the_pieces_of_the_python_runtime(program: Path, files: dict[str, Path], name: str) -> None:
    reference, draw = Tokenizer.from_file(files[name]), random.Random(3)
    with NativeText(program, files[name]) as native:
        for _ in range(150):
            context = reference.encode(random_text(draw, ["</s>"]), add_special_tokens=draw.random() < 0.5)
            tokens = reference.encode(random_text(draw, ["</s>"]), add_special_tokens=False)
            if draw.random() < 0.5:  # characters that break off
                tokens = [draw.randrange(reference.last_id + 1) for _ in range(20)]
                context = context[: draw.randrange(len(context) + 1)]
            skip = draw.random() < 0.5
            stream = reference.stream(context, skip)
            expected = [*(stream.add(token) for token in tokens), stream.flush()]
            assert native.ask("stream", context=context, tokens=tokens, skip=skip) == expected


def held_back(strings: list[str], texts: list[str]) -> list[Any]:
    """The text that may be shown after each piece, whether a stop string was found, and at the end the rest."""
    whole, shown, said = "", 0, []
    found = False
    for text in texts:
        if found:
            said.append(["", True])
            continue
        whole += text
        places = [(at, len(string)) for string in strings if (at := whole.find(string)) >= 0]
        if places:
            found, end = True, min(places)[0]
        else:
            begun = [n for string in strings for n in range(1, len(string)) if whole.endswith(string[:n])]
            end = len(whole) - max(begun, default=0)
        said.append([whole[shown : max(end, shown)], found])
        shown = max(end, shown)
    return [*said, "" if found else whole[shown:]]


def test_stop_strings_hold_back_what_may_begin_one(pieces: tuple[NativeText, Tokenizer]) -> None:
    draw = random.Random(5)
    for _ in range(300):
        strings = ["".join(draw.choice("abé") for _ in range(draw.randrange(1, 5))) for _ in range(draw.randrange(4))]
        texts = ["".join(draw.choice("abcé") for _ in range(draw.randrange(4))) for _ in range(8)]
        told = pieces[0].ask("stop", strings=strings, texts=texts)
        stopped = next((index for index, each in enumerate(told[:-1]) if each[1]), len(texts))
        expected = held_back(strings, texts)
        assert told[: stopped + 1] == expected[: stopped + 1]
    with pytest.raises(NativeError) as native:
        pieces[0].ask("stop", strings=["a", ""], texts=[])
    assert native.value.code == USAGE


def test_generated_text_ends_at_end_tokens_and_stop_strings(pieces: tuple[NativeText, Tokenizer]) -> None:
    native, reference = pieces
    draw, end = random.Random(9), reference.token_id("</s>")
    assert end is not None
    for _ in range(150):
        prompt = reference.encode(random_text(draw, []))
        tokens = [*reference.encode(random_text(draw, []) + random_text(draw, []), add_special_tokens=False), end]
        strings = [
            draw.choice(["a", "12", "the ", "e\u0301", "  ", "\n", "zzz", "ing"]) for _ in range(draw.randrange(3))
        ]
        said = native.ask("write", prompt=prompt, tokens=tokens, strings=strings, end=[end])
        stream = reference.stream(prompt)
        whole = "".join(stream.add(token) for token in tokens[: len(said) - (len(said) == len(tokens))])
        whole += stream.flush() if len(said) == len(tokens) else ""
        places = [at for string in strings if (at := whole.find(string)) >= 0]
        assert "".join(text for text, _ in said) == (whole[: min(places)] if places else whole)
        assert [stop for _, stop in said] == [False] * (len(said) - 1) + [True]


@pytest.mark.parametrize(
    "text", [[0xFF], [0xC0, 0x80], [0xED, 0xA0, 0x80], [0xF4, 0x90, 0x80, 0x80], [0x61, 0xE2, 0x82]]
)
def test_bytes_that_are_no_text_are_an_error(pieces: tuple[NativeText, Tokenizer], text: list[int]) -> None:
    with pytest.raises(NativeError, match=r"^prompt: not valid Unicode text; give it as UTF-8$") as error:
        pieces[0].ask("encode", texts=[text], add=True, parse=True)
    assert error.value.code == TEXT


def test_tokenizers_unknown_to_the_core_are_refused_in_one_line(program: Path, tmp_path: Path) -> None:
    known = json.loads(byte_level().to_str())
    unknown: list[tuple[str, dict[str, Any]]] = [
        ("scores", {"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}}),
        ("WordPiece", {"model": {"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a"}}),
        ("dropout", {"model": known["model"] | {"dropout": 0.1}}),
        ("Precompiled", {"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}),
        ("UnicodeScripts", {"pre_tokenizer": {"type": "UnicodeScripts"}}),
        ("WordPiece", {"decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}}),
        ("nothing to repeat", {"pre_tokenizer": _split("*a")}),
        (r"with \\1", {"pre_tokenizer": _split(r"(a)\1")}),
        ("a kind that is not known", {"pre_tokenizer": _split(r"(?<name>a)")}),
        ("in another", {"pre_tokenizer": _split(r"[a[bc]]")}),
        ("&&", {"pre_tokenizer": _split(r"[a&&b]")}),
        ("property", {"pre_tokenizer": _split(r"\p{Nonsense}")}),
        ("nest too deeply", {"pre_tokenizer": _split("(" * 500 + "a" + ")" * 500)}),
        ("1000 repetitions", {"pre_tokenizer": _split("a{100000}")}),
    ]
    for name, change in unknown:
        path = _write(tmp_path / "tokenizer.json", known | change)
        with pytest.raises(NativeError, match=name) as error:
            NativeText(program, path)
        assert error.value.code == TEXT, error.value
        assert str(error.value).endswith("; encode and decode on the host, and give token ids")
        assert str(error.value).startswith(f"{path}: got ")


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def test_ids_beyond_any_vocabulary_are_refused(program: Path, tmp_path: Path) -> None:
    document = json.loads(byte_level().to_str())
    document["model"]["vocab"]["far"] = 4000000000
    with pytest.raises(NativeError, match=r"token id 4000000000 in model\.vocab") as error:
        NativeText(program, _write(tmp_path / "tokenizer.json", document))
    assert error.value.code == BUNDLE


def test_damaged_files_are_refused_in_one_line(program: Path, tmp_path: Path) -> None:
    known = json.loads(byte_level().to_str())
    text = json.dumps(known).encode()
    path = tmp_path / "tokenizer.json"
    damaged = [
        *(text[:length] for length in (0, 1, 100, len(text) // 2, len(text) - 1)),
        b"[" * 100000,
        b'{"a":' * 100000,
        b"[]",
        b"null",
        b'{"model": "BPE"}',
        text.replace(b'"vocab"', b'"words"'),
        text.replace(b'"merges"', b'"fusions"'),
        text.replace(b'"merges": [[', b'"merges": [["unheard of", "x"], ['),
        text.replace(b'"merges": [[', b'"merges": ["a b c", ['),
        text.replace(b'"id"', b'"number"'),
        text.replace(b'"content": "Foo"', b'"content": 7'),
        text.replace(b'"vocab": {', b'"vocab": {"far": -1, '),
        text.replace(b'"Foo"', b'"\xff"'),
        text.replace(b'"Foo"', b'"\\ud800"'),
    ]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(NativeError) as error:
            NativeText(program, path)
        assert error.value.code == BUNDLE, error.value
        assert str(error.value).startswith(f"{path}: ")
        assert "\n" not in str(error.value)
        with pytest.raises(BundleError):  # the Python runtime refuses it, too
            Tokenizer.from_file(path)


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|aa)+$", r"(a|a|a)*b", r"a*a*a*a*a*a*a*b"])
def test_a_pattern_that_explodes_ends_with_an_error(program: Path, tmp_path: Path, pattern: str) -> None:
    document = json.loads(byte_level().to_str()) | {"pre_tokenizer": _split(pattern)}
    with NativeText(program, _write(tmp_path / "tokenizer.json", document)) as native:
        with pytest.raises(NativeError, match="takes too long") as error:
            native.ask("encode", texts=["a" * 5000 + "cbx"], add=True, parse=True)
        assert error.value.code == TEXT
        assert len(native.ask("encode", texts=["aac"], add=True, parse=True)[0]) > 0


@pytest.mark.slow
def test_long_texts_are_encoded(program: Path, files: dict[str, Path]) -> None:
    texts = [piece * 50000 for piece in ("a", " ", "é", "\n", "the ", "x1 ", "▁", "\U0001f41f")]
    for name in ("pieces", "pattern-0", "NFC", "prefix-space"):
        reference = Tokenizer.from_file(files[name])
        with NativeText(program, files[name]) as native:
            expected = [reference.encode(text) for text in texts]
            assert native.ask("encode", texts=texts, add=True, parse=True) == expected


def test_merges_may_be_texts_or_pairs(program: Path, tmp_path: Path) -> None:
    document = json.loads(byte_level().to_str())
    pairs = document["model"]["merges"]
    document["model"]["merges"] = [" ".join(pair) for pair in pairs]
    path = _write(tmp_path / "tokenizer.json", document)
    reference = tokenizers.Tokenizer.from_file(str(path))
    with NativeText(program, path) as native:
        assert not list(differences(native, reference, 500))


def test_spaces_that_tokens_take_along_are_looked_at_once(program: Path, tmp_path: Path) -> None:
    """Each of the spaces is a token that strips the spaces on both sides."""
    made = byte_level()
    made.add_tokens([tokenizers.AddedToken("\u3000", normalized=False, lstrip=True, rstrip=True)])
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    reference = Tokenizer.from_file(path)
    with NativeText(program, path) as native:
        short = "a " + "\u3000" * 50 + " b"
        assert native.ask("encode", texts=[short], add=True, parse=True) == [reference.encode(short)]
        assert len(native.ask("encode", texts=["\u3000" * 300_000], add=True, parse=True)[0]) == 1


def test_all_pieces_of_a_text_share_the_effort(program: Path, tmp_path: Path) -> None:
    document = json.loads(byte_level().to_str()) | {"pre_tokenizer": _split(r"(a|a|a)*b")}
    with (
        NativeText(program, _write(tmp_path / "tokenizer.json", document)) as native,
        pytest.raises(NativeError, match="takes too long"),
    ):
        native.ask("encode", texts=[("a" * 12 + "cb<|im_start|>") * 3000], add=True, parse=True)


def test_long_chains_of_steps_are_refused(program: Path, tmp_path: Path) -> None:
    known, lower = json.loads(byte_level().to_str()), {"type": "Lowercase"}
    for change in (
        {"normalizer": {"type": "Sequence", "normalizers": [lower] * 65}},
        {"normalizer": {"type": "Prepend", "prepend": "x" * 2000}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}] * 65}},
        {"decoder": {"type": "Sequence", "decoders": [{"type": "Fuse"}] * 65}},
    ):
        with pytest.raises(NativeError, match="expected at most") as error:
            NativeText(program, _write(tmp_path / "tokenizer.json", known | change))
        assert error.value.code == TEXT


@pytest.mark.slow
def test_chains_of_steps_that_double_a_text_end_with_an_error(program: Path, tmp_path: Path) -> None:
    known = json.loads(byte_level().to_str())
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    for name, steps in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        change = {name: {"type": "Sequence", steps: [step] * 40}, "added_tokens": []}
        with NativeText(program, _write(tmp_path / "tokenizer.json", known | change)) as native:
            with pytest.raises(NativeError, match=f"the tokenizer's {name} makes more than") as error:
                native.ask("encode", texts=["\u00e9" * 20000], add=True, parse=True)
            assert error.value.code == TEXT


def test_tokens_that_a_decoder_lengthens_share_a_bound(program: Path, tmp_path: Path) -> None:
    decoder = {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 1_000_000}
    path = _write(tmp_path / "tokenizer.json", json.loads(byte_level().to_str()) | {"decoder": decoder})
    with NativeText(program, path) as native:
        with pytest.raises(NativeError, match="the tokenizer's decoder makes more than 64 MB of them") as error:
            native.ask("decode", tokens=[[10] * 200], skip=False)
        assert error.value.code == TEXT
        assert len(native.ask("decode", tokens=[[10]], skip=False)[0]) > 1_000_000


def test_a_long_prefix_or_suffix_of_characters_is_refused(program: Path, tmp_path: Path) -> None:
    """If bytes stand in for a character, every character of a text would become as many tokens."""
    known = json.loads(byte_level().to_str())
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        change = {"model": known["model"] | {name: "a" * 65, "byte_fallback": True}}
        with pytest.raises(NativeError, match="a long prefix or suffix, expected at most 64 bytes") as error:
            NativeText(program, _write(tmp_path / "tokenizer.json", known | change))
        assert error.value.code == TEXT


def _added(contents: list[str]) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return [{"id": 1000 + number, "content": content, **flags} for number, content in enumerate(contents)]


def test_added_tokens_share_the_effort_of_the_normalizer(program: Path, tmp_path: Path) -> None:
    """Each of them alone takes a tenth of what one text may take."""
    change = {
        "normalizer": {"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": "y"},
        "added_tokens": _added([f"{'a' * 21}c{number}" for number in range(2000)]),
    }
    path = _write(tmp_path / "tokenizer.json", json.loads(byte_level().to_str()) | change)
    with pytest.raises(NativeError, match="takes too long") as error:
        NativeText(program, path)
    assert error.value.code == TEXT


def test_an_added_token_that_the_normalizer_lengthens_is_refused_at_once(program: Path, tmp_path: Path) -> None:
    """All of them would take 6 GB."""
    prepend = {"type": "Prepend", "prepend": "x" * 1000}
    change = {
        "normalizer": {"type": "Sequence", "normalizers": [prepend] * 64},
        "added_tokens": _added([f"t{number}" for number in range(100_000)]),
    }
    path = _write(tmp_path / "tokenizer.json", json.loads(byte_level().to_str()) | change)
    with pytest.raises(NativeError, match="an added token of 64002 bytes") as error:
        NativeText(program, path)
    assert error.value.code == TEXT


def test_segments_that_outgrow_the_conversation_are_refused(pieces: tuple[NativeText, Tokenizer]) -> None:
    between = {"start": {"user": "x" * 300_000}, "user": {"user": "", "answer": ""}}
    segments = json.dumps({"format_version": 1, "trimmed": [], "filled": [], "between": between})
    short, long = ({"role": "user", "content": "a" * length} for length in (100, 50_000))
    with pytest.raises(NativeError, match="add more than a conversation has") as error:
        pieces[0].ask("chat", segments=segments, messages=[short])
    assert error.value.code == TEXT
    assert pieces[0].ask("chat", segments=segments, messages=[long])
