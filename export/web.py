"""A bundle for browsers: few graphs, and each of them also in the forms that ONNX Runtime for the web runs fast.

A browser holds weights once for every graph that it has loaded, and gains no time by leaving out channels or tokens
(docs/results/speed.md). So by default only actions that read all of both stay: they differ in bits, one graph each.
Beside `model.q8.onnx` lie `model.q8.wasm.onnx` and `model.q8.webgpu.onnx` (docs/design/function-bodies.md,
"In a browser").
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import onnx
import onnx.inliner
from onnx import TensorProto

from sol_rt.bundle.bits import is_of_screen
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import ALIGNMENT, BLOCK, FileEntry, SolConfig, TensorEntry, Variant
from sol_rt.bundle.graph_file import external_tensors
from sol_rt.bundle.selection import SELECTION
from sol_rt.engine.gpu.gpu_graphs import archive_of
from sol_rt.errors import BundleError, UsageError
from sol_rt.export.bundle_folder import check_output, hashed, seal, written_aside
from sol_rt.export.graphs.functions.operators import DEQUANTIZED, PACKED
from sol_rt.export.graphs.graph import Target, build_graph, weight_bytes
from sol_rt.export.sources.decoder import Decoder, from_hf_config
from sol_rt.export.sources.folder.hf_checkpoint import read_json
from sol_rt.progress import Progress, silent
from sol_rt.store.verified import check_weights

LARGEST_FILE = 2 * 10**9
"""Bytes of the largest file that a browser takes into one buffer."""
_NOT_COPIED = ("README.md", SELECTION)
_COPIED_AT_ONCE = 16 << 20


def write_web_bundle(
    source: Path,
    output: Path,
    *,
    bits: Collection[int] | None = None,
    channel_density: Collection[float] = (1.0,),
    kv_density: Collection[float] = (1.0,),
    progress: Progress | None = None,
) -> SolConfig:
    """Writes a copy of a bundle for browsers into the folder `output`, aside first, and returns its config.

    Args:
        source: the bundle.
        output: the folder of the new bundle. A bundle that is there already is replaced.
        bits, channel_density, kv_density: levels to keep, those of the dense action among them; by default all bits.
            Graphs of 3 bits are left out: a browser would hold them in 8.
        progress: reports how far the work is.

    The policy stays only if all its actions do.

    Raises UsageError for levels that leave out the dense action, for an int8 cache and for a source that is the output,
    BundleError for a damaged source or weights too large for a browser, CheckpointError where it can't write.
    """
    bundle = Bundle.open(source)
    config = bundle.config
    check_output(output)
    if output.resolve() == source.resolve():
        raise UsageError(f"output {output}: is the bundle itself; choose another folder with -o")
    if config.kv.dtype != "float16":
        raise UsageError(f"--target web: {source} has a cache in {config.kv.dtype}, which no browser runs; use float16")
    if config.kv.convolving:
        raise UsageError(
            f"--target web: {source} has layers with a short convolution, which no browser's host runs; "
            "export a model whose layers all attend"
        )
    if "config.json" not in config.files:
        raise BundleError(source, "config.json", "no such file", "the model's config", "export the model again")
    decoder = from_hf_config(read_json(source / "config.json"), config.model.max_context)
    kept = _with_whole_heads(_kept(config, bits, channel_density, kv_density), decoder)
    names = _read_tensors(bundle, kept)
    kept = replace(kept, tensors=_laid_out({name: config.tensors[name] for name in config.tensors if name in names}))
    last = max(kept.tensors.values(), key=lambda entry: entry.offset)
    size = last.offset + last.bytes
    if size > LARGEST_FILE:
        got, expected = f"{size / 1e9:.2f} GB of weights", f"at most {LARGEST_FILE / 1e9:g} GB, a browser's largest"
        raise BundleError(source, config.weights_file, got, expected, "export with fewer --bits, or a smaller model")
    graphs = {variant.file for variant in config.variants.values()} | {config.weights_file}
    forms = {name for name in config.files for target in Target if name.endswith(f".{target.value}.onnx")}
    forms |= {name for name in [archive_of(config.files)] if name is not None}
    skipped = {*graphs, *forms, *_NOT_COPIED, *([config.policy.file] if config.policy else [])}
    bundle, _ = check_weights(bundle, progress or silent)  # a copy of damaged weights would get a hash that is right
    with written_aside(output) as folder:
        for name in config.files.keys() - skipped:
            (folder / name).write_bytes(bundle.read(name))
        _copy_weights(source / config.weights_file, folder / config.weights_file, config.tensors, kept.tensors)
        for variant in {variant.file: variant for variant in kept.variants.values()}.values():
            _write_graphs(folder, kept, variant, decoder)
        if kept.policy is not None:
            (folder / kept.policy.file).write_bytes(_moved(bundle.read(kept.policy.file), kept.tensors))
        weights, _ = hashed(folder / kept.weights_file, progress or silent)
        return seal(folder, replace(kept, files={}), FileEntry(weights.bytes, weights.sha256))


def _kept(
    config: SolConfig,
    bits: Collection[int] | None,
    channel_density: Collection[float],
    kv_density: Collection[float],
) -> SolConfig:
    """The config with the actions of these levels alone."""
    variants = {
        key: variant
        for key, variant in config.variants.items()
        if variant.channel_density in channel_density
        and not variant.precision.reads_three_bits
        and (bits is None or variant.bits in bits)
    }
    actions = tuple(
        entry for entry in config.actions if entry.action.variant in variants and entry.action.kv_density in kv_density
    )
    if config.variants[config.dense.variant].precision.reads_three_bits:
        raise UsageError(
            "--target web: this bundle's dense action reads 3 bits, which browsers have not; export 8 or 4"
        )
    if config.dense not in [entry.action for entry in actions]:
        raise UsageError(f"--target web: these levels leave out {config.dense.tag}, the dense action; keep its levels")
    variants = {key: variants[key] for key in variants if any(entry.action.variant == key for entry in actions)}
    policy, known = config.policy, {entry.action for entry in actions}
    if policy is not None and not known.issuperset(policy.actions):
        policy = None
    return replace(config, variants=variants, actions=actions, policy=policy)


def _with_whole_heads(config: SolConfig, decoder: Decoder) -> SolConfig:
    """The config without screened LM heads: a browser has no kernel for the search among their logits."""
    variants = dict(config.variants)
    for key, variant in variants.items():
        if variant.lm_head_screen is not None:
            whole = replace(variant, lm_head_screen=None)
            variants[key] = replace(whole, weight_bytes=weight_bytes(decoder, config.tensors, whole))
    return replace(config, variants=variants)


def _read_tensors(bundle: Bundle, kept: SolConfig) -> set[str]:
    """Names of the tensors that the graphs which stay read, but for what screens an LM head."""
    files = {variant.file for variant in kept.variants.values()} | ({kept.policy.file} if kept.policy else set())
    names = {tensor.name for file in files for tensor in external_tensors(bundle.file(file), bundle.read(file))}
    return {name for name in names if not is_of_screen(name)}


def _laid_out(tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """The tensors one after the other, each at the alignment."""
    placed, at = {}, 0
    for name, entry in tensors.items():
        placed[name] = replace(entry, offset=at)
        at += -(-entry.bytes // ALIGNMENT) * ALIGNMENT
    return placed


def _copy_weights(source: Path, target: Path, old: Mapping[str, TensorEntry], new: Mapping[str, TensorEntry]) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        for name, entry in new.items():
            reader.seek(old[name].offset)
            writer.seek(entry.offset)
            left = entry.bytes
            while left:
                chunk = reader.read(min(left, _COPIED_AT_ONCE))
                if not chunk:
                    raise BundleError(source, name, "the end of the file", f"{left} more bytes")
                writer.write(chunk)
                left -= len(chunk)


def _write_graphs(folder: Path, config: SolConfig, variant: Variant, decoder: Decoder) -> None:
    """Writes the graph of a precision and its two forms for browsers."""
    for target in (None, *Target):
        model = build_graph(decoder, variant.precision, config.tensors, config.weights_file, config.kv, target)
        if target is not None:
            model = onnx.inliner.inline_local_functions(model)
            _name_made_weights(model.graph)
        path = folder / (variant.file if target is None else web_file(variant.file, target))
        path.write_bytes(model.SerializeToString())


def web_file(file: str, target: Target) -> str:
    """Name of a graph's form for a target: `model.q8.wasm.onnx` for `model.q8.onnx`."""
    return f"{Path(file).stem}.{target.value}.onnx"


