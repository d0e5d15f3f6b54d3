"""Worker of sol_rt's native core: the loop that apps run, called from Python. A prompt runs dense.

python sol_rt_core_worker.py BUNDLE --threads N

A step is a token of a greedy generation under the request's action, its text included.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from protocol import arguments, serve
from sol_rt_worker import spoken

from sol_rt import __version__
from sol_rt.budget.cost.cost_table import MeasuredCost
from sol_rt.generate.native.model import NativeModel
from sol_rt.generate.results import GeneratedToken

import onnxruntime as ort


class SolRtCore:
    action: str | None = None

    def __init__(self, folder: Path, threads: int) -> None:
        self._model = NativeModel.from_pretrained(folder, threads=threads, measure_costs=False)
        config = self._model.bundle.config
        self._dense = config.dense.tag
        self.version = f"sol_rt {__version__}, onnxruntime {ort.__version__}"
        cost = self._model.cost
        tuning = cost.cost_table.tuning if isinstance(cost, MeasuredCost) else None
        self.settings = f"the native core, {config.kv.dtype} KV, {spoken(tuning)}"
        self._tokens: list[int] = []
        self._room = 0
        self._stream: Iterator[GeneratedToken] = iter(())

    def reset(self, capacity: int) -> None:
        self._tokens, self._room = [], capacity

    def prompt(self, tokens: Sequence[int]) -> None:
        reuse = bool(self._tokens)
        self._tokens += tokens
        self._stream = self._model.stream(
            self._tokens,
            schedule=f"fixed:{self.action or self._dense}",
            max_new_tokens=self._room - len(self._tokens),
            eos_token_id=[],
            reuse_cache=reuse,
        )
        next(self._stream)  # the prompt's own

    def rewind(self, length: int) -> None:
        del self._tokens[length:]

    def step(self) -> None:
        next(self._stream)


def main() -> None:
    args = arguments(__doc__).parse_args()
    serve(SolRtCore(args.model, args.threads))


if __name__ == "__main__":
    main()
