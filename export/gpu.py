"""Graphs for GPUs: those of a bundle without their weights, in one archive (sol_rt/engine/gpu/gpu_graphs.py reads it).

Native operators read at each step how much to leave out, so they need two graphs a precision, which every export
writes. Function bodies need one an action, which takes minutes: `--target gpu` adds them to a bundle.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sol_rt.bundle.actions import Action
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import SolConfig, Variant
from sol_rt.engine.gpu.gpu_graphs import FLOAT16, FLOAT32, INDEX, KERNELS, REPACKED, STEM, SUFFIX, Value, member
from sol_rt.engine.signature import CHANNEL_INPUTS, SPARSE_DIMS
from sol_rt.errors import UsageError
from sol_rt.export.bundle_folder import give_file
from sol_rt.export.graphs.gpu_graph import GpuGraph, gpu_graph
from sol_rt.progress import Progress, silent

ARCHIVE = f"{STEM}{SUFFIX}"
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class _Run:
    """The use of one graph: one token under an action, or any number of tokens through a variant."""

    form: str
    variant: Variant
    action: Action | None = None

    @property
    def name(self) -> str:
        by_file = self.variant.file if self.form == KERNELS else None
        if self.action is None:
            return member(self.form, "batch", by_file or self.variant.key)
        return member(self.form, "step", by_file or self.action.tag)

    def graph(self, config: SolConfig, content: bytes) -> GpuGraph:
        """The graph, made of that of the variant."""
        kernels, density = self.form == KERNELS, 1.0 if self.action is None else self.action.kv_density
        constants = {} if kernels else _active_channels(config, self.variant)
        if not kernels and density == 1.0:
            constants["kv_pages"] = np.zeros(0, np.int64)
        if self.action is not None:
            constants["num_logits"] = np.ones(1, np.int64)
        return gpu_graph(
            content,
            inline=not kernels,
            bits=self.variant.precision.widest,
            kv=config.kv,
            constants=constants,
            dims=dict.fromkeys(SPARSE_DIMS, config.model.num_layers),
            one_token=self.action is not None,
            float32=self.form == FLOAT32,
            kv_density=1.0 if kernels else density,
        )


def forms_of(config: SolConfig) -> tuple[str, ...]:
    """The forms that GPUs run of a bundle; none where its layers have states."""
    if config.kv.convolving:
        return ()
    return (KERNELS, FLOAT16) if config.kv.dtype == "int8" else (KERNELS, FLOAT16, FLOAT32)


def write_kernel_graphs(folder: Path, config: SolConfig) -> None:
    """Writes the archive with the graphs for native operators, where GPUs run the bundle."""
    if forms_of(config):
        content = gpu_archive(config, lambda file: (folder / file).read_bytes(), (KERNELS,))
        (folder / ARCHIVE).write_bytes(content)


def add_gpu_graphs(path: Path, progress: Progress = silent) -> Bundle:
    """Gives the bundle in the folder `path` the graphs of all forms, in the place of those that it has.

    Raises BundleError, UsageError for a model that GPUs do not run, and CheckpointError where it cannot write.
    """

    def make(bundle: Bundle) -> tuple[bytes, Callable[[str], SolConfig]]:
        forms = forms_of(bundle.config)
        if not forms:
            raise UsageError(
                f"--target gpu: {path} has layers with a short convolution, which no GPU provider runs; "
                "use it on the CPU"
            )
        return gpu_archive(bundle.config, bundle.read, forms, progress), lambda _: bundle.config

    return give_file(path, STEM, SUFFIX, make)


def gpu_archive(
    config: SolConfig, read: Callable[[str], bytes], forms: Collection[str], progress: Progress = silent
) -> bytes:
    """The archive with the graphs of `forms`. The same bundle gives the same bytes.

    Args:
        config: the bundle's.
        read: gives the content of one of its graph files.
        forms: some of KERNELS, FLOAT16 and FLOAT32.
        progress: gets the graphs written so far.
    """
    output, made, written = io.BytesIO(), dict[str, Value](), set[str]()
    runs = {run.name: run for form in forms for run in _runs(config, form)}
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as archive:

        def add(name: str, content: bytes) -> None:
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)

        for done, (name, run) in enumerate(runs.items()):
            progress("writing graphs for GPUs", done, len(runs))
            graph = run.graph(config, read(run.variant.file))
            add(name, graph.model)
            made |= {value.name: value for value in graph.values if value.name not in config.tensors}
        for value in made.values():
            if value.recipe is not None and (recipe := _recipe(value)) not in written:
                written.add(recipe)
                add(recipe, value.recipe)
        add(INDEX, json.dumps({name: _described(value) for name, value in sorted(made.items())}).encode())
    return output.getvalue()


def _runs(config: SolConfig, form: str) -> Iterator[_Run]:
    """The runs that need a graph of their own."""
    if form == KERNELS:
        for variant in {variant.file: variant for variant in config.variants.values()}.values():
            yield _Run(form, variant, config.dense)
            yield _Run(form, variant)
        return
    actions = [entry.action for entry in config.actions] + list(config.policy.actions if config.policy else ())
    # a prompt may end with one token, which no density of the cache applies to
    actions += [Action(1.0, variant.channel_density, variant.bits) for variant in config.variants.values()]
    for action in dict.fromkeys(actions):
        yield _Run(form, config.variants[action.variant], action)
    for variant in config.variants.values():
        yield _Run(form, variant)


def _active_channels(config: SolConfig, variant: Variant) -> dict[str, np.ndarray]:
    """A variant's channels as a graph's inputs; empty ones, which drop nothing, where all are active."""
    channels = config.model.channels.items()
    counts = np.array([np.array(getattr(variant, name)) % most for name, most in channels], np.int64)
    return dict(zip(CHANNEL_INPUTS, counts if counts.any() else counts[:, :0], strict=True))


def _described(value: Value) -> dict[str, Any]:
    recipe = REPACKED if value.repacked else _recipe(value)
    return {"of": value.weights, "dtype": value.dtype, "shape": value.shape, "recipe": recipe}


def _recipe(value: Value) -> str:
    assert value.recipe is not None
    return f"recipes/{hashlib.sha256(value.recipe).hexdigest()[:24]}.onnx"
