"""Worker of optimum's ONNX Runtime model, ORTModelForCausalLM. It also answers `nll` (scoring.py).

python optimum_worker.py FOLDER --threads N
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from optimum.onnxruntime import ORTModelForCausalLM
from protocol import arguments, serve
from scoring import scorer

import onnxruntime as ort

_BATCH = 512  # its attention matrix is whole: 8000 tokens at once would take gigabytes


class Optimum:
    action: str | None = None

    def __init__(self, folder: Path, threads: int) -> None:
        names = ("optimum-onnx", "onnxruntime")
        self.version = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
        (file,) = folder.glob("*.onnx")
        self.settings = f"ORTModelForCausalLM, {file.stem}, float32 KV"
        torch.set_num_threads(threads)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._model = ORTModelForCausalLM.from_pretrained(folder, file_name=file.name, session_options=options)

    def reset(self, capacity: int) -> None:
        self._past: tuple[tuple[torch.Tensor, torch.Tensor], ...] | None = None

    def prompt(self, tokens: Sequence[int]) -> None:
        for start in range(0, len(tokens), _BATCH):
            self._forward(torch.tensor([tokens[start : start + _BATCH]]))

    def rewind(self, length: int) -> None:
        self._past = tuple((key[:, :, :length], value[:, :, :length]) for key, value in self._past or ())

    def step(self) -> None:
        self._forward(self._next)

    def logits(self, window: list[int], first: int) -> list[np.ndarray]:
        """Returns the logits of the tokens from `first` to the last but one."""
        self.reset(len(window))
        return [self._forward(torch.tensor([window]))[first:-1].numpy()]

    def _forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Appends tokens [1, S]; returns logits [S, vocab]."""
        past = self._past[0][0].shape[2] if self._past else 0
        mask = torch.ones((1, past + ids.shape[1]), dtype=torch.int64)
        with torch.inference_mode():
            out = self._model(input_ids=ids, attention_mask=mask, past_key_values=self._past, use_cache=True)
        self._past = out.past_key_values
        self._next = out.logits[:, -1:].argmax(-1)
        return out.logits[0]


def main() -> None:
    args = arguments(__doc__).parse_args()
    worker = Optimum(args.model, args.threads)
    serve(worker, nll=scorer(worker.logits))


if __name__ == "__main__":
    main()
