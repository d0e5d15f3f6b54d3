"""Probe of ONNX Runtime's attention on a WebGPU adapter: the types and numbers of new tokens that give right results.

Adapters without float16 exist, and nothing lists which have it: a shader that needs it fails. And attention of 32 and
more new tokens runs by shaders of its own, which were found wrong on adapters with subgroups of 8.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sol_rt.errors import ProviderError, one_line

import onnxruntime as ort

MakeSession = Callable[[bytes], ort.InferenceSession]
"""Makes a session of a serialized model."""
FLOATS = ("float16", "float32")
MODELS = {dtype: Path(__file__).with_name(f"probe_attention_{dtype}.onnx") for dtype in FLOATS}
SHORT, LONG = 16, 160
"""Numbers of new tokens that are tried: what is right with the longer one counts as right with any."""
PAST = 40
"""Tokens in the cache before them."""
_TOLERANCE = 0.02
"""Root mean square of the difference over that of the numbers: float16 alone makes 0.001, a wrong adapter 0.06."""


def examine(
    name: str,
    make: MakeSession,
    reference: MakeSession,
    memory: ort.OrtMemoryInfo | None = None,
    dtypes: Sequence[str] = FLOATS,
) -> tuple[str, int | None]:
    """Finds the type in which attention is right on an adapter, and the number of new tokens it may get at once.

    Args:
        name: of the provider, for the message.
        make: makes a session on the adapter.
        reference: makes one on the CPU.
        memory: the adapter's, where the cache lies; None for main memory.
        dtypes: types of the cache to try, in this order.

    Returns:
        The first type whose numbers are the CPU's, and the number of tokens, None where there is no limit.

    Raises ProviderError where attention is wrong in all types.
    """
    reason = ""
    for dtype in dtypes:
        for tokens in (LONG, SHORT):
            try:
                got = attend(make, dtype, tokens, memory)
            except Exception as error:  # ONNX Runtime's exceptions share no useful base
                reason = one_line(error)
                break
            expected = attend(reference, dtype, tokens)
            difference = float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))
            if difference <= _TOLERANCE:
                return dtype, None if tokens == LONG else SHORT
            reason = f"numbers that differ from the CPU's by {difference:.1%}, expected at most {_TOLERANCE:.0%}"
    raise ProviderError(f"provider {name}: attention: {reason}; update its driver")


def attend(make: MakeSession, dtype: str, tokens: int, memory: ort.OrtMemoryInfo | None = None) -> np.ndarray:
    """Runs the probe's attention on some new tokens: float32 [1, tokens, heads * size]."""
    session = make(MODELS[dtype].read_bytes())
    random = np.random.default_rng(0)
    binding = session.io_binding()
    given = {node.name: node for node in session.get_inputs()}
    for part in ("key", "value"):  # in place, as decoding does it
        shape = given[f"past_{part}"].shape
        content = random.standard_normal(shape).astype(dtype)
        if memory is None:
            buffer = ort.OrtValue.ortvalue_from_numpy(content)
        else:
            buffer = ort.OrtValue.ortvalue_from_shape_and_type(shape, content.dtype.type, memory_info=memory)
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
