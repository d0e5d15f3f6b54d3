"""The whole export, stage by stage: a checkpoint becomes a bundle, or nothing is left behind.

`export_bundle` reads from top to bottom; docs/design/export.md describes the stages and names their files.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sol_rt import __version__, ops
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import THREE
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import BLOCK, KV_DTYPES, ActionEntry, FileEntry, SolConfig
from sol_rt.bundle.selection import Selection
from sol_rt.errors import UsageError, brief
from sol_rt.export import parity as parity_report
from sol_rt.export.actions import action_set, active_channels, calibration_text
from sol_rt.export.actions.calibration_text import CalibrationText
from sol_rt.export.actions.candidates import BITS, CHANNEL_DENSITIES, KV_DENSITIES, Levels
from sol_rt.export.actions.effort import Effort, about_seconds, slowness
from sol_rt.export.actions.lm_head_bits import choose_lm_head_bits, may_screen
from sol_rt.export.actions.measuring import measure
from sol_rt.export.actions.prompt_losses import PromptLosses, measure_prompts, with_prompt_losses
from sol_rt.export.actions.readout import fit_readout, plain_actions
from sol_rt.export.actions.stored import Settings, StoredCalibration, is_device_table, is_stored
from sol_rt.export.bundle_folder import check_output, hashed, seal, written_aside
from sol_rt.export.gpu import write_kernel_graphs
from sol_rt.export.graphs.graph import write_graphs
from sol_rt.export.policy_file import read_fitting, readout_policy, write_policy_graph
from sol_rt.export.sources import tokenizer_files
from sol_rt.export.sources.chat_segments import write_chat_segments
from sol_rt.export.sources.checkpoint import Checkpoint, check_tensors
from sol_rt.export.sources.decoder import Decoder, family_of, from_hf_config, scaled_from
from sol_rt.export.sources.families import Family
from sol_rt.export.sources.model_section import model_section
from sol_rt.export.sources.open_checkpoint import open_checkpoint
from sol_rt.export.sources.source_model import source_config
from sol_rt.export.weights import memory
from sol_rt.export.weights.mixed_bits import graph_precisions, is_mostly_coded, left_out
from sol_rt.export.weights.weights_file import blob_bytes, fill_blob, layout, without_screen
from sol_rt.progress import Progress, Stages, silent
from sol_rt.store.home import check_writable
from sol_rt.store.pull import resolve
from sol_rt.store.recipes.recipe import aliases
from sol_rt.store.verified import remember_weights
from sol_rt.text.tokenizer import FILE as TOKENIZER
from sol_rt.text.tokenizer import Tokenizer

QUICK, FULL, NO_TEXT = "quick", "full", "none"
"""Values of `calibration` that are no file: a short text, the model's own or the package's; a long own one; none."""
MAX_ACTIONS = 16
NO_POLICY = "none"
"""Value of `policy` that is no file: the bundle gets none."""
WEIGHTS = "weights.bin"
POLICY = "policy.onnx"
_SMALL_FILES = 64 << 20  # more than graphs, tokenizer and card take
_OPEN, _ROUND, _WRITE, _FIT, _HEAD, _SEARCH, _MEASURE, _PROMPTS, _POLICY, _COMPARE, _HASH = (
    "opening the source",
    "rounding weights",
    "writing calibration text",
    "fitting weights",
    "choosing LM head bits",
    "searching active channels",
    "measuring losses",
    "measuring prompts",
    "fitting a policy",
    "comparing with the source",
    "hashing weights",
)
_SHARES = {
    _OPEN: 1,
    _ROUND: 5,
    _WRITE: 33,
    _FIT: 25,
    _HEAD: 6,
    _SEARCH: 8,
    _MEASURE: 14,
    _PROMPTS: 3,
    _POLICY: 3,
    _COMPARE: 3,
    _HASH: 1,
}
"""About how long the stages of a quick calibration take, in percent of the whole."""
_LEAST_SHARE = 0.01
_LEAST_TOLD = 20  # seconds: of a shorter export nothing is said before it starts


@dataclass(frozen=True)
class ExportReport:
    """The result of an export.

    Attributes:
        path: the bundle.
        config: its sol_config.json.
        seconds: wall-clock time.
        calibration: one line that says what the bundle was calibrated on; empty without calibration.
        parity: the comparison with the source; None if it was not asked for.
        selection: the measurements of the candidate actions; None without calibration.
        dropped: one line for each requested precision that the bundle lacks, unless `selection` gives the reason.
        notes: lines on what of the source is not in the bundle.
    """

    path: Path
    config: SolConfig
    seconds: float
    calibration: str
    parity: parity_report.Parity | None
    selection: Selection | None
    dropped: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report for people: a few short lines."""
        size = sum(entry.bytes for entry in self.config.files.values())
        lines = [
            f"{self.config.model.name}: {len(self.config.variants)} variants, {len(self.config.actions)} actions, "
            f"{size / 1e6:.1f} MB in {self.seconds:.0f} s"
        ]
        lines += self.notes
        if self.calibration:
            lines.append(f"calibration: {self.calibration}")
        if self.parity is not None:
            lines.append(f"against transformers in float32, {self.parity.tokens} tokens:")
            lines += [
                f"  {row.variant}: largest logit difference {row.max_difference:.3g}, KL {row.kl:.3g} nats, "
                f"same top token {row.top1:.0%}"
                for row in self.parity.rows
            ]
        if self.selection is not None:
            lines += action_set.report_lines(self.selection)
        if self.config.policy is not None:
            lines.append(f"policy: {self.config.policy.description}")
        return [*lines, *self.dropped]


