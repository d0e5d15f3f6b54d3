"""onnxruntime-genai, int4 at accuracy level 4. Answers `nll` too (scoring.py).

python genai_worker.py FOLDER --threads N
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
from protocol import serve
from scoring import scorer


class GenAI:
    action: str | None = None

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder, self._threads = folder, threads
        self.version = f"onnxruntime-genai {og.__version__}"
        self.settings = "int4 in blocks of 32, accuracy level 4, float32 KV (the only one its CPU int4 models have)"
        config = og.Config(str(folder))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = og.Model(config)
        self._session: Any = None

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

    def logits(self, window: list[int]) -> np.ndarray:
        """Logits [c, vocab] by the model's graph run directly: genai itself gives only the last."""
        if self._session is None:
            import onnxruntime as ort

            options = ort.SessionOptions()
            options.intra_op_num_threads = self._threads
            self._session = ort.InferenceSession(self._folder / "model.onnx", options)
            config = json.loads((self._folder / "genai_config.json").read_text())
            self._head_size = config["model"]["decoder"]["head_size"]
        ids = np.asarray([window], np.int64)
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        for node in self._session.get_inputs():
            if node.name.startswith("past_key_values"):
                size = node.shape[3] if isinstance(node.shape[3], int) else self._head_size
                feeds[node.name] = np.zeros((1, node.shape[1], 0, size), np.float32)
        return self._session.run(["logits"], feeds)[0][0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    worker = GenAI(args.model, args.threads)
    serve(worker, nll=scorer(worker.logits))


if __name__ == "__main__":
    main()
