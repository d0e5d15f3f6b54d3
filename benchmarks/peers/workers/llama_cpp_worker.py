"""Worker of llama.cpp, through llama-cpp-python's C interface. It also answers `nll` (scoring.py).

    python llama_cpp_worker.py FILE.gguf --threads N

It uses flash attention, a float16 KV cache and batches of 512.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Iterator, Sequence
from pathlib import Path

import llama_cpp
import numpy as np
from protocol import arguments, serve
from scoring import scorer

_BATCH = 512


class LlamaCpp:
    action: str | None = None

    def __init__(self, file: Path, threads: int, flash_attention: bool) -> None:
        self.version = f"llama.cpp (llama-cpp-python {importlib.metadata.version('llama-cpp-python')}, native build)"
        flash = "on" if flash_attention else "off"
        self.settings = f"{file.name} as it is, f16 KV, flash attention {flash}, batch {_BATCH}"
        self._threads, self._flash = threads, flash_attention
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(file).encode(), llama_cpp.llama_model_default_params())
        if not self._model:
            raise SystemExit(f"{file}: llama.cpp can't load it")
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._context = None
        self._capacity = 0

    def reset(self, capacity: int) -> None:
        if self._context and self._capacity == capacity:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
            return
        if self._context:
            llama_cpp.llama_free(self._context)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = capacity, _BATCH, _BATCH
        params.n_threads = params.n_threads_batch = self._threads
        params.flash_attn_type = int(self._flash)
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        self._capacity = capacity

    def prompt(self, tokens: Sequence[int]) -> None:
        for start in range(0, len(tokens), _BATCH):
            self._decode(tokens[start : start + _BATCH])

    def rewind(self, length: int) -> None:
        llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(self._context), 0, length, -1)

    def step(self) -> None:
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), (self._vocabulary,))
        self._decode([int(logits.argmax())])

    def logits(self, window: list[int], first: int) -> Iterator[np.ndarray]:
        """Yields logits [n, vocab] of the tokens from `first` to the last but one, one batch at a time, as views."""
        self.reset(len(window))
        self.prompt(window[:first])
        for start in range(first, len(window) - 1, _BATCH):
            ids = window[start : min(start + _BATCH, len(window) - 1)]
            wanted = (ctypes.c_int8 * len(ids))(*[1] * len(ids))
            self._decode(ids, wanted)
            yield np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), (len(ids), self._vocabulary))

    def _decode(self, tokens: Sequence[int], wanted: ctypes.Array[ctypes.c_int8] | None = None) -> None:
        """Appends tokens. Computes the logits of tokens with `wanted` not 0; without `wanted`, of the last token."""
        ids = (llama_cpp.llama_token * len(tokens))(*tokens)
        batch = llama_cpp.llama_batch_get_one(ids, len(tokens))
        if wanted is not None:
            batch.logits = wanted
        status = llama_cpp.llama_decode(self._context, batch)
        if status:
            raise SystemExit(f"llama_decode: got status {status} for {len(tokens)} tokens, expected 0")
        llama_cpp.llama_synchronize(self._context)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--no-flash-attention", action="store_true")
    args = parser.parse_args()
    worker = LlamaCpp(args.model, args.threads, not args.no_flash_attention)
    serve(worker, nll=scorer(worker.logits))


if __name__ == "__main__":
    main()