def _name_made_weights(graph: onnx.GraphProto) -> None:
    """Puts an initializer in the place of every node that stands for what a host makes of a matrix.

    `layers.0.up.8` is level 8 of `layers.0.up` in float32, at the location `layers.0.up.8.float32`. Its base for
    MatMulNBits is `layers.0.up.packed`, at a location of that name. Initializers that nobody reads then are dropped.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes, names = [], {}
    for node in graph.node:
        if node.op_type not in (DEQUANTIZED, PACKED):
            nodes.append(node)
            continue
        matrix = node.input[0].removesuffix(".base")
        blocks, outputs = weights[node.input[1]].dims
        if node.op_type == PACKED:
            name = location = f"{matrix}.packed"
            kind, dims, item = TensorProto.UINT8, [outputs, blocks, BLOCK // 2], 1
        else:
            name = f"{matrix}.{next(attribute.i for attribute in node.attribute if attribute.name == 'bits')}"
            location, kind, dims, item = f"{name}.float32", TensorProto.FLOAT, [blocks * BLOCK, outputs], 4
        weights[name] = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", location), ("offset", 0), ("length", item * math.prod(dims))):
            weights[name].external_data.add(key=key, value=str(value))
        names[node.output[0]] = name
    for node in nodes:
        for index, name in enumerate(node.input):
            node.input[index] = names.get(name, name)
    read = {name for node in nodes for name in _read(node)}
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensor for tensor in weights.values() if tensor.name in read)


def _read(node: onnx.NodeProto) -> set[str]:
    """Names that a node reads, in its branches too."""
    inner = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    return {*node.input, *(name for graph in inner for child in graph.node for name in _read(child))}


def _moved(graph: bytes, tensors: Mapping[str, TensorEntry]) -> bytes:
    """A graph file's content with its weights at new places."""
    model = onnx.load_from_string(graph)
    for tensor in model.graph.initializer:
        if tensor.name in tensors and tensor.data_location == TensorProto.EXTERNAL:
            for item in tensor.external_data:
                if item.key == "offset":
                    item.value = str(tensors[tensor.name].offset)
    return model.SerializeToString()