def _quiet(line: str) -> None:
    """A callback for notes that drops them."""


def export_bundle(
    source: str,
    output: Path,
    *,
    bits: Sequence[int] = BITS,
    channel_density: Sequence[float] = CHANNEL_DENSITIES,
    kv_density: Sequence[float] = KV_DENSITIES,
    max_context: int | None = None,
    policy: Path | str | None = None,
    kv: str = "float16",
    calibration: str | Path | None = None,
    save_calibration: Path | None = None,
    max_actions: int | None = None,
    progress: Progress | None = None,
    parity: bool = True,
    trust_remote_code: bool = False,
    say: Callable[[str], None] = _quiet,
) -> ExportReport:
    """Exports a checkpoint. The bundle is written aside and moved into place at the end; a failure leaves nothing
    behind.

    Args:
        source: checkpoint folder, `.gguf` file, alias or hub id.
        output: the bundle's folder. A bundle that is there already is replaced.
        bits: weight bits, of 8, 6, MIXED, 4 and 3.
        channel_density: shares of the layers' base-plane weights that a step reads, 1 among them.
        kv_density: shares of the old cached tokens that a step reads, 1 among them.
        max_context: longest context in tokens; by default the model's own, or with longrope and little memory the
            one up to which its short factors hold.
        policy: file of a trained policy, or NO_POLICY. None: where losses are measured, one is fitted to them if it
            helps.
        kv: type of the cache's keys and values, float16 or int8.
        calibration: QUICK, FULL, NO_TEXT, a text file or a stored calibration. With a text, GPTQ fits the weights to it
            and the actions are chosen on it. Without one, all combinations of the levels stay, and their losses are
            unknown. None: the alias's stored calibration if it has one that fits and none is saved, else QUICK.
        save_calibration: a file to store in what was measured.
        max_actions: most actions to choose, by default MAX_ACTIONS; needs a calibration text.
        progress: reports how far the work is.
        parity: compare with transformers at the end.
        trust_remote_code: code that comes with the checkpoint may run, to convert its tokenizer.
        say: called with a line for people before the work, if this machine has too little memory to run the bundle, or
            its context is shorter than the model's own.

    Raises:
        UsageError: an argument is out of range, `output` exists and is no bundle, or the stored calibration that is
            named is of another checkpoint or of other settings.
        CheckpointError: the source cannot be exported, or memory or disk do not suffice.
    """
    began, output = time.monotonic(), Path(output)
    levels = Levels.checked(bits, channel_density, kv_density)
    if save_calibration is not None and calibration is None:
        calibration = QUICK  # with an alias's stored one nothing would be measured
    _check_arguments(source, levels, kv, calibration, save_calibration, max_actions)
    check_output(output)

    fits_policy = policy is None or save_calibration is not None
    stages = Stages(progress or silent, _stages(calibration, source, parity, fits_policy))

    # open the source
    with stages(_OPEN) as report:
        path, name = resolve(source, report)
    checkpoint = open_checkpoint(path, trust_remote_code)
    family, decoder = _described(checkpoint, max_context, kv, say)
    check_tensors(checkpoint, decoder, family)
    if parity or calibration != NO_TEXT:
        source_config(checkpoint, decoder)  # what transformers refuses shows before the minutes that the weights take
    precisions = graph_precisions(levels.bits, checkpoint, decoder, family.names)
    planes = (max(each.stored for each in precisions) - 4) // 2
    screened = decoder.lm_head if calibration != NO_TEXT and may_screen(decoder, precisions) else None
    tensors = layout(decoder, family.names, planes, precisions, screened)

    # check memory and disk
    size = blob_bytes(tensors.values())
    native = ops.library_path() is not None
    needed = memory.needed_memory(decoder, parity, size, native, calibration=calibration != NO_TEXT)
    memory.require_memory(needed, memory.available_memory())
    memory.require_disk(output.parent, size + _SMALL_FILES)

    with written_aside(output) as folder:
        # write the small files and the graphs first: their errors show before the minutes that the weights take
        _write_small_files(folder, checkpoint, decoder)
        variants = levels.variants(decoder, precisions)
        config = SolConfig(
            generator=f"sol_rt {__version__}",
            model=model_section(checkpoint, decoder, source, name, folder),
            kv=decoder.kv(kv),
            dense=Action(1.0, 1.0, precisions[0].bits),
            variants={variant.key: variant for variant in variants},
            actions=tuple(ActionEntry(action, None) for action in levels.actions(variants)),
            policy=None,
            weights_file=WEIGHTS,
            tensors=dict(tensors),
            files={},
        )
        config = write_graphs(folder, config, decoder)
        if advice := memory.running_advice(config, memory.available_memory()):
            say(advice)
        if policy not in (None, NO_POLICY):
            trained = read_fitting(Path(str(policy)), config)
            config = replace(config, policy=write_policy_graph(folder, trained, config, POLICY))

        def save(config: SolConfig) -> SolConfig:
            size = blob_bytes(config.tensors.values())
            return seal(folder, config, FileEntry(size, "0" * 64))  # hashed at the end

        # get the calibration: stored, or a text
        settings = partial(Settings.of, path, config)
        coded = is_mostly_coded(checkpoint, decoder, family.names)
        effort = Effort.quick(decoder.weights, coded) if calibration in (None, QUICK) else Effort.full()
        short = "a short text of the model's own" if effort.writes else "the package's sample texts"
        stored, note = _stored_calibration(calibration, source, settings, config, short)
        if stored is not None:
            fits = stored.screens_by_three_bits and decoder.vocab_size % BLOCK == 0
            screened = decoder.lm_head if fits else None
            tensors = layout(decoder, family.names, planes, precisions, screened)
            config = replace(config, tensors=dict(tensors))
        fitted_by = None if calibration == NO_TEXT else effort
        if calibration not in (None, QUICK, FULL, NO_TEXT):
            fitted_by = replace(effort, writes=False)  # the text is there
        seconds = slowness() * about_seconds(
            decoder.weights, fitted_by, coded=coded, measured=stored is None, parity=parity, fits_policy=fits_policy
        )
        if seconds >= _LEAST_TOLD:
            say(f"time: about {math.ceil(seconds / 60)} min on this machine, if little else runs")
        text: CalibrationText | None = None
        write_weights = partial(fill_blob, folder / WEIGHTS, checkpoint, decoder, family, tensors, precisions)
        if stored is None and calibration in (None, QUICK, FULL) and effort.writes:
            nested = [each.bits for each in precisions if each.bits != THREE] or [THREE]
            writer = Action(0.25, 1.0, nested[-1]) if effort.writes_cheaply else config.dense
            with stages(_ROUND) as report:
                # for the model to write the text with
                write_weights(report, search=not effort.plain_grid, three_bits=writer.bits == THREE)
            save(config)
            with stages(_WRITE) as report:
                text = calibration_text.generate_text(folder, writer, effort.windows, effort.long, report)
        elif stored is None and calibration != NO_TEXT:
            tokenizer = Tokenizer.from_file(folder / TOKENIZER)
            if calibration in (None, QUICK):
                text = calibration_text.package_text(tokenizer, decoder.max_context, effort.long)
            else:
                file = Path(str(calibration))
                text = calibration_text.read_text(file, tokenizer, decoder.max_context, effort.windows)
        text = None if text is None else replace(text, fitted=text.fitted[: effort.fitted])

        # write the weights
        fit = stored or text
        most_channels = effort.most_channels if stored is None else stored.most_channels
        with stages(_ROUND if fit is None else _FIT) as report:
            write_weights(report, None if fit is None else fit.fitted, most_channels)
        config = save(config)

        # choose the LM head's bits, the active channels and the actions
        selection: Selection | None = None
        to_store: StoredCalibration | None = None
        prompts: PromptLosses = {}
        if text is not None:
            with stages(_HEAD) as report:
                held_out = [window[: effort.trial_tokens] for window in text.held_out[: effort.head_windows]]
                config = save(choose_lm_head_bits(folder, config, decoder, held_out, report))
            with stages(_SEARCH) as report:
                searched = [window[: effort.trial_tokens] for window in text.fitted[: effort.searched_windows]]
                config = save(active_channels.with_levels(folder, config, decoder, searched, report))
            with stages(_MEASURE) as report:
                required = () if config.policy is None else config.policy.actions
                measured = measure(Bundle.open(folder), text, levels.kv_density, effort, report, required=required)
            with stages(_PROMPTS) as report:
                prompts = measure_prompts(Bundle.open(folder), text.scored, report, kinds=text.by_divergence)
            if save_calibration is not None:
                to_store = StoredCalibration.of(settings(), text, effort.most_channels, config, measured, prompts)
        elif stored is not None:
            config, measured = save(stored.applied(folder, config, decoder)), stored.measured
            prompts = stored.prompt_losses
        if fit is not None:
            chosen = action_set.choose_actions(folder, config, measured, fit.origin, max_actions or MAX_ACTIONS)
            config, selection = save(with_prompt_losses(chosen.config, prompts)), chosen.selection
            readout = None if stored is None else stored.readout
            if text is not None and (policy is None or to_store is not None):
                with stages(_POLICY) as report:
                    readout = fit_readout(folder, text, effort.windows_of_all, report)
            if to_store is not None:
                to_store = replace(to_store, readout=readout)
            if readout is not None and policy is None:
                kept = [entry.action for entry in config.actions]
                fitted = readout_policy(readout, kept, plain_actions(config), config.model.name)
                config = save(replace(config, policy=write_policy_graph(folder, fitted, config, POLICY)))

        # compare with the source
        compared: parity_report.Parity | None = None
        dropped = left_out(levels.bits, precisions)
        if parity:
            # bits that serve lower channel densities alone have no graph to compare as it is
            whole = [each for each in config.variants.values() if each.channel_density == config.dense.channel_density]
            kept_bits = sorted({variant.bits for variant in whole}, reverse=True)
            with stages(_COMPARE) as report:
                compared = parity_report.measure(checkpoint, decoder, family, folder, kept_bits, report)
            if selection is None:
                config, dominated = action_set.without_dominated_bits(folder, config, compared)
                dropped += dominated

        # write the card and the config, with hashes
        if not any(variant.precision.screened_by_three_bits for variant in config.variants.values()):
            config = replace(config, tensors=without_screen(folder / WEIGHTS, config.tensors))
        write_kernel_graphs(folder, config)
        with stages(_HASH) as report:
            weights, state = hashed(folder / WEIGHTS, report)
        config = seal(folder, config, weights, compared, selection)
    remember_weights(state, weights.sha256)
    if to_store is not None and save_calibration is not None:
        to_store.write(save_calibration)
    notes = tuple(note for note in (checkpoint.note, _hosts(config)) if note)
    return ExportReport(output, config, time.monotonic() - began, note, compared, selection, dropped, notes)


