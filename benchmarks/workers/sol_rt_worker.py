"""Worker of sol_rt itself. A request without "action" runs the dense action.

python sol_rt_worker.py BUNDLE --threads N
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnxruntime as ort
from protocol import arguments, serve

from sol_rt import __version__
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.engine import Engine


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

    def step(self) -> None:
        self._run([self._next])

    def _run(self, tokens: Sequence[int]) -> None:
        action = Action.parse(self.action) if self.action else self._dense
        self._next = self._engine.forward(tokens, action).distribution.top


def main() -> None:
    args = arguments(__doc__).parse_args()
    serve(SolRt(args.model, args.threads))


if __name__ == "__main__":
    main()
