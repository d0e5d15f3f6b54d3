"""Facts of the dial for clients that show it: each step of an answer, and what budgets cost in quality."""

from __future__ import annotations

import math
from typing import Any

from sol_rt.generate.model import SolModel
from sol_rt.generate.results import GeneratedToken
from sol_rt.generate.stream import Stream

_CONTEXTS = (64, 256, 1024, 4096)  # tokens for which losses are told


class StepFacts:
    """Describes the steps of one answer, in the order in which they run."""

    def __init__(self, model: SolModel, stream: Stream) -> None:
        self._model, self._stream = model, stream
        self._context = len(stream.prompt) - 2  # tokens in the cache before a step; the prompt's own token comes first

    def of(self, token: GeneratedToken) -> dict[str, Any]:
        """The step of a token: costs as shares of dense, `expected_loss` in nats; null for the prompt's own token."""
        decoded, self._context = token.cost > 0, self._context + 1
        loss = float(self._model.cost.losses((token.action,), self._context)[0]) if decoded else math.nan
        return {
            "token": token.token,
            "action": token.action.tag,
            "cost": token.relative_cost if decoded else None,
            "expected_loss": None if math.isnan(loss) else loss,
            "requested_budget": self._stream.budget,
            "achieved_budget": token.achieved_budget,
            "ms": token.ms,
        }


def curves(model: SolModel) -> list[dict[str, Any]]:
    """Losses of the best mixes at some contexts: corners from the cheapest to dense, as budget and loss in nats.

    Empty if the export measured no losses.
    """
    if (hull := model.hull) is None:
        return []
    contexts = [context for context in _CONTEXTS if context < model.engine.max_context] or [1]
    return [
        {
            "context": context,
            "corners": [{"budget": cost, "expected_loss": loss} for _, cost, loss in hull.corners(context)],
        }
        for context in contexts
    ]