def _described(
    checkpoint: Checkpoint, max_context: int | None, kv: str, say: Callable[[str], None]
) -> tuple[Family, Decoder]:
    """A source's family and decoder; says where the bundle's context is chosen by the machine or ends early."""
    if max_context is None:
        max_context = memory.short_limit(checkpoint.config, kv, memory.available_memory())
        if max_context is not None:
            say(
                f"memory: too little for texts of more than {max_context} tokens, so the bundle has the rope factors "
                "of shorter ones; a larger -c takes the long ones"
            )
        elif limit := scaled_from(checkpoint.config):
            say(
                f"context: {limit} tokens, less than the model's own; positions from there on scale q "
                "(llama_4_scaling_beta), which is not supported"
            )
    return family_of(checkpoint.config), from_hf_config(checkpoint.config, max_context)


def _check_arguments(
    source: str,
    levels: Levels,
    kv: str,
    calibration: str | Path | None,
    save_calibration: Path | None,
    max_actions: int | None,
) -> None:
    if kv not in KV_DTYPES:
        raise UsageError(f"kv: got {kv}, expected {' or '.join(KV_DTYPES)}")
    for what, given in (("model", source), ("calibration", calibration)):
        try:
            str(given).encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError(
                f"{what} {brief(given)}: got a name that is not UTF-8, expected one that is; rename it"
            ) from None
    if max_actions is not None and (max_actions < 1 or calibration == NO_TEXT):
        raise UsageError(
            f"max actions: got {max_actions}, expected 1 or more, and a calibration text: without one nothing says "
            "which actions to drop"
        )
    if calibration not in (None, QUICK, FULL, NO_TEXT) and not Path(str(calibration)).is_file():
        raise UsageError(
            f"calibration {calibration}: no such file, expected {QUICK}, {FULL}, {NO_TEXT}, a text file or a stored "
            "calibration"
        )
    if is_device_table(Path(str(calibration))):
        raise UsageError(
            f"calibration {calibration}: a table of this device's speed, which sol-rt profile wrote, expected "
            f"{QUICK}, {FULL}, {NO_TEXT}, a text file or a stored calibration; --save-calibration writes one of those"
        )
    if save_calibration is not None and (calibration == NO_TEXT or is_stored(Path(str(calibration)))):
        raise UsageError(
            f"save calibration: got --calibration {calibration}, with which nothing is measured, expected {QUICK}, "
            f"{FULL} or a text file"
        )
    if save_calibration is not None:
        if save_calibration.is_dir():
            raise UsageError(f"save calibration {save_calibration}: a folder, expected a file's name")
        if not save_calibration.parent.is_dir():
            raise UsageError(f"save calibration {save_calibration}: no such folder {save_calibration.parent}")
        check_writable(save_calibration, "choose another --save-calibration")
    if calibration != NO_TEXT:
        active_channels.check_targets(levels.channel_density)


