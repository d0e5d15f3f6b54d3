"""A stored calibration: what an export measured, in a file of some tens of kilobytes, for the next export.

It holds the windows that the weights are fitted to, the LM head's bits, the active channels, and the losses of the
candidate actions. With it an export fits the weights again and measures nothing. It is bound to the checkpoint by a
hash, and to all settings that the measurements depend on. The aliases' own are in sol_rt/models.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from sol_rt.atomic_write import write_text
from sol_rt.budget.cost.cost_table import COST_TABLE_FORMAT
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import THREE, bits_name, parse_bits_name
from sol_rt.bundle.bundle import sha256
from sol_rt.bundle.config import BLOCK, MATRIX_BITS, SolConfig
from sol_rt.bundle.config import FORMAT_VERSION as BUNDLE_FORMAT_VERSION
from sol_rt.bundle.selection import Measured
from sol_rt.errors import UsageError, WriteError
from sol_rt.export.actions.calibration_text import CalibrationText
from sol_rt.export.actions.lm_head_bits import Head, with_heads
from sol_rt.export.actions.measuring import Measurements
from sol_rt.export.actions.prompt_losses import PromptLosses
from sol_rt.export.actions.readout import Readout
from sol_rt.export.graphs.graph import weight_bytes
from sol_rt.export.sources.decoder import Decoder
from sol_rt.read_file import read_bytes, require_regular

FORMAT = "sol_rt.stored_calibration"
FORMAT_VERSION = 1
RULES = 2
"""Counts the exporter's rules, by which the same settings give other graphs or losses."""
_ONNX = ("*.onnx", "*.onnx_data", "*.onnx.data")
_WEIGHTS = ("*.safetensors", "*.bin", *_ONNX, *(f"onnx/{pattern}" for pattern in _ONNX), "config.json")
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, UsageError)
"""Exceptions that the read of a file can raise if another program wrote the file."""


@dataclass(frozen=True)
class Settings:
    """Settings that the measurements depend on.

    Attributes:
        checkpoint: `checkpoint_hash` of the source.
        bits: names of the bits of the graphs, the most first.
        channel_density, kv_density: the levels, in descending order.
        kv: type of cached keys and values.
        max_context: longest context in tokens.
        bundle_format: format version of the bundle.
        rules: RULES of the exporter.
    """

    checkpoint: str
    bits: tuple[int | str, ...]
    channel_density: tuple[float, ...]
    kv_density: tuple[float, ...]
    kv: str
    max_context: int
    bundle_format: int = BUNDLE_FORMAT_VERSION
    rules: int = RULES

    @classmethod
    def of(cls, checkpoint: Path, config: SolConfig) -> Settings:
        """The settings of an export whose config, with all candidates, is `config`. Reads the whole checkpoint."""
        variants, actions = config.variants.values(), [entry.action for entry in config.actions]
        return cls(
            checkpoint=checkpoint_hash(checkpoint),
            bits=tuple(bits_name(bits) for bits in sorted({variant.bits for variant in variants}, reverse=True)),
            channel_density=tuple(sorted({variant.channel_density for variant in variants}, reverse=True)),
            kv_density=tuple(sorted({action.kv_density for action in actions}, reverse=True)),
            kv=config.kv.dtype,
            max_context=config.model.max_context,
        )

    def difference(self, wanted: Settings) -> str:
        """The first setting that differs, in a few words; empty if none does."""
        for name in (each.name for each in fields(self)):
            own, other = getattr(self, name), getattr(wanted, name)
            if own != other:
                if name == "checkpoint":
                    return f"it is for another checkpoint: sha256 {own[:12]}…, got {other[:12]}…"
                return f"{name.replace('_', ' ')}: it has {_told(own)}, got {_told(other)}"
        return ""


