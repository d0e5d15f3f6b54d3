"""`sol-rt train` trains a policy for a bundle."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sol_rt.cli import options
from sol_rt.cli.console import note, progress
from sol_rt.cli.loading import require_packages
from sol_rt.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor

    from sol_rt.budget.cost.model import CostModel
    from sol_rt.budget.hull import Hull
    from sol_rt.bundle.bundle import Bundle
    from sol_rt.generate.native.engine import Engine
    from sol_rt.progress import Progress, Stages
    from sol_rt.train.config import TrainConfig
    from sol_rt.train.data.windows import Windows
    from sol_rt.train.rollouts.rollout import Rollouts
    from sol_rt.train.run.distributed import Group

_ROLLOUTS = ("auto", "runtime", "reference")


def train(
    data: Annotated[
        list[Path],
        options.option("--data", "-d", env=False, help="File or folder of text to train on; may be repeated."),
    ],
    model: Annotated[
        str | None,
        options.option(
            "-m",
            "--model",
            env=False,
            help="Folder or name of a bundle, or a checkpoint, which is exported first; default: $SOL_RT_MODEL, else "
            "the bundle exported or pulled last.",
        ),
    ] = None,
    config: Annotated[
        str | None,
        options.option("--config", env=False, help="YAML file, or name of a shipped config such as default or short."),
    ] = None,
    output: Annotated[
        Path | None,
        options.option("-o", "--output", env=False, help="Folder of the training; default: a folder in $SOL_RT_HOME."),
    ] = None,
    resume: Annotated[
        bool, options.option("--resume", env=False, help="Continue from the checkpoint in the training's folder.")
    ] = False,
    minutes: Annotated[
        float | None,
        options.option("--minutes", env=False, min=0.1, help="Time limit in minutes, over all runs of the training."),
    ] = None,
    seed: Annotated[
        int | None, options.option("-s", "--seed", env=False, min=0, help="Seed that replaces the config's.")
    ] = None,
    counterfactuals: Annotated[
        Path | None,
        options.option(
            "--counterfactuals", env=False, help="Folder for stage 1's measurements, which several trainings can share."
        ),
    ] = None,
    rollouts: Annotated[
        str,
        options.option(
            "--rollouts",
            env=False,
            help="Model that runs episodes: runtime, reference (in torch), or auto (reference if torch has a GPU).",
        ),
    ] = "auto",
    threads: options.Threads = None,
    debug: options.Debug = False,
) -> None:
    """Train a policy for a bundle and print its path. sol-rt export --policy puts the policy into a bundle.

    Stage 1 learns from every action's loss at every position. Stage 2 is GRPO.
    """
    require_packages("train")
    import torch

    from sol_rt.budget.dial import untried_states
    from sol_rt.bundle.bundle import Bundle
    from sol_rt.cli.loading import usable_threads
    from sol_rt.engine.hardware import usable_cores
    from sol_rt.generate.native.engine import Engine
    from sol_rt.progress import Stages
    from sol_rt.store.home import file_name, home
    from sol_rt.store.verified import check_weights
    from sol_rt.train.run.distributed import joined
    from sol_rt.train.run.first_layer import FirstLayer
    from sol_rt.train.run.setup import TrainSetup
    from sol_rt.train.trainer import Trainer

    if rollouts not in _ROLLOUTS:
        raise UsageError(f"--rollouts {rollouts}: expected {', '.join(_ROLLOUTS[:-1])} or {_ROLLOUTS[-1]}")
    if minutes is not None and not math.isfinite(minutes):
        raise UsageError(f"--minutes {minutes}: expected a finite number from 0.1")
    settings = _settings(config, seed)
    with joined() as group, progress() as bar:
        first = group.rank == 0
        report: Progress = bar if first else lambda step, done, total: None  # the first process speaks for all
        say: Callable[[str], None] = note if first else lambda text: None

        stages = Stages(report, {"exporting": 300, "reading text": 5, "training": 3600})  # about seconds
        bundle = Bundle.open(_bundle_path(model, group, stages))
        bundle, line = check_weights(bundle)
        if line:
            say(line)
        if warning := untried_states(bundle.config):
            say(f"warning: {warning}")
        name = bundle.config.model.name
        folder = output or home() / "policies" / file_name(name)  # the name is the bundle's, which may be anybody's
        folder.mkdir(parents=True, exist_ok=True)

        with stages("reading text") as reading:
            windows = _windows(data, bundle, settings, reading)

        gpus = torch.cuda.device_count()
        device = group.device(gpus) if rollouts == "reference" or (rollouts == "auto" and gpus) else None
        engine = Engine(bundle, provider="cpu", threads=usable_threads(threads) or group.threads(usable_cores()))
        torch.set_num_threads(engine.threads)
        source = _rollouts(engine, _shared_cost(engine.cost, group), settings, device, say)
        setup = TrainSetup(
            rollouts=source,
            embed=_embedding(bundle),
            windows=windows,
            config=settings,
            folder=folder,
            counterfactuals=counterfactuals or folder / "counterfactuals",
            model=name,
            identity=_identity(bundle),
            hull=_hull(bundle, source),
            first_layer=FirstLayer.of(bundle),
            minutes=minutes,
        )
        with stages("training") as training:
            policy = Trainer(setup, group, resume=resume, report=training, note=say).run()
    if first:
        print(policy)


def _settings(config: str | None, seed: int | None) -> TrainConfig:
    """The config of `--config`, with `--seed` in the place of its seed."""
    from dataclasses import replace

    from sol_rt.train.config import read_config

    settings = read_config(config)
    return settings if seed is None else replace(settings, seed=seed)


def _bundle_path(model: str | None, group: Group, stages: Stages) -> Path:
    """The folder of the bundle. Where `-m` names a checkpoint, one process after the other exports it or finds it."""
    for turn in range(group.size):
        if turn == group.rank:
            path = _found_or_exported(model, stages, (lambda line: None) if turn else note)
        group.wait()
    return path


def _shared_cost(cost: CostModel, group: Group) -> CostModel:
    """The costs of the first process's host, in every process."""
    from sol_rt.budget.cost.cost_table import MeasuredCost
    from sol_rt.budget.cost.model import BytesCost

    table = group.from_process(0, lambda: cost.cost_table if isinstance(cost, MeasuredCost) else None)
    if group.rank == 0:
        return cost
    return BytesCost(cost.config) if table is None else MeasuredCost(cost.config, table)


