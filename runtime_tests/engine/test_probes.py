"""Verdicts of the probes on providers that compute on the CPU and fail in known ways."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from sol_rt.engine import providers
from sol_rt.engine.gpu import cuda
from sol_rt.engine.hardware import Gpu
from sol_rt.engine.probes import attention_probe
from sol_rt.engine.probes.attention_probe import LONG, MODELS, SHORT
from sol_rt.engine.providers import Provider
from sol_rt.errors import ProviderError
from sol_rt.ops import library_path

import onnxruntime as ort

CPU = Provider("cpu", 2).probe_session


class _WithoutFloat16(Provider):
    """Refuses float16 as WebGPU does it on such an adapter."""

    def _session(self, model: Any, *rest: Any, **named: Any) -> ort.InferenceSession:
        if model == MODELS["float16"].read_bytes():
            raise RuntimeError("Program Cast requires f16 but the device does not support it.")
        return super()._session(model, *rest, **named)


class _WrongTables(Provider):
    """Rotates by other angles."""

    def _session(self, model: Any, *rest: Any, **named: Any) -> ort.InferenceSession:
        changed = onnx.load_from_string(model)
        table = next(tensor for tensor in changed.graph.initializer if tensor.name == "sin")
        table.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(table), "sin"))
        return super()._session(changed.SerializeToString(), *rest, **named)


class _TwoBitsAsFour(Provider):
    """Takes codes of 2 bits for codes of 4, as ONNX Runtime's CUDA provider did."""

    def _session(self, model: Any, *rest: Any, **named: Any) -> ort.InferenceSession:
        changed = onnx.load_from_string(model)
        for node in changed.graph.node:
            for attribute in node.attribute:
                if attribute.name == "bits" and attribute.i == 2:
                    attribute.i = 4
                    tensor = next(tensor for tensor in changed.graph.initializer if tensor.name == node.input[1])
                    codes = numpy_helper.to_array(tensor)
                    tensor.CopyFrom(numpy_helper.from_array(np.concatenate([codes, codes], axis=-1), tensor.name))
        return super()._session(changed.SerializeToString(), *rest, **named)


def test_a_provider_that_takes_two_bits_for_four_runs_no_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(providers._GPUS, "cpu", cuda)
    providers.probe(Provider("cpu", 2))
    with pytest.raises(
        ProviderError, match=r"^provider cpu: function bodies: numbers that differ .*; use --provider cpu$"
    ):
        providers.probe(_TwoBitsAsFour("cpu", 2))
    if library_path() is not None:
        providers.probe(_TwoBitsAsFour("cpu", 2, library_path()))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Only 4b and 8b are supported", "Only 4b and 8b are supported; use --provider cpu"),
        (
            "CUDA failure 2: out of memory",
            "GPU memory is short even for a tiny model, 3 MB was free (CUDA failure 2: out of memory); close other "
            "programs on the GPU, or use --provider cpu",
        ),
    ],
)
def test_bodies_that_do_not_run_are_no_fault_of_the_installation(
    monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    def refusing(provider: Provider, model: bytes, feed: Any) -> Any:
        if provider.device == 1 and model == providers._PROBE_BODIES.read_bytes():
            raise RuntimeError(text)
        return run(provider, model, feed)

    run = providers._probe_run
    monkeypatch.setitem(providers._GPUS, "cpu", cuda)
    monkeypatch.setattr(providers, "_probe_run", refusing)
    with pytest.raises(ProviderError, match=f"^provider cpu: function bodies: {re.escape(said)}$"):
        providers.probe(Provider("cpu", 2, device=1, gpu=Gpu("a GPU", free_bytes=3_000_000)))


def test_the_probe_of_bodies_gives_the_softmax_of_exact_products() -> None:
    model = onnx.load(providers._PROBE_BODIES)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    x = tensors["embedding"].astype(np.float64)
    x /= np.sqrt(np.mean(x**2, axis=1, keepdims=True) + 1e-5)
    expected = []
    for name, bits, zero in (("plane1", 2, 2), ("plane2", 2, 0), ("coded", 8, 128)):
        codes = tensors[f"{name}.codes"][..., None] >> np.arange(0, 8, bits) & 2**bits - 1  # [N, KB, bytes, 8 / bits]
        steps = tensors[f"{name}.scales"].astype(np.float64)[..., None]
        weights = (codes.reshape(*codes.shape[:2], -1).astype(np.float64) - zero) * steps
        exponentials = np.exp(x @ weights.reshape(len(weights), -1).T)
        expected.append(exponentials / exponentials.sum(axis=1, keepdims=True))
    assert not tensors["plane2.zero"].any()
    (got,) = CPU(model.SerializeToString()).run(None, {"ids": np.arange(len(x))[None]})
    np.testing.assert_allclose(got[0], np.concatenate(expected, axis=1), atol=1e-6)


def test_attention_that_is_right_in_float16_stays_in_float16() -> None:
    assert attention_probe.examine("cpu", CPU, CPU) == ("float16", None)


def test_attention_without_float16_runs_in_float32() -> None:
    assert attention_probe.examine("cpu", _WithoutFloat16("cpu", 2).probe_session, CPU) == ("float32", None)


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ProviderError, match=r"provider cpu: attention: numbers that differ .* by [0-9.]+%, expected"):
        attention_probe.examine("cpu", _WrongTables("cpu", 2).probe_session, CPU)


def test_few_tokens_are_taken_where_many_are_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with the longer run: here it is another one than the CPU's."""
    attend = attention_probe.attend
    wrong = Provider("cpu", 2, device=1).probe_session
    monkeypatch.setattr(
        attention_probe,
        "attend",
        lambda make, dtype, tokens, *memory: attend(make, dtype, tokens, *memory) + (make == wrong and tokens == LONG),
    )
    assert attention_probe.examine("cpu", wrong, CPU) == ("float16", SHORT)


@pytest.mark.parametrize("tokens", [SHORT, LONG])
def test_the_models_compute_attention(tokens: int) -> None:
    """Of both types, against each other: float64 by NumPy would be the operator's own test."""
    half, single = (attention_probe.attend(CPU, dtype, tokens) for dtype in attention_probe.FLOATS)
    assert half.shape == (1, tokens, 256)
    np.testing.assert_allclose(half, single, atol=0.005)
    assert single.std() > 0.1
