"""Text to train on: what files become, what is said of files that are none, and the windows cut from them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sol_rt.errors import UsageError
from sol_rt.text.tokenizer import Tokenizer
from sol_rt.train.config import DataConfig
from sol_rt.train.data import corpus
from sol_rt.train.data.corpus import read_documents
from sol_rt.train.data.windows import Windows


@pytest.fixture
def tokenizer() -> Tokenizer:
    """A token a character, by its code point."""
    vocabulary = {chr(code): code for code in range(1, 256)} | {"<unk>": 0}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], unk_token="<unk>"))
    return Tokenizer(inner)


def texts(paths: list[Path], tokenizer: Tokenizer) -> list[str]:
    return ["".join(map(chr, tokens)) for tokens in read_documents(paths, tokenizer, lambda done, total: None)]


def test_files_and_folders_in_order(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    for name in ("b.txt", "in/z.txt", "in/a.md", "in/deeper/c.txt", "in/left.csv", "in/deeper/d.jsonl"):
        content = json.dumps({"text": name}) if name.endswith("jsonl") else name
        (tmp_path / name).write_text(content)
    (tmp_path / "in" / "folder.txt").mkdir()
    said: list[tuple[int, int]] = []
    paths = [tmp_path / "in", tmp_path / "b.txt"]
    documents = read_documents(paths, tokenizer, lambda done, total: said.append((done, total)))
    assert [document.dtype for document in documents] == [np.int64] * 5
    assert texts(paths, tokenizer) == ["in/a.md", "in/deeper/c.txt", "in/deeper/d.jsonl", "in/z.txt", "b.txt"]
    assert said == [(done, 5) for done in range(6)]


def test_lines_of_json(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "a.jsonl"
    records = [{"id": "7", "question": "How?", "answer": "So."}, {"text": "Plain.", "question": "no"}]
    path.write_text("\n\n".join(map(json.dumps, records)) + "\n")
    assert texts([path], tokenizer) == ["How?\nSo.\n\nPlain."]
    path.write_bytes('{"text": "a\x85b"}\r\n{"text": "c"}\r\n'.encode())  # a line end only to str.splitlines
    assert texts([path], tokenizer) == ["a\x85b\n\nc"]


def test_pieces_end_with_lines(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_PIECE", 10)
    encoded: list[str] = []

    class Listening(Tokenizer):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            encoded.append(text)
            return super().encode(text, add_special_tokens)

    inner = tokenizer._inner
    path = tmp_path / "a.txt"
    path.write_text("one two\nthree\nfour\naverylongword\nend")
    read_documents([path], Listening(inner), lambda done, total: None)
    assert encoded == ["one two\n", "three\n", "four\n", "averylongw", "ord\nend"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"ab\xff\xfe", "binary data at byte 2, expected UTF-8"),
        ("a.txt", b"abc\0def", "binary data at byte 3, expected UTF-8"),
        ("a.txt", b" \n ", "empty"),
        ("a.jsonl", b"\n", "empty"),
        ("a.jsonl", b'{"text": "a"}\n["b"]', "line 2: got no JSON object, expected one with text or question and"),
        ("a.jsonl", b'{"text": "a"', "line 1: got no JSON object"),
        ("a.jsonl", b'{"prompt": "a", "text": 3}', "line 1: got the fields prompt, text, expected texts under text or"),
        ("missing.txt", None, "No such file or directory; name a text file"),
    ],
)
def test_files_without_text_are_refused(
    tmp_path: Path, tokenizer: Tokenizer, name: str, content: bytes | None, said: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_documents([path], tokenizer, lambda done, total: None)
    message = str(caught.value)
    assert message.startswith(f"--data {path}: ")
    assert said in message
    assert "\n" not in message


def test_a_folder_without_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.csv").write_text("1,2")
    with pytest.raises(UsageError, match=r"no \.txt, \.md, \.jsonl file inside; name files"):
        read_documents([tmp_path], tokenizer, lambda done, total: None)


def documents(*lengths: int) -> list[corpus.Tokens]:
    """Texts of which each token occurs once."""
    ends = np.cumsum(lengths)
    return [np.arange(end - length, end) for end, length in zip(ends, lengths, strict=True)]


@settings(max_examples=50, deadline=None)
@example(lengths=[26], sizes=[9, 9, 8], every=2, longest=9)
@given(
    lengths=st.lists(st.integers(0, 400), min_size=1, max_size=4),
    sizes=st.lists(st.integers(8, 64), min_size=1, max_size=3),
    every=st.integers(2, 9),
    longest=st.integers(8, 100),
)
def test_windows_share_no_token(lengths: list[int], sizes: list[int], every: int, longest: int) -> None:
    texts, config = documents(*lengths), DataConfig(tuple(sizes), every)
    cut = [min(size, longest) for size in sizes]
    if sum(length >= cut[0] for length in lengths) < 2 and max(lengths) < cut[0] + max(cut):
        return  # may be too short, which the next test is about
    made, again = (Windows(texts, config, longest) for _ in range(2))
    assert (made.training, made.held_out, made.digest) == (again.training, again.held_out, again.digest)
    windows = made.training + made.held_out
    tokens = [made.tokens(window) for window in windows]
    flat = [token for window in tokens for token in window]
    assert len(flat) == len(set(flat))
    assert made.lengths == tuple(sorted(set(cut), key=cut.index))
    assert all(len(window) == made.lengths[at.kind] == at.length for window, at in zip(tokens, windows, strict=True))
    assert all(window == list(range(window[0], window[0] + len(window))) for window in tokens)
    # what is left of a text fits no window
    assert all(
        length - sum(w.length for w in windows if w.document == n) < min(cut) for n, length in enumerate(lengths)
    )
    assert len(made.held_out) == -(-len(windows) // every)
    assert [made.trained_on(number) for number in range(len(made.training) + 1)] == [*made.training, made.training[0]]


def test_windows_of_a_text_that_is_too_short() -> None:
    message = r"got 90 tokens, 1 windows of 50, 60, expected at least two, so a text of 100 tokens; give more text"
    with pytest.raises(UsageError, match=message):
        Windows(documents(55, 35), DataConfig((50, 64)), 60)


def test_windows_begin_with_the_token_that_texts_begin_with() -> None:
    plain, begun = (Windows(documents(200), DataConfig((20,)), 100, bos) for bos in (None, 777))
    window = plain.training[0]
    assert begun.tokens(window) == [777, *plain.tokens(window)[1:]]
    assert plain.tokens(window)[0] == window.begin
