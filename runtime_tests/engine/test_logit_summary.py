"""A summary of logits, made by a graph, against the logits themselves."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from sol_rt.engine.distribution import Distribution
from sol_rt.engine.gpu import logit_summary
from sol_rt.engine.gpu.logit_summary import LogitSummary, SummarisedDistribution
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.sampling import Sampler

import onnxruntime as ort


@functools.cache
def _session(rows: int, width: int) -> ort.InferenceSession:
    """logits = -x, and their summary."""
    info = helper.make_tensor_value_info
    ports = [info(name, TensorProto.FLOAT, [1, rows * width]) for name in ("x", "logits")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["logits"])], "g", ports[:1], ports[1:])
    logit_summary.append(graph, rows, width)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)
    onnx.checker.check_model(model)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


class Fetched:
    """Logits that count how often they are asked for."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits, self.times = logits, 0

    def __call__(self) -> np.ndarray:
        self.times += 1
        return self.logits


def _summarised(logits: np.ndarray, rows: int) -> tuple[SummarisedDistribution, Fetched]:
    summary = LogitSummary(rows, logits.size // rows)
    found = _session(rows, summary.width).run(list(summary.arrays), {"x": -logits[None]})
    for array, values in zip(summary.arrays.values(), found, strict=True):
        array[:] = values
    fetched = Fetched(logits)
    return SummarisedDistribution(summary, fetched), fetched


@given(
    rows=st.integers(1, 6),
    width=st.integers(2, 40),
    scale=st.sampled_from([0.0, 0.1, 3.0, 40.0]),
    ties=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_a_summary_says_what_the_logits_do(rows: int, width: int, scale: float, ties: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal(rows * width) * scale + random.normal() * 10).astype(np.float32)
    if ties:
        logits = np.round(logits)
    got, fetched = _summarised(logits, rows)
    wanted = Distribution(logits)
    assert got.finite
    assert got.top == wanted.top
    assert got.shape == wanted.shape
    assert got.top_probability == pytest.approx(wanted.top_probability, rel=1e-5)
    assert got.margin == pytest.approx(wanted.margin, rel=1e-5, abs=1e-7)
    assert got.entropy == pytest.approx(wanted.entropy, rel=1e-4, abs=1e-4)
    assert got.log_probability(got.top) == pytest.approx(wanted.log_probability(wanted.top), rel=1e-5, abs=1e-5)
    assert fetched.times == 0
    other = int(random.integers(rows * width))
    assert got.log_probability(other) == pytest.approx(wanted.log_probability(other), rel=1e-5, abs=1e-5)
    assert fetched.times == (other != got.top)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 70, 127])
def test_logits_that_are_not_finite_are_found(wrong: float, place: int) -> None:
    logits = np.random.default_rng(0).standard_normal(128).astype(np.float32)
    logits[place] = wrong
    assert not _summarised(logits, 2)[0].finite


def test_greedy_choices_need_no_logits_and_others_do() -> None:
    logits = np.random.default_rng(0).standard_normal(128).astype(np.float32)
    for settings_, needs in (
        ({"do_sample": False}, False),
        ({"do_sample": False, "repetition_penalty": 1.3}, True),
        ({"do_sample": True, "temperature": 0.7, "seed": 1}, True),
    ):
        config = GenerationConfig(**settings_)
        distribution, fetched = _summarised(logits, 2)
        got = Sampler(config, 128).sample(distribution, [3, 5])
        wanted = Sampler(config, 128).sample(Distribution(logits), [3, 5])
        assert got[0] == wanted[0]
        assert got[1] == pytest.approx(wanted[1], rel=1e-5)
        assert (fetched.times > 0) == needs


@pytest.mark.parametrize(
    ("vocabulary", "rows"),
    [
        (49152, (96, 512)),
        (151936, (128, 1187)),
        (32000, (64, 500)),
        (128256, (256, 501)),
        (50257, (29, 1733)),
        (61, None),
        (99991, None),
    ],
)
def test_vocabularies_are_cut_into_equal_rows(vocabulary: int, rows: tuple[int, int] | None) -> None:
    assert logit_summary.summary_shape(vocabulary) == rows
    if rows is not None:
        assert rows[0] * rows[1] == vocabulary
