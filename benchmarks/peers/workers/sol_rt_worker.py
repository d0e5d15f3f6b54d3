"""Worker of sol_rt: the native core, called from Python. It also answers `nll` (scoring.py), `default` and `rounds`.

python sol_rt_worker.py BUNDLE --threads N
... --prefill s100-q4    a prompt without "action" runs this variant

A prompt runs the variant of the request's action, without one the dense one. A step is a token of a greedy generation
under the action, its text included: the loop that apps run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protocol import arguments, serve

from sol_rt import __version__
from sol_rt.bundle.actions import Action
from sol_rt.engine.hardware.tuning import Tuning
from sol_rt.export.actions.losses import Candidate, token_losses
from sol_rt.generate.model import SolModel
from sol_rt.generate.native.engine import Engine
from sol_rt.generate.native.session import Session
from sol_rt.generate.stream import Stream, next_of_each

import onnxruntime as ort


def spoken(settings: Tuning | None) -> str:
    """The settings of the operators in words; None where nothing was measured for this processor."""
    if settings is None:
        return "operators not tuned"
    copies = "4-bit steps read copies" if settings.copies else "no copies"
    return f"{settings.row_bytes_ahead >> 10} KB ahead into cache level {settings.cache_level}, {copies}"


class SolRt:
    action: str | None = None

    def __init__(self, folder: Path, threads: int | None, prefill: str | None = None) -> None:
        model = SolModel.from_pretrained(folder, provider="cpu", threads=threads, prefill=prefill, measure_costs=False)
        config = model.bundle.config
        self.version = f"sol_rt {__version__}, onnxruntime {ort.__version__}"
        tuning = Engine.tuning() if model.native else None
        prompts = f"prompt by {model.prefill.tag} before decode rows"
        self.settings = f"{prompts}, {config.kv.dtype} KV, {spoken(tuning)}"
        self._model, self._dense = model, config.dense.tag
        self._tokens: list[int] = []
        self._room = 0
        self._stream: Stream | None = None
        self._sessions: list[Session] = []

    def reset(self, capacity: int) -> None:
        self._model.engine.reset()
        self._tokens, self._room, self._stream = [], capacity, None

    def prompt(self, tokens: Sequence[int]) -> None:
        self._tokens += tokens
        self._stream = None
        action = Action.parse(self.action) if self.action else self._model.prefill
        self._model.engine.forward(tokens, action)

    def rewind(self, length: int) -> None:
        del self._tokens[length:]
        self._model.engine.truncate(length)

    def step(self) -> None:
        if self._stream is None:
            self._stream = self._model.stream(
                self._tokens,
                schedule=f"fixed:{self.action or self._dense}",
                max_new_tokens=self._room - len(self._tokens),
                eos_token_id=[],
                reuse_cache=True,
            )
            next(self._stream)  # of the prompt, whose last token runs once more
        next(self._stream)

    def nll(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answers as scoring.py's `scorer` does, by action of "actions"; the first tokens of a window run dense."""
        tags, context = request["actions"], request["context"]
        candidates = [Candidate(Action.parse(tag)) for tag in tags]
        found = token_losses(self._model.engine, request["windows"], candidates, context=context)
        return {"nll": dict(zip(tags, found.tolist(), strict=True))}

    def default(self, request: dict[str, Any]) -> dict[str, Any]:
        """Generates one token after "tokens" without options. The answer has its "ms" and the prompt's "variant"."""
        self.reset(len(request["tokens"]) + 1)
        begun = time.perf_counter()
        first = next(self._model.stream(request["tokens"], max_new_tokens=1, eos_token_id=[], reuse_cache=False))
        return {"ms": (time.perf_counter() - begun) * 1e3, "variant": first.action.variant}

    def rounds(self, request: dict[str, Any]) -> dict[str, Any]:
        """Gives each of "prompts" a greedy answer of "count" dense tokens, "sessions" at a time, in rounds.

        "logit_bias" keeps answers from an early end. That is the work of a server, without the server. The answer has
        "ms", the time of all.
        """
        while len(self._sessions) < request["sessions"]:
            self._sessions.append(self._model.session() if self._sessions else self._model.engine)
        waiting = iter(request["prompts"])
        options: dict[str, Any] = {"budget": 1.0, "temperature": 0, "reuse_cache": True}
        options["logit_bias"] = {int(token): bias for token, bias in request["logit_bias"].items()}
        running: dict[Session, Stream] = {}
        begun = time.perf_counter()
        while True:
            for session in self._sessions[: request["sessions"]]:
                if session not in running and (prompt := next(waiting, None)) is not None:
                    stream = self._model.stream(prompt, max_new_tokens=request["count"], **options)
                    stream.move_to(session)
                    running[session] = stream
            if not running:
                return {"ms": (time.perf_counter() - begun) * 1e3}
            made = next_of_each(list(running.values()))
            for session, token in zip(list(running), made, strict=True):
                if isinstance(token, StopIteration):
                    del running[session]
                elif isinstance(token, Exception):
                    raise token


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prefill", metavar="VARIANT")
    args = parser.parse_args()
    worker = SolRt(args.model, args.threads, args.prefill)
    serve(worker, nll=worker.nll, default=worker.default, rounds=worker.rounds)


if __name__ == "__main__":
    main()
