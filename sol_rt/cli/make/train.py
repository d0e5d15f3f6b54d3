"""`sol-rt train`: a policy for a bundle."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from sol_rt.cli import options
from sol_rt.cli.console import note, progress
from sol_rt.errors import SolError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from sol_rt.bundle.bundle import Bundle
    from sol_rt.engine.engine import Engine
    from sol_rt.export.progress import Progress
    from sol_rt.train.rollouts.rollout import Rollouts

_NEEDED = ("torch", "yaml", "safetensors")


def train(
    data: Annotated[
        list[Path],
        options.option("--data", "-d", env=False, help="Text to train on: a file or a folder; may be repeated."),
    ],
    model: Annotated[
        str | None,
        options.option(
            "-m", "--model", env=False, help="Bundle folder or name, or a checkpoint, which is exported first."
        ),
    ] = None,
    config: Annotated[
        str | None,
        options.option("--config", env=False, help="YAML file, or a shipped one: default, short, …; default: default."),
    ] = None,
    output: Annotated[
        Path | None,
        options.option("-o", "--output", env=False, help="Folder of the training; default: under $SOL_RT_HOME."),
    ] = None,
    resume: Annotated[bool, options.option("--resume", env=False, help="Go on from the folder's checkpoint.")] = False,
    minutes: Annotated[
        float | None, options.option("--minutes", env=False, min=0.1, help="Wall-clock limit, all runs together.")
    ] = None,
    seed: Annotated[
        int | None, options.option("-s", "--seed", env=False, min=0, help="Instead of the config's.")
    ] = None,
    counterfactuals: Annotated[
        Path | None,
        options.option(
            "--counterfactuals", env=False, help="Folder of stage 1's measurements, to share them between trainings."
        ),
    ] = None,
    rollouts: Annotated[
        str,
        options.option(
            "--rollouts",
            env=False,
            help="runtime, reference (the torch model), or auto: reference where torch has a GPU, else runtime.",
        ),
    ] = "auto",
    threads: options.Threads = None,
    debug: options.Debug = False,
) -> None:
    """Train a policy for a bundle: stage 1 learns from every action's loss at every position, stage 2 is GRPO. Prints
    the policy's path; sol-rt export --policy puts it into a bundle.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SolError(f"train needs {', '.join(missing)}; run pip install 'sol-rt[train,export]'")
    from dataclasses import replace

    import torch

    from sol_rt.bundle.bundle import Bundle
    from sol_rt.engine.engine import Engine
    from sol_rt.evaluation.quality.perplexity import starting_token
    from sol_rt.store.home import home
    from sol_rt.train.config import read_config
    from sol_rt.train.data.corpus import read_documents
    from sol_rt.train.data.windows import Windows
    from sol_rt.train.run.distributed import joined
    from sol_rt.train.trainer import Trainer, TrainSetup

    if rollouts not in ("auto", "runtime", "reference"):
        raise UsageError(f"--rollouts {rollouts}: expected auto, runtime or reference")
    settings = read_config(config)
    if seed is not None:
        settings = replace(settings, seed=seed)
    with joined() as group, progress() as report:
        if threads is None and group.size > 1:
            threads = max((os.cpu_count() or 1) // group.size, 1)
        first = group.rank == 0
        quiet: Progress = report if first else lambda step, done, total: None
        say: Callable[[str], None] = note if first else lambda text: None
        if first:
            path = _bundle(model, quiet)
        group.wait()
        if not first:
            path = _bundle(model, quiet)
        bundle = Bundle.open(path)
        name = bundle.config.model.name
        folder = output or home() / "policies" / name
        folder.mkdir(parents=True, exist_ok=True)
        tokenizer = bundle.tokenizer()
        documents = read_documents(data, tokenizer, lambda done, total: quiet("reading text", done, total))
        bos = starting_token(tokenizer, bundle.config.model)
        windows = Windows(documents, settings.data, bundle.config.model.max_context, bos)
        engine = Engine(bundle, provider="cpu", threads=threads)
        torch.set_num_threads(engine.threads)
        reference = rollouts == "reference" or (rollouts == "auto" and torch.cuda.is_available())
        source = _source(engine, settings.policy.scalars, reference=reference, say=say)
        setup = TrainSetup(
            rollouts=source,
            embed=_embedding(bundle),
            windows=windows,
            config=settings,
            folder=folder,
            counterfactuals=counterfactuals or folder / "counterfactuals",
            model=name,
            identity=_identity(bundle),
            minutes=minutes,
        )
        trained = Trainer(setup, group, resume=resume, report=quiet, note=say).run()
    if first:
        print(trained)


def _bundle(model: str | None, report: Progress) -> Path:
    """The bundle of -m; of a checkpoint, the one that its default export makes."""
    from sol_rt.bundle.config import CONFIG_NAME
    from sol_rt.store.home import bundles_dir, find_bundle, remember_last_export
    from sol_rt.store.pull import bundle_name

    try:
        found = find_bundle(model)
        if (found / CONFIG_NAME).is_file():
            return found
    except UsageError:
        if model is None:
            raise
    assert model is not None
    target = bundles_dir() / bundle_name(model)
    if (target / CONFIG_NAME).is_file():
        return target
    from sol_rt.export import export_bundle

    note(f"{model}: no bundle yet; exporting it to {target}")
    export_bundle(model, target, progress=report)
    remember_last_export(target)
    return target


def _identity(bundle: Bundle) -> str:
    """sha256 of what decides on losses: weights, model, cache and variants, but neither policy nor chosen actions."""
    import hashlib
    import json

    config = bundle.config
    told = {name: config.to_json_dict()[name] for name in ("model", "kv", "dense", "variants")}
    told["weights"] = config.files[config.weights_file].sha256
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _source(engine: Engine, scalars: tuple[str, ...], *, reference: bool, say: Callable[[str], None]) -> Rollouts:
    """Where episodes come from, over the bundle's own actions and costs."""
    from sol_rt.budget.calibration_table import load_cost_model
    from sol_rt.train.rollouts.rollout import RolloutSpec
    from sol_rt.train.rollouts.runtime import RuntimeRollouts

    bundle = engine.bundle
    cost = load_cost_model(bundle, *engine.machine)
    unit = "bytes; to train on this device's milliseconds run sol-rt calibrate first"
    say(cost.note or f"costs are {unit if cost.name == 'bytes' else 'milliseconds, of the calibration'}")
    actions = tuple(entry.action for entry in bundle.config.actions)
    spec = RolloutSpec(actions, cost, scalars, midway=True)
    if not reference:
        return RuntimeRollouts(engine, spec)
    import torch

    from sol_rt.train.reference_model.model import ReferenceModel
    from sol_rt.train.rollouts.reference import ReferenceRollouts

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return ReferenceRollouts(ReferenceModel.from_bundle(bundle.path).to(device), spec)


def _embedding(bundle: Bundle) -> Callable[[Tensor], Tensor]:
    """Rows of the model's embedding at its widest level, as policy.onnx looks them up."""
    from sol_rt.train.reference_model.weights import read_matrix

    config = bundle.config
    return read_matrix(bundle.file(config.weights_file), config.tensors, "embed").rows
