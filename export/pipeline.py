"""The whole export: a checkpoint becomes a bundle, or nothing at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from sol_rt import ops
from sol_rt._version import __version__
from sol_rt.bundle.actions import Action, density
from sol_rt.bundle.bits import MIXED, Precision, bits_name, bits_tag
from sol_rt.bundle.config import (
    CONFIG_NAME,
    KV_DTYPES,
    ActionEntry,
    FileEntry,
    KvLayout,
    ModelDims,
    SolConfig,
    TensorEntry,
    Variant,
)
from sol_rt.bundle.selection import Selection
from sol_rt.errors import CheckpointError, UsageError
from sol_rt.export import parity as parity_report
from sol_rt.export.actions import action_set, active_channels, calibration_text
from sol_rt.export.actions.calibration_text import CalibrationText
from sol_rt.export.actions.lm_head_bits import choose_lm_head_bits
from sol_rt.export.blob import memory
from sol_rt.export.blob.mixed_bits import mixed_precision, with_dense_head
from sol_rt.export.blob.weights_file import blob_bytes, fill_blob, layout
from sol_rt.export.card import model_card
from sol_rt.export.graphs.graph import LayerShapes, active_counts, write_graphs
from sol_rt.export.policy_file import write_policy_graph
from sol_rt.export.progress import Progress, silent
from sol_rt.export.sources import tokenizer_files
from sol_rt.export.sources.checkpoint import Checkpoint, check_tensors
from sol_rt.export.sources.decoder import Decoder, family_of, from_hf_config
from sol_rt.export.sources.families import Family, TensorNames
from sol_rt.export.sources.open_checkpoint import open_checkpoint
from sol_rt.store.home import checkpoints_dir
from sol_rt.store.pull import resolve
from sol_rt.store.recipes import aliases
from sol_rt.text.tokenizer import FILE as TOKENIZER
from sol_rt.text.tokenizer import Tokenizer

OWN_TEXT, NO_TEXT = "self", "none"
"""Where the calibration text comes from: the model generates it, or there is none."""
MAX_ACTIONS = 12
BITS = (8, 6, MIXED, 4)
WEIGHTS = "weights.bin"
POLICY = "policy.onnx"
_LEFT_OUT = {
    MIXED: "mixed bits left out: they keep a source's own 4-bit codes, and this one has none",
    6: "6 bits left out: beside mixed bits, which are closer, they need 8 bits as the dense ones",
}
_HELD_OUT = 4  # every so manieth window is left to measure losses on
_SMALL_FILES = 64 << 20  # graphs, tokenizer and card, generously


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        path: the bundle.
        config: its sol_config.json.
        seconds: wall-clock time.
        parity: comparison with the source, None where it was not wanted.
        selection: what was measured of the candidate actions, None without calibration.
        dropped: bits left out for another reason than what `selection` tells, and why.
    """

    path: Path
    config: SolConfig
    seconds: float
    parity: parity_report.Parity | None
    selection: Selection | None
    dropped: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for people, a few short lines."""
        size = sum(entry.bytes for entry in self.config.files.values())
        lines = [
            f"{self.config.model.name}: {len(self.config.variants)} variants, {len(self.config.actions)} actions, "
            f"{size / 1e6:.1f} MB in {self.seconds:.0f} s"
        ]
        if self.parity is not None:
            lines.append(f"against transformers in float32, {self.parity.tokens} tokens:")
            lines += [
                f"  {row.variant}: largest logit difference {row.max_difference:.3g}, KL {row.kl:.3g} nats, "
                f"same top token {row.top1:.0%}"
                for row in self.parity.rows
            ]
        if self.selection is not None:
            lines += action_set.report_lines(self.selection)
        return [*lines, *self.dropped]


def export_bundle(
    source: str,
    output: Path,
    *,
    bits: Sequence[int] = BITS,
    channel_density: Sequence[float] = (1.0, 0.75, 0.5, 0.4, 0.25),
    kv_density: Sequence[float] = (1.0, 0.5, 0.25, 0.1),
    max_context: int | None = None,
    policy: Path | None = None,
    kv: str = "float16",
    calibration: str | Path = OWN_TEXT,
    max_actions: int | None = None,
    progress: Progress | None = None,
    parity: bool = True,
) -> ExportReport:
    """Exports a checkpoint. The bundle is written aside and renamed at the end: nothing is left behind by a failure.

    Args:
        source: checkpoint folder, `.gguf` file, alias or hub id.
        output: the bundle's folder; a bundle that is there already is replaced.
        bits: weight bits, of 8, 6, MIXED and 4.
        channel_density: shares of the layers' base-plane weights read, with 1 among them.
        kv_density: shares of the old cached tokens read, with 1 among them.
        max_context: longest context; default the model's own.
        policy: file of a trained policy.
        kv: type of the cache's keys and values, float16 or int8.
        calibration: OWN_TEXT, NO_TEXT or a text file. On the text, errors of quantization are compensated and the
            actions are chosen; without it all actions of the levels stay, and their losses are not known.
        max_actions: how many actions to choose at most, by default MAX_ACTIONS; only with calibration.
        progress: told how far the work is.
        parity: compare with transformers at the end.

    Raises:
        UsageError: an argument is out of range, or `output` is something else than a bundle.
        CheckpointError: the source can't be exported, or memory or disk do not suffice.
    """
    began, report, output = time.monotonic(), progress or silent, Path(output)
    ladders = _Ladders(
        _bits_ladder(bits),
        _density_ladder("channel_density", channel_density),
        _density_ladder("kv_density", kv_density),
    )
    if kv not in KV_DTYPES:
        raise UsageError(f"kv: got {kv}, expected {' or '.join(KV_DTYPES)}")
    if max_actions is not None and (max_actions < 1 or calibration == NO_TEXT):
        raise UsageError(
            f"max actions: got {max_actions}, expected 1 or more, and a calibration text: without one nothing says "
            "which actions to drop"
        )
    if calibration not in (OWN_TEXT, NO_TEXT) and not Path(calibration).is_file():
        raise UsageError(f"calibration {calibration}: no such file, expected a text file, {OWN_TEXT} or {NO_TEXT}")
    if calibration != NO_TEXT:
        active_channels.check_targets(ladders.channel_density)
    _check_output(output)
    path, name = resolve(source, report)
    checkpoint = open_checkpoint(path)
    family = family_of(checkpoint.config)
    decoder = from_hf_config(checkpoint.config, max_context)
    check_tensors(checkpoint, decoder, family)
    precisions = _precisions(ladders.bits, checkpoint, decoder, family.names)
    tensors = layout(decoder, family.names, planes=(max(each.stored for each in precisions) - 4) // 2)
    size = blob_bytes(tensors.values())
    native = ops.library_path() is not None
    needed = memory.needed_memory(decoder, parity, size, native, calibration=calibration != NO_TEXT)
    memory.require_memory(needed, memory.available_memory())
    memory.require_disk(output.parent, size + _SMALL_FILES)
    with _aside(output) as folder:
        # what can be wrong with small files is found before the minutes that the weights take
        _write_texts(folder, checkpoint, decoder)
        model = _model_dims(checkpoint, decoder, family, source, name, folder)
        text = _given_text(calibration, folder, decoder)
        config = _write_graphs(folder, decoder, model, tensors, precisions, ladders, policy, KvLayout(kv))
        unhashed = FileEntry(size, "0" * 64)  # while the weights may still change
        if calibration == OWN_TEXT:  # written by the model with weights rounded plainly
            fill_blob(folder / WEIGHTS, checkpoint, decoder, family, tensors, precisions, report)
            _seal(folder, config, unhashed, None, None)
            text = calibration_text.generate_text(folder, report)
        fitted, held_out = (None, None) if text is None else _split(text)
        fill_blob(folder / WEIGHTS, checkpoint, decoder, family, tensors, precisions, report, fitted)
        config = _seal(folder, config, unhashed, None, None)
        selection: Selection | None = None
        if fitted is not None and held_out is not None:
            config = choose_lm_head_bits(folder, config, decoder, held_out.windows, report)
            config = _seal(folder, config, unhashed, None, None)
            pruned = active_channels.with_levels(folder, config, decoder, fitted, report)
            config = _seal(folder, pruned, unhashed, None, None)
            chosen = action_set.choose_actions(
                folder, config, held_out, max_actions or MAX_ACTIONS, report, own_text=calibration == OWN_TEXT
            )
            config, selection = _seal(folder, chosen.config, unhashed, None, None), chosen.selection
        compared: parity_report.Parity | None = None
        dropped = _left_out(ladders.bits, precisions)
        if parity:
            kept = sorted({variant.bits for variant in config.variants.values()}, reverse=True)
            compared = parity_report.measure(checkpoint, decoder, family, folder, kept, report)
            if selection is None:
                config, dominated = _without_dominated(folder, config, compared)
                dropped += dominated
        digest = FileEntry(size, _sha256(folder / WEIGHTS, report))
        config = _seal(folder, config, digest, compared, selection)
    return ExportReport(output, config, time.monotonic() - began, compared, selection, dropped)


def _given_text(calibration: str | Path, folder: Path, decoder: Decoder) -> CalibrationText | None:
    """The text of a file that the caller named, None otherwise: what is wrong with it is said before the long work."""
    if calibration in (OWN_TEXT, NO_TEXT):
        return None
    return calibration_text.read_text(Path(calibration), Tokenizer.from_file(folder / TOKENIZER), decoder.max_context)


def _split(text: CalibrationText) -> tuple[list[tuple[int, ...]], CalibrationText]:
    """(windows to fit weights to, the text with the other windows): losses on fitted windows would flatter."""
    held_out = text.windows[::_HELD_OUT]
    fitted = [window for index, window in enumerate(text.windows) if index % _HELD_OUT]
    return fitted, replace(text, windows=held_out)


@dataclass(frozen=True)
class _Ladders:
    """Levels of the three axes, from dense to sparse."""

    bits: tuple[int, ...]
    channel_density: tuple[float, ...]
    kv_density: tuple[float, ...]


def _bits_ladder(levels: Sequence[int]) -> tuple[int, ...]:
    if not levels or len(set(levels)) != len(levels) or not set(levels) <= set(BITS):
        got, known = (", ".join(str(bits_name(bits)) for bits in each) for each in (levels, BITS))
        raise UsageError(f"bits: got {got}, expected different ones of {known}")
    return tuple(sorted(levels, reverse=True))


def _density_ladder(name: str, levels: Sequence[float]) -> tuple[float, ...]:
    shares = {density(name, level) for level in levels}
    if len(shares) != len(levels):
        raise UsageError(f"{name}: got {list(levels)}, expected different shares")
    if 1.0 not in shares:
        raise UsageError(f"{name}: got {list(levels)}, expected 1 among them: a bundle has its dense action")
    return tuple(sorted(shares, reverse=True))


def _precisions(
    bits: Sequence[int], checkpoint: Checkpoint, decoder: Decoder, names: TensorNames
) -> tuple[Precision, ...]:
    """Of every graph, the dense one first. Raises CheckpointError where a mixed one alone is wanted, and impossible."""
    mixed = mixed_precision(checkpoint, decoder, names) if MIXED in bits else None
    found = [Precision(level, level) for level in bits if level != MIXED]
    if mixed is not None:
        # without 8 bits it is the dense one: nothing wider is there to take its output matrix for
        found = [*found, mixed] if 8 in bits else [*(each for each in found if each.bits != 6), with_dense_head(mixed)]
    if not found:
        raise CheckpointError(f"bits: {_LEFT_OUT[MIXED]}; give --bits {BITS[0]},{BITS[-1]}")
    return tuple(sorted(found, key=lambda precision: -precision.bits))


def _left_out(bits: Sequence[int], precisions: Sequence[Precision]) -> tuple[str, ...]:
    return tuple(_LEFT_OUT[level] for level in bits if level not in {each.bits for each in precisions})


def _check_output(output: Path) -> None:
    if output.is_dir() and ((output / CONFIG_NAME).is_file() or not any(output.iterdir())):
        return
    if output.exists() or output.is_symlink():
        raise UsageError(f"output {output}: it is there already and no bundle, so it stays; choose another place")


@contextmanager
def _aside(output: Path) -> Iterator[Path]:
    """A folder beside `output` that takes its place when all went well, and is removed otherwise."""
    output = output.resolve()  # of a link, what it points to is replaced
    folder = output.with_name(f"{output.name}.part-{os.getpid()}")
    old = output.with_name(f"{output.name}.old-{os.getpid()}")
    try:
        folder.mkdir(parents=True)
        yield folder
        if output.exists():
            output.rename(old)
        folder.rename(output)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(f"disk: no room left in {output.parent}; make room or choose another -o") from error
        raise CheckpointError(f"output {output}: {error.strerror or error}; choose another -o") from error
    finally:
        # by what is there, not by how far the code came: an interruption may fall between any two of its steps
        if old.exists() and not output.exists():
            old.rename(output)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _write_texts(folder: Path, checkpoint: Checkpoint, decoder: Decoder) -> None:
    checkpoint.write_tokenizer(folder)
    tokenizer_files.check_vocabulary(folder, decoder.vocab_size)
    tokenizer_files.write_json(folder / "config.json", checkpoint.config)


def _model_dims(
    checkpoint: Checkpoint, decoder: Decoder, family: Family, source: str, name: str, folder: Path
) -> ModelDims:
    generation = json.loads((folder / tokenizer_files.GENERATION).read_text(encoding="utf-8"))

    def special(key: str) -> list[int]:
        found = generation.get(key, checkpoint.config.get(key))
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(isinstance(token, int) and 0 <= token < decoder.vocab_size for token in ids):
            raise CheckpointError(
                f"{checkpoint.path}: {key}: got {found}, expected ids of the vocabulary, 0 to {decoder.vocab_size - 1}"
            )
        return ids

    told, license_name = _provenance(checkpoint, source)
    return decoder.dims(
        name=name,
        architecture=family.architecture,
        source=told,
        license=license_name,
        bos_token_id=next(iter(special("bos_token_id")), None),
        eos_token_ids=tuple(special("eos_token_id")),
    )


def _provenance(checkpoint: Checkpoint, source: str) -> tuple[str, str]:
    """(source, licence) as the bundle tells them: for fetched checkpoints the recipe's, and no path of this machine."""
    path = checkpoint.path.resolve()
    if path.parent == checkpoints_dir().resolve():
        recipe = aliases().get(path.stem if path.is_file() else path.name)
        if recipe is not None:
            return recipe.hub or f"{recipe.package}: {recipe.member}", checkpoint.license or recipe.license
        return path.name.replace("--", "/"), checkpoint.license
    return path.name if Path(source).exists() else source, checkpoint.license


