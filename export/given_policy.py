"""A trained policy for a bundle: its graph and its place in the config, at export or after the fact."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from sol_rt.bundle import Bundle
from sol_rt.config import CONFIG_NAME, FileEntry, PolicySpec, SolConfig
from sol_rt.errors import CheckpointError
from sol_rt.export.policy_file import check_fits, read_policy
from sol_rt.export.policy_graph import build_policy


def write_policy_graph(folder: Path, source: Path, config: SolConfig, name: str) -> PolicySpec:
    """Writes the graph of the policy in `source` as `name` into `folder`.

    Raises CheckpointError where the file is no policy, or one for another model or other actions.
    """
    policy = read_policy(source)
    actions = [entry.action for entry in config.actions]
    check_fits(source, policy, config.model.name, config.model.hidden_size, config.variants, actions)
    graph = build_policy(policy.shape, policy.parameters, config.tensors, config.weights_file)
    (folder / name).write_bytes(graph.SerializeToString())
    shape = policy.shape
    return PolicySpec(name, shape.horizon, policy.scalars, policy.actions, shape.state_shape, policy.description)


def give_policy(path: Path, source: Path) -> Bundle:
    """Gives the bundle in the folder `path` the policy in `source`, in place of the one that it has, if any.

    The graph is written under a name of its own before the config, which is replaced as a whole: whenever this is
    interrupted, the bundle is the old one or the new one. Raises BundleError where `path` is no whole bundle or the
    policy would make it none, and what `write_policy_graph` does.
    """
    bundle = Bundle.open(path)
    folder, config = bundle.path.resolve(), bundle.config
    aside = folder / f".policy.{os.getpid()}"
    config_aside = folder / f".{CONFIG_NAME}.{os.getpid()}"
    try:
        spec = write_policy_graph(folder, source, config, aside.name)
        content = aside.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        name = f"policy-{digest[:8]}.onnx"
        files = {
            file: entry for file, entry in config.files.items() if config.policy is None or file != config.policy.file
        }
        files[name] = FileEntry(len(content), digest)
        given = replace(config, policy=replace(spec, file=name), files=dict(sorted(files.items())))
        text = json.dumps(given.to_json_dict(), indent=2, ensure_ascii=False)
        config_aside.write_text(text + "\n", encoding="utf-8")
        SolConfig.from_json(config_aside)  # a wrong one is not to replace a right one
        aside.replace(folder / name)
        config_aside.replace(folder / CONFIG_NAME)
    except OSError as error:
        raise CheckpointError(
            f"{folder}: {error.strerror or error}; make room, or copy the bundle elsewhere"
        ) from error
    finally:
        aside.unlink(missing_ok=True)
        config_aside.unlink(missing_ok=True)
    if config.policy is not None and config.policy.file != name:
        (folder / config.policy.file).unlink(missing_ok=True)
    return Bundle.open(folder)
