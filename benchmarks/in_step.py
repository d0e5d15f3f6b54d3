"""Gain of a policy that decides inside the step: stage 1 on the hidden state after the first layers.

    python benchmarks/in_step.py BUNDLE COUNTERFACTUALS --config FILE --data TEXT --data TEXT --layers 8

COUNTERFACTUALS is the folder of a training with this config and text. A policy reads the hidden state of the step
before. Here it gets, in its place, the current token's own hidden state after the first layers of a dense step, which
a policy inside the graph could read. Prints what each of the two avoids of what the static mix adds, replayed on the
held-out windows, ± the standard error over windows. The cost of running the first layers alike in every step is left
out, so the figures are an upper bound.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from sol_rt.budget.cost.bytes_model import BytesCost
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.evaluation.quality.perplexity import starting_token
from sol_rt.store.home import find_bundle
from sol_rt.train.config import TrainConfig, read_config
from sol_rt.train.data.corpus import read_documents
from sol_rt.train.data.windows import Windows
from sol_rt.train.holdout import HeldOutComparison
from sol_rt.train.multipliers import Multipliers
from sol_rt.train.policy_network import new_network
from sol_rt.train.reference_model.model import ReferenceModel
from sol_rt.train.reference_model.weights import read_matrix
from sol_rt.train.rollouts.counterfactuals import ABOUT, CounterfactualStore, MeasuredWindows
from sol_rt.train.rollouts.rollout import RolloutSpec
from sol_rt.train.run.distributed import joined
from sol_rt.train.run.state import TrainingState
from sol_rt.train.warm_start import Examples, WarmStart

MEASUREMENTS = 40  # how often the held-out windows choose the network, as in a training


class FirstLayers:
    """The hidden states after the first layers of dense steps.

    Args:
        bundle: whose model runs, in torch.
        layers: how many.
    """

    def __init__(self, bundle: Bundle, layers: int) -> None:
        self._model, self._dense = ReferenceModel.from_bundle(bundle.path), bundle.config.dense
        self._layers, self._seen = layers, torch.empty(0)
        behind = f"layers.{layers}.attn_norm"  # what it gets is the residual stream after the layers before
        norm = self._model._norm_at

        def noted(x: Tensor, place: str, name: str) -> Tensor:
            if name == behind and place == "before":
                self._seen = x[0]
            return norm(x, place, name)

        self._model._norm_at = noted  # type: ignore[method-assign]

    def of(self, tokens: list[int]) -> Tensor:
        """float32 [tokens, hidden]."""
        cache = self._model.new_cache(1)
        states = []
        for first in range(0, len(tokens), 256):
            self._model(torch.tensor([tokens[first : first + 256]]), self._dense, cache, 1)
            states.append(self._seen)
        return torch.cat(states)


def trained(
    config: TrainConfig, bundle: Bundle, spec: RolloutSpec, training: MeasuredWindows, held: MeasuredWindows
) -> list[str]:
    """Runs stage 1. Returns a cell for each budget."""
    embed = read_matrix(bundle.file(bundle.config.weights_file), bundle.config.tensors, "embed").rows
    kinds = max(training.kinds) + 1
    sizes = held.windows[0].hidden.shape[-1], len(KNOWN_SCALARS), len(spec.actions)
    network = new_network(config.policy, config.seed, *sizes)
    state = TrainingState(network, [Multipliers(*config.grpo.budget) for _ in range(kinds)])
    with joined() as group:
        stage = WarmStart(
            config=config,
            network=network,
            parallel=network,
            optimizer=state.optimizer,
            embed=embed,
            columns=KNOWN_SCALARS,
            training=Examples.of(training.windows, spec),
            held_out=Examples.of(held.windows, spec),
            held_out_kinds=held.kinds,
            group=group,
        )
        stage.begin()
        updates, patience = config.warm_start.updates, config.warm_start.patience
        while state.update < updates and state.best.since < patience:
            stage.update(state.update)
            state.count_update()
            if state.update % max(updates // MEASUREMENTS, 1) == 0:
                state.best.measured(network, stage.held_out_gain(), state.update)
        network.load_state_dict(state.best.network)
        compared = HeldOutComparison(config.evaluation, network, embed, spec, training.mean_losses(kinds))
        rows = compared.replay(held.windows, held.kinds)
    return [f"{row.avoided('static'):.1%} ± {row.stderr['static'] / row.loss['static']:.1%}" for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", help="folder, or the name of an exported bundle")
    parser.add_argument("counterfactuals", type=Path)
    parser.add_argument("--config", required=True)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--layers", type=int, default=8)
    given = parser.parse_args()
    bundle, config = Bundle.open(find_bundle(given.bundle)), read_config(given.config)
    about = json.loads((given.counterfactuals / ABOUT).read_text(encoding="utf-8"))
    store = CounterfactualStore(given.counterfactuals, about, about["scalars"], create=False)
    model, tokenizer = bundle.config.model, bundle.tokenizer()
    documents = read_documents(given.data, tokenizer, lambda done, total: None)
    windows = Windows(documents, config.data, model.max_context, starting_token(tokenizer, model))
    if windows.digest != about["text"]:
        parser.error(f"{given.counterfactuals}: of another text; name the files of its training, in their order")
    spec = RolloutSpec(tuple(map(Action.parse, about["actions"])), BytesCost(bundle.config), KNOWN_SCALARS, midway=True)
    first = FirstLayers(bundle, given.layers)
    plain, inside = [], []
    for part, of in (("train", windows.training), ("held", windows.held_out)):
        names = sorted(path.stem for path in given.counterfactuals.glob(f"{part}-*.safetensors"))
        members = [of[int(name.rpartition("-")[2])] for name in names]
        read = [store.read(name, KNOWN_SCALARS) for name in names]
        own = []
        for window, member in zip(read, members, strict=True):
            end = window.context + len(window)
            own.append(replace(window, hidden=first.of(windows.tokens(member)[:end])[window.context :]))
        kinds = [member.kind for member in members]
        plain.append(MeasuredWindows(read, kinds))
        inside.append(MeasuredWindows(own, kinds))
    print("| the policy reads | " + " | ".join(f"{budget:g}" for budget in config.evaluation.budgets) + " |")
    print("|---|" + "--:|" * len(config.evaluation.budgets))
    for name, (training, held) in (("the step before", plain), (f"{given.layers} layers of its own step", inside)):
        print(f"| {name} | " + " | ".join(trained(config, bundle, spec, training, held)) + " |", flush=True)


if __name__ == "__main__":
    main()