def _write_graphs(
    folder: Path,
    decoder: Decoder,
    model: ModelDims,
    tensors: Mapping[str, TensorEntry],
    precisions: Sequence[Precision],
    ladders: _Ladders,
    policy: Path | None,
    kv: KvLayout,
) -> SolConfig:
    """Writes graphs and policy; the config still lacks the list of files."""
    variants = [
        _variant(decoder, channel_density, each) for each in precisions for channel_density in ladders.channel_density
    ]
    actions = tuple(
        Action(kv_density, variant.channel_density, variant.bits)
        for variant in variants
        for kv_density in ladders.kv_density
    )
    config = SolConfig(
        generator=f"sol_rt {__version__}",
        model=model,
        kv=kv,
        dense=Action(1.0, 1.0, precisions[0].bits),
        variants={variant.key: variant for variant in variants},
        actions=tuple(ActionEntry(action, None) for action in actions),
        policy=None,
        weights_file=WEIGHTS,
        tensors=dict(tensors),
        files={},
    )
    config = write_graphs(folder, config, decoder)
    return config if policy is None else replace(config, policy=write_policy_graph(folder, policy, config, POLICY))


def _variant(decoder: Decoder, channel_density: float, precision: Precision) -> Variant:
    """Its weight_bytes are not counted yet."""
    key = Action(1.0, channel_density, precision.bits).variant
    active_up, active_down, active_qkv, active_o = (
        (count,) * decoder.num_layers for count in active_counts(channel_density, LayerShapes.of(decoder))
    )
    file = f"model.{bits_tag(precision.bits)}.onnx"
    return Variant(
        key,
        file,
        channel_density,
        precision.bits,
        active_up,
        active_down,
        active_qkv,
        active_o,
        0,
        precision.lm_head_bits,
        precision.layers,
    )


