"""Worker of sol_rt itself. A request without "action" runs the dense action.

python sol_rt_worker.py BUNDLE --threads N
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort
from protocol import arguments, serve

from sol_rt import __version__
from sol_rt.budget.cost.bytes_model import BytesCost
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.engine import Engine
from sol_rt.generate.model import SolModel


class SolRt:
    action: str | None = None

    def __init__(self, folder: Path, threads: int) -> None:
        bundle = Bundle.open(folder)
        self.version = f"sol_rt {__version__}, onnxruntime {ort.__version__}"
        self.settings = f"prompt by {bundle.config.dense.tag} before decode rows, {bundle.config.kv.dtype} KV"
        self._engine = Engine(bundle, threads=threads, provider="cpu")
        self._dense = bundle.config.dense
        self._engine.open_ahead(self._dense)

    def reset(self, capacity: int) -> None:
        self._engine.reset()

    def prompt(self, tokens: Sequence[int]) -> None:
        self._run(tokens)

    def rewind(self, length: int) -> None:
        self._engine.truncate(length)
        self._engine.follow_up()

    def step(self) -> None:
        self._run([self._next])

    def nll(self, request: dict[str, Any]) -> dict[str, Any]:
        """What scoring.py's `scorer` answers; the first half of a window runs dense, then each token is a step."""
        model = SolModel(self._engine, BytesCost(self._engine.bundle.config))
        schedule = f"fixed:{self._action().tag}"
        scored = [model.score(window, context=len(window) // 2, schedule=schedule) for window in request["windows"]]
        return {"nll": [(-each.logprobs[1:]).tolist() for each in scored]}

    def _action(self) -> Action:
        return Action.parse(self.action) if self.action else self._dense

    def _run(self, tokens: Sequence[int]) -> None:
        self._next = self._engine.forward(tokens, self._action()).distribution.top


def main() -> None:
    args = arguments(__doc__).parse_args()
    worker = SolRt(args.model, args.threads)
    serve(worker, nll=worker.nll)


if __name__ == "__main__":
    main()
