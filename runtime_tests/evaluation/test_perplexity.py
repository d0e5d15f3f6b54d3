"""Windows, BOS, scored tokens and the standard error of perplexity, against llama-perplexity's arithmetic."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from helpers.logprobs import full_logprobs
from helpers.tiny_bundle import seal, write_bundle
from sol_rt.bundle.bundle import Bundle
from sol_rt.errors import UsageError
from sol_rt.evaluation.quality.perplexity import estimate, perplexity, text_windows, windows
from sol_rt.generate.model import SolModel


def test_windows_drop_the_rest_and_put_bos_first() -> None:
    assert windows(range(10, 21), 4, bos=None) == [[10, 11, 12, 13], [14, 15, 16, 17]]
    assert windows(range(10, 21), 4, bos=1) == [[1, 11, 12, 13], [1, 15, 16, 17]]
    assert windows(range(10, 30), 4, bos=1, chunks=1) == [[1, 11, 12, 13]]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle whose tokenizer puts word 1 before a text."""
    folder = write_bundle(tmp_path / "tiny")
    config, path = Bundle.open(folder).config, str(folder / "tokenizer.json")
    tokenizer = tokenizers.Tokenizer.from_file(path)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing("w1 $A", special_tokens=[("w1", 1)])
    tokenizer.save(path)
    seal(folder, replace(config, model=replace(config.model, bos_token_id=1)))
    return Bundle.open(folder)


def test_the_command_scores_the_windows_of_its_text(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    text = " ".join(f"w{word}" for word in range(10, 25))
    cut = text_windows(text, bundle.tokenizer(), bundle.config.model, 8)
    assert cut == [[1, 10, 11, 12, 13, 14, 15, 16], [1, 18, 19, 20, 21, 22, 23, 24]]
    model, scored = SolModel.from_pretrained(bundle.path, measure_costs=False), []
    score = model.score

    def noted(window: list[int], **how: Any) -> Any:
        scored.append(window)
        return score(window, **how)

    monkeypatch.setattr(model, "score", noted)
    perplexity(model, text, size=8)
    assert scored == cut


def test_benchmarks_score_the_windows_of_the_command(bundle: Bundle, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="exporting comes with the extra export")
    from peers import peers
    from quality.promise import spread_windows

    file, random = tmp_path / "text.txt", np.random.default_rng(0)
    file.write_text(" ".join(f"w{word}" for word in random.integers(3, 86, 512 * 7)))
    cut = text_windows(file.read_text(), bundle.tokenizer(), bundle.config.model, 512)
    assert len(cut) == 7
    assert peers.windows_of(file.read_text(), bundle, 512, 3) == cut[:3]
    assert spread_windows(bundle, file, 3, 512) == [cut[0], cut[2], cut[4]]
    assert spread_windows(bundle, file, 9, 512) == cut


def test_windows_need_two() -> None:
    with pytest.raises(UsageError, match="the text has 7 tokens, windows of 4 need 8"):
        windows(range(7), 4, bos=None)


def test_estimate_is_llama_perplexitys() -> None:
    losses = [1.0, 2.0, 4.0, 0.5]
    # as its source has it: running sums of nll and nll squared
    count, nll, nll2 = len(losses), sum(losses), sum(loss * loss for loss in losses)
    nll2 = nll2 / count
    nll = nll / count
    expected = math.sqrt((nll2 - nll * nll) / (count - 1)) * math.exp(nll)
    result = estimate(np.array([-loss for loss in losses], np.float32), 1, 1.0, {"k100-s100-q8": 4})
    assert result.ppl == pytest.approx(math.exp(nll))
    assert result.stderr == pytest.approx(expected)
    assert (result.nll, result.tokens, result.chunks) == (pytest.approx(nll), 4, 1)


def test_one_token_has_no_error_bar() -> None:
    assert estimate(np.array([-1.0]), 1, 1.0, {}).stderr == 0.0


def test_the_second_half_of_each_window_is_scored(tmp_path: Path) -> None:
    model = SolModel.from_pretrained(write_bundle(tmp_path / "tiny"), measure_costs=False)
    tokens = np.random.default_rng(2).integers(3, 86, 64).tolist()
    got = perplexity(model, " ".join(f"w{token}" for token in tokens), size=32, schedule="dense")
    # 16 tokens are context, and the prefill predicts the first one after them
    wanted = -np.concatenate([full_logprobs(model.engine, window)[16:] for window in (tokens[:32], tokens[32:])])
    assert (got.tokens, got.nll) == (30, pytest.approx(wanted.mean(), abs=2e-3))