def _stages(calibration: str | Path | None, source: str, parity: bool, fits_policy: bool) -> dict[str, float]:
    """The stages of an export, each with its share of the time; those that are not expected have next to none."""
    recipe = aliases().get(source) if calibration is None else None
    if calibration == NO_TEXT:
        unlikely = {_WRITE, _FIT, _HEAD, _SEARCH, _MEASURE, _PROMPTS, _POLICY}
    elif is_stored(Path(str(calibration))) or (recipe is not None and recipe.calibration is not None):
        unlikely = {_ROUND, _WRITE, _HEAD, _SEARCH, _MEASURE, _PROMPTS, _POLICY}
    else:
        unlikely = set() if calibration in (None, QUICK, FULL) else {_ROUND, _WRITE}
    if not parity:
        unlikely.add(_COMPARE)
    if not fits_policy:
        unlikely.add(_POLICY)
    return {stage: _LEAST_SHARE if stage in unlikely else share for stage, share in _SHARES.items()}


def _stored_calibration(
    calibration: str | Path | None, source: str, settings: Callable[[], Settings], config: SolConfig, short: str
) -> tuple[StoredCalibration | None, str]:
    """The stored calibration to use, if any, and a line that says what the bundle is calibrated on.

    `short` is what a quick calibration takes. Raises UsageError if `calibration` names a stored one that does not fit.
    """
    required = () if config.policy is None else config.policy.actions
    if calibration is None:
        recipe = aliases().get(source)
        path = None if recipe is None else recipe.calibration_path()
        if path is None:
            return None, f"{short}; --calibration {FULL} lets the model write a long one"
        stored = StoredCalibration.read(path)
        reason = stored.difference(settings(), required)
        if reason:
            return None, f"{short}: {source} has a stored calibration, but {reason}"
        return stored, f"stored with {source}, measured on {stored.origin}; --calibration {FULL} measures again"
    if calibration == NO_TEXT:
        return None, ""
    if calibration in (QUICK, FULL):
        return None, short if calibration == QUICK else "a long text of the model's own"
    path = Path(str(calibration))
    if not is_stored(path):
        return None, path.name
    stored = StoredCalibration.read(path)
    reason = stored.difference(settings(), required)
    if reason:
        raise UsageError(f"calibration {path}: {reason}; leave --calibration out to measure")
    return stored, f"{path.name}, measured on {stored.origin}"


def _hosts(config: SolConfig) -> str:
    """Names the hosts that do not run the bundle, in one line; empty if every host does."""
    if not config.kv.convolving:
        return ""
    return "layers with a state: the bundle runs on the CPU, not on GPUs or in browsers"


def _write_small_files(folder: Path, checkpoint: Checkpoint, decoder: Decoder) -> None:
    """Writes the tokenizer's files, the chat template's segments, and the model's config.json."""
    checkpoint.write_tokenizer(folder)
    tokenizer_files.drop_tokens_beyond(folder, decoder.vocab_size)
    tokenizer_files.check_files(folder, decoder.vocab_size)
    write_chat_segments(folder)
    tokenizer_files.write_json(folder / "config.json", checkpoint.config)
