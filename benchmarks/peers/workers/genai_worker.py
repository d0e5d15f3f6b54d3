"""Worker of onnxruntime-genai: int4 at accuracy level 4. It also answers `nll` (scoring.py).

python genai_worker.py FOLDER --threads N
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
from protocol import arguments, serve
from scoring import scorer


class GenAI:
    action: str | None = None

    def __init__(self, folder: Path, threads: int) -> None:
        self.version = f"onnxruntime-genai {og.__version__}"
        self.settings = "int4 in blocks of 32, accuracy level 4, prune_lm_head, float32 KV (the only one for int4)"
        config = og.Config(str(folder))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = og.Model(config)

    def reset(self, capacity: int) -> None:
        params = og.GeneratorParams(self._model)
        lengths = {"max_length": capacity, "min_length": capacity}  # end-of-text ends nothing
        params.set_search_options(**lengths, do_sample=False, past_present_share_buffer=True)
        self._generator = None  # the old buffers go before the new ones come
        self._generator = og.Generator(self._model, params)

    def prompt(self, tokens: Sequence[int]) -> None:
        self._generator.append_tokens(np.asarray(tokens, np.int32))
        self._generator.get_logits()

    def rewind(self, length: int) -> None:
        self._generator.rewind_to(length)

    def step(self) -> None:
        self._generator.generate_next_token()

    def logits(self, window: list[int], first: int) -> list[np.ndarray]:
        """Logits of the tokens from `first` to the last but one; after `first` each is a step of its own."""
        self.reset(len(window) + 1)
        rows = []
        for tokens in (window[: first + 1], *([token] for token in window[first + 1 : -1])):
            self.prompt(tokens)
            rows.append(np.array(self._generator.get_logits()).reshape(-1))
        return [np.stack(rows)]


def main() -> None:
    args = arguments(__doc__).parse_args()
    worker = GenAI(args.model, args.threads)
    serve(worker, nll=scorer(worker.logits))


if __name__ == "__main__":
    main()
