"""Windows, BOS and the standard error of perplexity, against llama-perplexity's arithmetic."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sol_rt.errors import UsageError
from sol_rt.evaluation.quality.perplexity import estimate, windows


def test_windows_drop_the_rest_and_put_bos_first() -> None:
    assert windows(range(10, 21), 4, bos=None) == [[10, 11, 12, 13], [14, 15, 16, 17]]
    assert windows(range(10, 21), 4, bos=1) == [[1, 11, 12, 13], [1, 15, 16, 17]]
    assert windows(range(10, 30), 4, bos=1, chunks=1) == [[1, 11, 12, 13]]


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
