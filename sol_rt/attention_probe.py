"""Whether ONNX Runtime's attention is right on a WebGPU adapter: in which type, and for how many new tokens at once.

Adapters without float16 exist, and nothing lists which have it: a shader that needs it fails. And attention of 32 and
more new tokens runs by shaders of its own, which were found wrong on adapters with subgroups of 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort

from sol_rt.errors import ProviderError, one_line

if TYPE_CHECKING:
    from sol_rt.providers import Provider

FLOATS = ("float16", "float32")
MODELS = {dtype: Path(__file__).with_name(f"probe_attention_{dtype}.onnx") for dtype in FLOATS}
SHORT, LONG = 16, 160
"""Numbers of new tokens that are tried: what is right with the longer one counts as right with any."""
PAST = 40
"""Tokens in the cache before them."""
_TOLERANCE = 0.02
"""Root mean square of the difference over that of the numbers: float16 alone makes 0.001, a wrong adapter 0.06."""


def examine(provider: Provider, reference: Provider, dtypes: Sequence[str] = FLOATS) -> tuple[str, int | None]:
    """The first of the types in which attention gives the numbers of `reference`, the CPU's provider, and how many new
    tokens it may be given at once, None where that has no limit.

    Raises ProviderError where it is wrong in all of them.
    """
    reason = ""
    for dtype in dtypes:
        for tokens in (LONG, SHORT):
            try:
                got = attend(provider, dtype, tokens)
            except Exception as error:  # ONNX Runtime's exceptions share no useful base
                reason = one_line(error)
                break
            expected = attend(reference, dtype, tokens)
            difference = float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))
            if difference <= _TOLERANCE:
                return dtype, None if tokens == LONG else SHORT
            reason = f"numbers that differ from the CPU's by {difference:.1%}, expected at most {_TOLERANCE:.0%}"
    raise ProviderError(f"provider {provider.name}: attention: {reason}; update its driver")


def attend(provider: Provider, dtype: str, tokens: int) -> np.ndarray:
    """What the probe's attention gives for some new tokens, float32 [1, tokens, heads * size]."""
    session = provider._session(MODELS[dtype].read_bytes(), provider.options(), strict=provider.name != "cpu")
    random = np.random.default_rng(0)
    binding = session.io_binding()
    given = {node.name: node for node in session.get_inputs()}
    for part in ("key", "value"):  # in place, as decoding does it
        shape = given[f"past_{part}"].shape
        content = random.standard_normal(shape).astype(dtype)
        if provider.gpu is None:
            buffer = ort.OrtValue.ortvalue_from_numpy(content)
        else:
            place = provider._ep_device.memory_info(ort.OrtDeviceMemoryType.DEFAULT)
            buffer = ort.OrtValue.ortvalue_from_shape_and_type(shape, content.dtype.type, memory_info=place)
            buffer.update_inplace(content)
        binding.bind_ortvalue_input(f"past_{part}", buffer)
        binding.bind_ortvalue_output(f"present_{part}", buffer)
    qkv = random.standard_normal((1, tokens, given["qkv"].shape[2])).astype(np.float32)
    y = np.zeros((1, tokens, session.get_outputs()[0].shape[2]), np.float32)
    binding.bind_cpu_input("qkv", qkv)
    binding.bind_cpu_input("total_length", np.array([PAST + tokens], np.int32))
    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(y))
    session.run_with_iobinding(binding)
    return y
