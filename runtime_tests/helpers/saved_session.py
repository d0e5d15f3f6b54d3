"""The KV cache and the states of a session of the core, read from the file that it saves (cache/saved_cache.cc)."""

from __future__ import annotations

import struct
import tempfile
from ctypes import c_char_p, c_void_p
from pathlib import Path

import numpy as np

from sol_rt.bundle.cache_layout import CacheLayout
from sol_rt.generate.native.session import Session
from sol_rt.native.library import core

_HEADER = 104
_DIGEST = 32


def save(session: Session, path: Path) -> None:
    call = core().sol_session_save
    call.restype, call.argtypes = c_void_p, (c_void_p, c_char_p)
    assert call(session.handle, str(path).encode()) is None


def saved(session: Session) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tensors of the cache by the graph's inputs, [1, heads, tokens, ...], and states [layers, hidden, conv_size - 1].

    All layers hold every token: the text is shorter than any window with its slack.
    """
    config, length = session.bundle.config, session.length
    model, kv = config.model, config.kv
    with tempfile.TemporaryDirectory() as folder:
        save(session, Path(folder) / "session")
        content = (Path(folder) / "session").read_bytes()[:-_DIGEST]
    firsts = struct.unpack_from(f"<{model.num_layers}q", content, _HEADER + 4 * length)
    assert not any(firsts)
    at, layout, found = _HEADER + 4 * length + 8 * model.num_layers, CacheLayout(model, kv), {}
    for tensor in layout.tensors():
        shape = layout.shape(tensor, length)
        count = int(np.prod(shape))
        found[tensor.past] = np.frombuffer(content, tensor.dtype, count, at).reshape(shape)
        at += found[tensor.past].nbytes
    shape = (len(kv.convolving), model.hidden_size, max(kv.conv_size - 1, 0))
    return found, _state(content, at, length, shape)


def _state(content: bytes, at: int, length: int, shape: tuple[int, ...]) -> np.ndarray:
    """The copy of the states after `length` tokens: of those kept at chosen lengths, or of the last runs'."""
    numbers = int(np.prod(shape))
    for _ in range(2 if numbers else 0):
        (copies,) = struct.unpack_from("<q", content, at)
        at += 8
        for _ in range(copies):
            (held,) = struct.unpack_from("<q", content, at)
            if held == length:
                return np.frombuffer(content, np.float32, numbers, at + 8).reshape(shape)
            at += 8 + 4 * numbers
    assert not numbers, "no copy of the states after the last token"
    return np.zeros(shape, np.float32)