def _found_or_exported(model: str | None, stages: Stages, say: Callable[[str], None]) -> Path:
    """The folder of the bundle of `-m`; of a checkpoint, the bundle that its default export makes."""
    from sol_rt.bundle.config import CONFIG_NAME
    from sol_rt.store.home import bundles_dir, find_bundle, remember_last_export, remember_source
    from sol_rt.store.pull import bundle_made_of, bundle_name, source_of

    try:
        found = find_bundle(model)
        if (found / CONFIG_NAME).is_file():
            return found
    except UsageError:
        if model is None:
            raise
    assert model is not None
    if (made := bundle_made_of(model, say)) is not None:
        return made
    require_packages("export")
    from sol_rt.export import export_bundle

    target = bundles_dir() / bundle_name(model)
    say(f"{model}: no bundle yet; exporting it to {target}")
    with stages("exporting") as report:
        export_bundle(model, target, progress=report)
    remember_last_export(target)
    remember_source(target, source_of(model))
    return target


def _windows(data: list[Path], bundle: Bundle, settings: TrainConfig, report: Progress) -> Windows:
    """Reads the text of `--data` and cuts it into windows."""
    from sol_rt.evaluation.quality.perplexity import starting_token
    from sol_rt.train.data.corpus import read_documents
    from sol_rt.train.data.windows import Windows

    model, tokenizer = bundle.config.model, bundle.tokenizer()
    documents = read_documents(data, tokenizer, lambda done, total: report("reading text", done, total))
    return Windows(documents, settings.data, model.max_context, starting_token(tokenizer, model))


def _rollouts(
    engine: Engine, cost: CostModel, settings: TrainConfig, device: torch.device | None, say: Callable[[str], None]
) -> Rollouts:
    """Makes the rollouts that run the steps: in a reference model on `device`, or in the engine where that is None."""
    from sol_rt.train.rollouts.rollout import RolloutSpec
    from sol_rt.train.run.policy_actions import policy_actions

    bundle, policy = engine.bundle, settings.policy
    unit = "bytes; to train on this device's milliseconds run sol-rt profile first"
    say(cost.note or f"costs are {unit if cost.name == 'bytes' else 'milliseconds, measured on this device'}")
    actions = policy_actions(bundle.config, cost, policy.actions, settings.data.windows)
    spec = RolloutSpec(actions, cost, policy.scalars, midway=True)
    if device is None:
        from sol_rt.train.rollouts.runtime import RuntimeRollouts

        return RuntimeRollouts(engine, spec)
    from sol_rt.train.reference_model.model import ReferenceModel, fast_products
    from sol_rt.train.rollouts.reference import ReferenceRollouts

    return ReferenceRollouts(ReferenceModel.from_bundle(bundle.path, fast_products(device)).to(device), spec)


def _hull(bundle: Bundle, source: Rollouts) -> Hull | None:
    """The hull of the policy's actions by the bundle's losses; None where the bundle has none."""
    from sol_rt.budget.hull import Hull

    return Hull(source.spec.actions, source.spec.cost) if bundle.config.losses_measured else None


def _embedding(bundle: Bundle) -> Callable[[Tensor], Tensor]:
    """Looks up rows of the model's embedding at full precision, as policy.onnx does."""
    from sol_rt.train.reference_model.weights import read_matrix

    config = bundle.config
    return read_matrix(bundle.file(config.weights_file), config.tensors, "embed").rows


def _identity(bundle: Bundle) -> str:
    """sha256 of what losses depend on: weights, model, cache and variants. Policy and chosen actions are left out."""
    import hashlib
    import json

    config = bundle.config
    told = {name: config.to_json_dict()[name] for name in ("model", "kv", "dense", "variants")}
    told["weights"] = config.files[config.weights_file].sha256
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
