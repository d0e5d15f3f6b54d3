"""Worker of sol_rt itself. A request without "action" runs the dense action; it also answers `nll` (scoring.py).

python sol_rt_worker.py BUNDLE --threads N
... --prefill s100-q4    a prompt without "action" runs this variant
... --tokenizer          reads the tokenizer before the first request, as every command does
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocol import arguments, serve

from sol_rt import __version__
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.engine.engine import Engine
from sol_rt.engine.hardware import tuning
from sol_rt.engine.hardware.tuning import Tuning
from sol_rt.export.actions.losses import Candidate, token_losses

import onnxruntime as ort


def spoken(settings: Tuning | None) -> str:
    """The settings of the operators in words; None where nothing was measured for this processor."""
    if settings is None:
        return "operators not tuned"
    copies = "4-bit steps read copies" if settings.copies else "no copies"
    return f"{settings.row_bytes_ahead >> 10} KB ahead into cache level {settings.cache_level}, {copies}"


class SolRt:
    action: str | None = None

    def __init__(self, folder: Path, threads: int, prefill: str | None = None, tokenizer: bool = False) -> None:
        bundle = Bundle.open(folder)
        self._dense = bundle.config.dense
        self._prefill = Action.parse(f"k100-{prefill}") if prefill else self._dense
        self.version = f"sol_rt {__version__}, onnxruntime {ort.__version__}"
        self._engine = Engine(bundle, threads=threads, provider="cpu")
        library = self._engine.provider.library
        settings = f"prompt by {self._prefill.tag} before decode rows, {bundle.config.kv.dtype} KV"
        self.settings = f"{settings}, {spoken(None if library is None else tuning.current(library))}"
        self._engine.open_ahead(self._prefill)
        if tokenizer:
            bundle.tokenizer()

    def reset(self, capacity: int) -> None:
        self._engine.reset()

    def prompt(self, tokens: Sequence[int]) -> None:
        self._run(tokens, self._action(self._prefill))

    def rewind(self, length: int) -> None:
        self._engine.truncate(length)
        self._engine.follow_up()

    def step(self) -> None:
        self._run([self._next], self._action(self._dense))

    def nll(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers as scoring.py's `scorer` does, by action of "actions"; the first tokens of a window run dense."""
        tags, context = request["actions"], request["context"]
        candidates = [Candidate(Action.parse(tag)) for tag in tags]
        found = token_losses(self._engine, request["windows"], candidates, context=context)
        return {"nll": dict(zip(tags, found.tolist(), strict=True))}

    def _action(self, default: Action) -> Action:
        return Action.parse(self.action) if self.action else default

    def _run(self, tokens: Sequence[int], action: Action) -> None:
        self._next = self._engine.forward(tokens, action).distribution.top


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prefill", metavar="VARIANT")
    parser.add_argument("--tokenizer", action="store_true")
    args = parser.parse_args()
    worker = SolRt(args.model, args.threads, args.prefill, args.tokenizer)
    serve(worker, nll=worker.nll)


if __name__ == "__main__":
    main()