def _without_dominated(
    folder: Path, config: SolConfig, compared: parity_report.Parity
) -> tuple[SolConfig, tuple[str, ...]]:
    """Drops bits that other ones beat: they read less, and here they are closer to the source beyond doubt."""
    rows = {config.variants[row.variant].bits: row for row in compared.rows}
    sizes = {
        variant.bits: variant.weight_bytes for variant in config.variants.values() if variant.channel_density == 1.0
    }
    picked = {action.bits for action in config.policy.actions} if config.policy else set()
    dropped, said = set(), []
    for bits in sorted(set(rows) - {config.dense.bits} - picked, reverse=True):
        better = min(
            (other for other in rows if sizes[other] < sizes[bits]), key=lambda other: rows[other].kl, default=None
        )
        if better is not None and rows[better].is_beyond_doubt_closer_than(rows[bits]):
            dropped.add(bits)
            said.append(
                f"{bits_name(bits)} bits dropped: {bits_name(better)} bits are cheaper and closer "
                f"({rows[better].kl:.3g} to {rows[bits].kl:.3g} nats)"
            )
    for variant in config.variants.values():
        if variant.bits in dropped:
            (folder / variant.file).unlink(missing_ok=True)
    variants = {key: variant for key, variant in config.variants.items() if variant.bits not in dropped}
    actions = tuple(entry for entry in config.actions if entry.action.bits not in dropped)
    return replace(config, variants=variants, actions=actions), tuple(said)


def _seal(
    folder: Path,
    config: SolConfig,
    weights: FileEntry,
    compared: parity_report.Parity | None,
    selection: Selection | None,
) -> SolConfig:
    """Writes the card and, last, sol_config.json with the size and hash of every other file."""
    config = replace(config, files={WEIGHTS: weights})
    (folder / "README.md").write_text(model_card(config, compared, selection), encoding="utf-8")
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name != CONFIG_NAME:
            files[path.name] = (
                weights if path.name == WEIGHTS else FileEntry(path.stat().st_size, _sha256(path, silent))
            )
    config = replace(config, files=files)
    text = json.dumps(config.to_json_dict(), indent=2, ensure_ascii=False)
    (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    return config


def _sha256(path: Path, progress: Progress) -> str:
    digest, done, total = hashlib.sha256(), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            done += len(chunk)
            progress(f"hashing {path.name}", done, total)
    return digest.hexdigest()