@dataclass(frozen=True)
class StoredCalibration:
    """The content of the file.

    Attributes:
        settings: what it is bound to.
        origin: where the text comes from, in a few words.
        fitted: the windows that the weights are fitted to.
        most_channels: of a group of input channels that GPTQ fits together; None: all of a matrix.
        lm_heads: by the bits of each graph.
        active_channels: by variant key and by name, the active channels of every layer.
        measured: the measurements of the candidates.
        prompt_losses: of `measure_prompts`; empty in files of exports that measured none.
        readout: what a policy was fitted to them; None if none was, or if it was not ahead of chance.
    """

    settings: Settings
    origin: str
    fitted: tuple[tuple[int, ...], ...]
    most_channels: int | None
    lm_heads: dict[int, Head]
    active_channels: dict[str, dict[str, tuple[int, ...]]]
    measured: Measurements
    prompt_losses: PromptLosses = field(default_factory=dict)
    readout: Readout | None = None

    @property
    def screens_by_three_bits(self) -> bool:
        """True if a matrix of 3 bits screens the LM head of any graph."""
        return any(head.candidates and head.first_bits == THREE for head in self.lm_heads.values())

    @classmethod
    def of(
        cls,
        settings: Settings,
        text: CalibrationText,
        most_channels: int | None,
        config: SolConfig,
        measured: Measurements,
        prompt_losses: PromptLosses,
    ) -> StoredCalibration:
        """Makes a stored calibration of the measurements of an export with the candidates of `config`."""
        return cls(
            settings=settings,
            origin=text.origin,
            fitted=text.fitted,
            most_channels=most_channels,
            lm_heads={variant.bits: Head.of(variant) for variant in config.variants.values()},
            active_channels={
                key: {name: getattr(variant, name) for name in config.model.channels}
                for key, variant in config.variants.items()
                if variant.channel_density < 1
            },
            measured=measured,
            prompt_losses=prompt_losses,
        )

    def difference(self, settings: Settings, required: Iterable[Action]) -> str:
        """Explains why an export with these settings cannot use this calibration, in a few words; empty if it can.

        `required` are the actions that the policy picks.
        """
        lacking = [a.tag for a in required if any(a not in front for front in self.measured.fronts.values())]
        return self.settings.difference(settings) or (f"the policy picks {lacking[0]}, not measured" if lacking else "")

    def applied(self, folder: Path, config: SolConfig, decoder: Decoder) -> SolConfig:
        """The config of the bundle in `folder` with the stored LM head bits and active channels; graphs are written.

        Raises UsageError if the file's numbers are not those of such a bundle.
        """
        try:
            for context, front in self.measured.fronts.items():
                if config.dense not in front:
                    raise ValueError(f"{config.dense.tag}, the dense action, not measured at {context}")
            if any(head.candidates >= decoder.vocab_size for head in self.lm_heads.values()):
                raise ValueError(f"as many candidates as the {decoder.vocab_size} rows of the LM head")
            if self.screens_by_three_bits and decoder.vocab_size % BLOCK:
                raise ValueError(f"a screen of 3 bits of {decoder.vocab_size} rows, no multiple of {BLOCK}")
            config = with_heads(folder, config, decoder, self.lm_heads)
            variants = dict(config.variants)
            for key, counts in self.active_channels.items():
                for name, channels in config.model.channels.items():
                    if not all(1 <= count <= channels for count in counts[name]):
                        raise ValueError(f"{key}: {name} outside 1 to {channels}")
                variant = replace(
                    variants[key],
                    active_up=counts["active_up"],
                    active_down=counts["active_down"],
                    active_qkv=counts["active_qkv"],
                    active_o=counts["active_o"],
                )
                if any(len(of_layers) != config.model.num_layers for of_layers in counts.values()):
                    raise ValueError(f"{key}: counts of {config.model.num_layers} layers")
                variants[key] = replace(variant, weight_bytes=weight_bytes(decoder, config.tensors, variant))
        except (KeyError, ValueError) as error:
            raise UsageError(f"calibration: got a file that was edited ({error}); make it again") from None
        return replace(config, variants=variants)

    def write(self, path: Path) -> None:
        """Writes the file, with a line for each window and each candidate; an older one is there until it is whole."""
        measured = self.measured
        screens = {str(bits_name(bits)): head.screen._asdict() for bits, head in self.lm_heads.items() if head.screen}
        lines = {
            "format": json.dumps(FORMAT),
            "format_version": json.dumps(FORMAT_VERSION),
            "settings": json.dumps(asdict(self.settings)),
            "origin": json.dumps(self.origin, ensure_ascii=False),
            "most_channels": json.dumps(self.most_channels),
            "lm_head_bits": json.dumps({str(bits_name(bits)): head.bits for bits, head in self.lm_heads.items()}),
            **({"lm_head_screens": json.dumps(screens)} if screens else {}),
            "active_channels": _rows(self.active_channels.items()),
            "collapse_loss": json.dumps(measured.collapse_loss if math.isfinite(measured.collapse_loss) else None),
            "contexts": json.dumps(
                {at: {"tokens": measured.tokens[at], "dense_loss": loss} for at, loss in measured.dense_loss.items()}
            ),
            "losses": _rows(
                (str(at), {action.tag: [p.bytes, p.loss, p.stderr] for action, p in front.items()})
                for at, front in measured.fronts.items()
            ),
            **({"prompt_losses": json.dumps(self.prompt_losses)} if self.prompt_losses else {}),
            **({} if self.readout is None else {"readout": json.dumps(asdict(self.readout))}),
            "fitted": "[\n  " + ",\n  ".join(json.dumps(row, separators=(",", ":")) for row in self.fitted) + "\n ]",
        }
        text = ",\n ".join(f"{json.dumps(key)}: {value}" for key, value in lines.items())
        try:
            write_text(path, f"{{\n {text}\n}}\n")
        except WriteError as error:
            raise UsageError(f"--save-calibration {path}: {error.reason}; choose another place") from None

    @classmethod
    def read(cls, path: Path) -> StoredCalibration:
        """Reads a file. Raises UsageError if it is damaged or of another version."""
        try:
            return _read(json.loads(read_bytes(path).decode("utf-8")))
        except _DAMAGED as error:
            problem = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise UsageError(
                f"calibration {path}: got a file that is not readable ({problem}), expected {FORMAT} version "
                f"{FORMAT_VERSION}; make it again with --calibration full --save-calibration"
            ) from None


