"""Calibration text: windows of a file, the model's own text, and what is no text."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="exporting comes with the extra export")
from sol_rt.bundle.actions import Action
from sol_rt.errors import UsageError
from sol_rt.export.actions import calibration_text
from sol_rt.export.actions.calibration_text import (
    LONG,
    WINDOW,
    CalibrationText,
    contexts,
    distinct_runs,
    generate_text,
    package_text,
    read_text,
    sample_windows,
)
from sol_rt.export.actions.effort import Effort, about_seconds, slowness
from sol_rt.text.tokenizer import Tokenizer

DENSE = Action(1.0, 1.0, 8)


@pytest.fixture(scope="session")
def tokenizer(llama_checkpoint: Path) -> Tokenizer:
    """Nearly a token a byte."""
    return Tokenizer.from_file(llama_checkpoint / "tokenizer.json")


def lines(count: int) -> str:
    """Numbered lines: the numbers show where a window is from."""
    return "".join(f"line {number} of the small model\n" for number in range(count))


def first_line(window: tuple[int, ...], tokenizer: Tokenizer) -> int:
    return int(tokenizer.decode(window).split("line ")[1].split()[0])


def windows(text: CalibrationText) -> list[tuple[int, ...]]:
    return [*text.fitted, *text.held_out]


@pytest.mark.parametrize("count", [700, 4000, 100_000])  # the last is more than is read whole
def test_windows_are_spread_over_the_file(count: int, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(lines(count))
    text = read_text(path, tokenizer, 1 << 14)
    assert text.origin == "text.txt"
    assert {len(window) for window in windows(text)} == {WINDOW}
    assert len(text.long) == LONG
    assert tokenizer.decode(text.long) == path.read_text()[: len(tokenizer.decode(text.long))]
    places = sorted(first_line(window, tokenizer) for window in windows(text))
    assert len(set(places)) == len(places)
    assert places[0] <= 1
    assert places[-1] > 0.95 * count
    beside = [place for place in places if place > first_line(text.long, tokenizer) + LONG / len("line 1 of the")]
    if len(beside) > 2:
        gaps = np.diff(beside)
        assert gaps.max() <= gaps.min() + 4 * len(str(count)) + 0.05 * count


def test_windows_and_stretch_end_with_the_context(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(lines(2000))
    assert len(read_text(path, tokenizer, 2000).long) == 2000
    short = read_text(path, tokenizer, 96)
    assert {len(window) for window in windows(short)} == {96}
    assert short.long == ()


@pytest.mark.parametrize(("long", "count"), [(LONG, 32), (LONG, 12), (2000, 9), (900, 8), (0, 8), (0, 4)])
def test_losses_are_measured_on_text_that_was_not_fitted(long: int, count: int, tokenizer: Tokenizer) -> None:
    """Numbered tokens: of the windows that are fitted, none has a token that is scored."""
    stretch = list(range(long))
    parts = [(at, tuple(stretch[at : at + WINDOW])) for at in range(0, max(long - WINDOW, 0) + 1, WINDOW) if long]
    others = [tuple(range(10_000 * number, 10_000 * number + WINDOW)) for number in range(1, count - len(parts) + 1)]
    text = CalibrationText.of(stretch, parts, others, "numbers")
    assert len(text.fitted) + len(text.held_out) == count
    assert len(text.held_out) >= count // 4
    scored = {token for window in text.held_out for token in window}
    for context in contexts(len(text.long), len(text.long)):
        scored |= set(text.long[context : context + WINDOW])
    assert scored.isdisjoint(token for window in text.fitted for token in window)


@pytest.mark.parametrize(
    ("weights", "coded", "fitted", "measured"),
    [(135e6, True, 4, (512, 2048)), (135e6, False, 6, (512, 2048)), (9e8, True, 2, (512, 1788))],
)
def test_the_windows_of_a_quick_calibration(
    weights: float, coded: bool, fitted: int, measured: tuple[int, ...]
) -> None:
    effort = Effort.quick(int(weights), coded)
    stretch = list(range(effort.long))
    parts = [(at, tuple(stretch[at : at + WINDOW])) for at in range(0, effort.long, WINDOW)]
    text = CalibrationText.of(stretch, parts, [tuple(range(WINDOW))] * (effort.windows - len(parts)), "numbers")
    assert min(len(text.fitted), effort.fitted) == fitted
    assert len(text.held_out) >= effort.head_windows
    assert contexts(len(text.long), 8192) == measured


def test_a_large_model_is_fitted_to_the_packages_texts(tokenizer: Tokenizer) -> None:
    effort = Effort.quick(2_780_000_000, coded=False)
    assert not effort.writes
    text = package_text(tokenizer, 8192, effort.long)
    assert {len(window) for window in windows(text)} == {WINDOW}
    assert len(text.fitted) >= effort.fitted
    assert len(text.held_out) >= effort.head_windows
    assert contexts(len(text.long), 8192) == (512, 2048)
    assert text.scored == sample_windows(tokenizer, 8192)
    assert text.by_divergence
    held_out = {token for at in (512, 2048) for token in [text.long[at : at + WINDOW]]}
    assert held_out.isdisjoint(text.fitted)
    assert set(text.scored).isdisjoint(windows(text))
    assert {len(window) for window in windows(package_text(tokenizer, 256, effort.long))} == {256}


def test_no_default_export_of_an_alias_takes_hours() -> None:
    for weights in (1.5e9, 2.78e9, 8.2e9):
        for coded in (False, True):
            effort = Effort.quick(int(weights), coded)
            seconds = about_seconds(int(weights), effort, coded=coded, measured=True, parity=True)
            assert seconds < 90 * 60
            assert about_seconds(int(weights), effort, coded=coded, measured=False, parity=True) < seconds
            unfitted = about_seconds(int(weights), effort, coded=coded, measured=True, parity=True, fits_policy=False)
            assert unfitted < seconds
            assert about_seconds(int(weights), None, coded=coded, measured=True, parity=True) < seconds / 4


def test_this_machines_speed_is_a_number() -> None:
    assert 0 < slowness() < float("inf")


def test_contexts_fit_the_stretch_of_text() -> None:
    assert contexts(4608, 8192) == (512, 2048, 4096)
    assert contexts(2560, 8192) == (512, 2048)  # what is left reaches little further
    assert contexts(100_000, 2048) == (512, 1788)
    assert contexts(900, 8192) == (512, 640)
    assert contexts(700, 8192) == ()
    assert contexts(0, 8192) == ()


def test_characters_are_not_cut(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    line = "日本語 🎉 déjà vu"
    path.write_text(f"{line}\n" * 200_000, encoding="utf-8-sig")
    text = read_text(path, tokenizer, 4096)
    assert len(windows(text)) == 32
    assert {whole for window in windows(text) for whole in tokenizer.decode(window).split("\n")[1:-1]} == {line}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b" \n\t\n", "the file is empty"),
        (b"some text\0and more" * 1000, "got binary data, expected UTF-8 text"),
        (b"caf\xe9 " * 2000, "got binary data, expected UTF-8 text"),
        (lines(10).encode(), r"got \d+ tokens, expected 4096 or more"),
        (b"\x89PNG\r\n" + os.urandom(1000) * 4000, "got binary data"),
    ],
)
def test_files_without_text_are_named(content: bytes, message: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=f"calibration .*text.txt: {message}") as caught:
        read_text(path, tokenizer, 4096)
    assert "\n" not in str(caught.value)


def test_folders_and_missing_files_are_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Is a directory; name a file of UTF-8 text"):
        read_text(tmp_path, tokenizer, 4096)
    with pytest.raises(UsageError, match="No such file or directory; name a file"):
        read_text(tmp_path / "nothing.txt", tokenizer, 4096)


def test_a_tokenizers_first_token_begins_every_window(tmp_path: Path, llama_checkpoint: Path) -> None:
    import tokenizers
    from tokenizers.processors import TemplateProcessing

    inner = tokenizers.Tokenizer.from_file(str(llama_checkpoint / "tokenizer.json"))
    start = ("<|endoftext|>", 0)
    inner.post_processor = TemplateProcessing(single="<|endoftext|> $A", pair=None, special_tokens=[start])
    path = tmp_path / "text.txt"
    path.write_text(lines(2000))
    text = read_text(path, Tokenizer(inner), 4096)
    assert all(window[0] == 0 and len(window) == WINDOW and 0 not in window[1:] for window in windows(text))
    assert text.long[0] == 0
    assert len(text.long) == 4096


@pytest.mark.slow
def test_the_models_own_text(llama_bundle: Path) -> None:
    told: list[tuple[float, float]] = []
    text = generate_text(llama_bundle, DENSE, 6, LONG, lambda _, done, total: told.append((done, total)))
    assert text.by_divergence
    assert [len(window) for window in windows(text)] == [WINDOW] * 6
    assert len(text.long) == 1024  # the model's context
    assert (text.fitted[0], text.held_out[0]) == (text.long[:WINDOW], text.long[WINDOW:])
    assert told[-1] == (6 * WINDOW, 6 * WINDOW)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    chat = Tokenizer.from_file(llama_bundle / "tokenizer.json").encode("<|im_start|>user\n", add_special_tokens=False)
    openings = [window for window in windows(text) if window != text.held_out[0]]
    assert all(list(window[: len(chat)]) == chat for window in openings)
    assert len({window[len(chat) :] for window in windows(text)}) == 6
    assert generate_text(llama_bundle, DENSE, 6) == text
    assert generate_text(llama_bundle, DENSE, 6, seed=1) != text
    assert generate_text(llama_bundle, DENSE, 2, 0).fitted[0] == text.fitted[0]


@pytest.mark.slow
def test_text_that_goes_round_in_circles_is_drawn_again(llama_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = generate_text(llama_bundle, DENSE, 1).fitted[0]
    seen: list[tuple[int, ...]] = []

    def judge(tokens: list[int]) -> float:
        seen.append(tuple(tokens))
        return 1.0 if len(seen) == 3 else 0.0

    monkeypatch.setattr(calibration_text, "distinct_runs", judge)
    assert generate_text(llama_bundle, DENSE, 1).fitted[0] == seen[2]
    assert seen[0] == plain
    assert len(set(seen)) == 3


def test_repetition_is_told_from_text() -> None:
    assert distinct_runs([1, 2, 3] * 100) < 0.05
    assert distinct_runs(list(range(100))) == 1.0
    assert distinct_runs([1]) == 1.0
