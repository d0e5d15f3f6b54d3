"""What an adapter's attention is found to be good for, of providers that compute on the CPU and fail in known ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from sol_rt.engine.probes import attention_probe
from sol_rt.engine.probes.attention_probe import LONG, MODELS, SHORT
from sol_rt.engine.providers import Provider
from sol_rt.errors import ProviderError

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


def test_what_is_right_in_float16_stays_there() -> None:
    assert attention_probe.examine("cpu", CPU, CPU) == ("float16", None)


def test_without_float16_it_is_float32() -> None:
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