def is_stored(path: Path) -> bool:
    """True if a file is a stored calibration, readable or not, and no text to calibrate on."""
    return _begins_with_format(path, FORMAT)


def is_device_table(path: Path) -> bool:
    """True if a file is a table that `sol-rt profile` wrote: milliseconds, which no export uses."""
    return _begins_with_format(path, COST_TABLE_FORMAT)


def _begins_with_format(path: Path, format_name: str) -> bool:
    try:
        require_regular(path)
        with path.open(encoding="utf-8") as file:
            return f'"{format_name}"' in file.read(200)
    except (OSError, ValueError):
        return False


def checkpoint_hash(path: Path) -> str:
    """sha256 of a checkpoint: of the file, or of the names and hashes of a folder's config and weights."""
    if path.is_file():
        return sha256(path)
    files = sorted({file for pattern in _WEIGHTS for file in path.glob(pattern)})
    return hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in files).encode()).hexdigest()


def _read(raw: Any) -> StoredCalibration:
    if raw["format"] != FORMAT or raw["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format {raw['format']!r} version {raw['format_version']!r}")
    return StoredCalibration(
        settings=_settings(raw["settings"]),
        origin=str(raw["origin"]),
        fitted=tuple(tuple(map(int, window)) for window in raw["fitted"]),
        most_channels=None if raw["most_channels"] is None else int(raw["most_channels"]),
        lm_heads=_heads(raw["lm_head_bits"], raw.get("lm_head_screens", {})),
        active_channels={
            key: {name: tuple(map(int, counts)) for name, counts in named.items()}
            for key, named in raw["active_channels"].items()
        },
        measured=Measurements(
            fronts={
                int(at): {Action.parse(tag): _measured(point) for tag, point in front.items()}
                for at, front in raw["losses"].items()
            },
            tokens={int(at): int(setting["tokens"]) for at, setting in raw["contexts"].items()},
            dense_loss={int(at): _finite(setting["dense_loss"]) for at, setting in raw["contexts"].items()},
            collapse_loss=math.inf if raw["collapse_loss"] is None else _finite(raw["collapse_loss"]),
        ),
        prompt_losses={
            key: {_length(length): _finite(loss) for length, loss in losses.items()}
            for key, losses in raw.get("prompt_losses", {}).items()
        },
        readout=_readout(raw["readout"]) if "readout" in raw else None,
    )


def _readout(raw: Mapping[str, Any]) -> Readout:
    closed = tuple(Action.parse(tag).tag for tag in raw.get("closed", ()))
    return Readout(tuple(map(_finite, raw["weights"])), _finite(raw["avoided"]), closed)


def _settings(raw: Mapping[str, Any]) -> Settings:
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}
    made = Settings(**given)
    if len(given) != len(fields(Settings)) or not isinstance(made.checkpoint, str) or not isinstance(made.bits, tuple):
        raise ValueError("settings are not those of an export")
    return made


def _measured(point: Any) -> Measured:
    size, loss, stderr = map(_finite, point)
    if not size > 0:
        raise ValueError(f"{size} bytes for a step")
    return Measured(size, loss, stderr)


def _bits(name: str) -> int:
    found = parse_bits_name(name)
    if found is None:
        raise ValueError(f"bits {name}")
    return found


def _length(name: str) -> int:
    if not 0 < int(name) < 10**9:
        raise ValueError(f"a prompt of {name} tokens")
    return int(name)


def _plain_bits(value: Any) -> int:
    if value not in (4, 6, 8):
        raise ValueError(f"LM head bits {value!r:.40}")
    return int(value)


def _heads(all_bits: Mapping[str, Any], screens: Mapping[str, Any]) -> dict[int, Head]:
    if not set(screens) <= set(all_bits):
        raise ValueError("a screened LM head of no graph")
    heads = {}
    for name, value in all_bits.items():
        head = Head(_plain_bits(value))
        if name in screens:
            candidates, offset = screens[name]["candidates"], _finite(screens[name]["tail_offset"])
            first_bits = screens[name]["bits"]
            if type(candidates) is not int or candidates < 1 or head.bits == min(MATRIX_BITS):
                raise ValueError(f"{candidates!r:.40} candidates of an LM head of {head.bits} bits")
            if first_bits not in (THREE, min(MATRIX_BITS)):
                raise ValueError(f"an LM head screened by {first_bits!r:.40} bits")
            head = Head(head.bits, candidates, offset, first_bits)
        heads[_bits(name)] = head
    return heads


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number")
    return number


def _rows(items: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """A JSON object of objects, with a line for each entry of the inner ones."""
    rows = []
    for key, inner in items:
        entries = ",\n   ".join(
            f"{json.dumps(name)}: {json.dumps(value, separators=(',', ':'))}" for name, value in inner.items()
        )
        rows.append(f"{json.dumps(key)}: {{\n   {entries}\n  }}")
    return "{\n  " + ",\n  ".join(rows) + "\n }"


def _told(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
