"""The candidate actions of an export: every combination of the levels asked for on the three axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sol_rt.bundle.actions import Action, density
from sol_rt.bundle.bits import MIXED, THREE, Precision, bits_name, bits_tag
from sol_rt.bundle.config import Variant
from sol_rt.errors import UsageError
from sol_rt.export.graphs.graph import LayerShapes, active_counts
from sol_rt.export.sources.decoder import Decoder

BITS = (8, 6, MIXED, 4, THREE)
CHANNEL_DENSITIES = (1.0, 0.75, 0.62, 0.5, 0.4)
KV_DENSITIES = (1.0, 0.5, 0.25, 0.1)


@dataclass(frozen=True)
class Levels:
    """The levels of the three axes, each in descending order.

    Attributes:
        bits: of 8, 6, MIXED, 4 and 3.
        channel_density, kv_density: shares, 1 among them.
    """

    bits: tuple[int, ...]
    channel_density: tuple[float, ...]
    kv_density: tuple[float, ...]

    @classmethod
    def checked(cls, bits: Sequence[int], channel_density: Sequence[float], kv_density: Sequence[float]) -> Levels:
        """Sorts the levels. Raises UsageError if one is unknown or repeated, or if a density of 1 is missing."""
        return cls(
            _checked_bits(bits),
            _checked_densities("channel_density", channel_density),
            _checked_densities("kv_density", kv_density),
        )

    def variants(self, decoder: Decoder, precisions: Sequence[Precision]) -> list[Variant]:
        """A variant for each precision and channel density. Its `weight_bytes` are still 0."""
        return [_variant(decoder, density, precision) for precision in precisions for density in self.channel_density]

    def actions(self, variants: Sequence[Variant]) -> list[Action]:
        """An action for each variant and KV density."""
        return [
            Action(kv_density, variant.channel_density, variant.bits)
            for variant in variants
            for kv_density in self.kv_density
        ]


def _checked_bits(levels: Sequence[int]) -> tuple[int, ...]:
    if not levels or len(set(levels)) != len(levels) or not set(levels) <= set(BITS):
        got, known = (", ".join(str(bits_name(bits)) for bits in each) for each in (levels, BITS))
        raise UsageError(f"bits: got {got}, expected different ones of {known}")
    return tuple(sorted(levels, reverse=True))


def _checked_densities(name: str, levels: Sequence[float]) -> tuple[float, ...]:
    shares = {density(name, level) for level in levels}
    if len(shares) != len(levels):
        raise UsageError(f"{name}: got {list(levels)}, expected different shares")
    if 1.0 not in shares:
        raise UsageError(f"{name}: got {list(levels)}, expected 1 among them: a bundle has its dense action")
    return tuple(sorted(shares, reverse=True))


def _variant(decoder: Decoder, channel_density: float, precision: Precision) -> Variant:
    """A variant with the same active channels in every layer."""
    active_up, active_down, active_qkv, active_o = (
        (count,) * decoder.num_layers for count in active_counts(channel_density, LayerShapes.of(decoder))
    )
    return Variant(
        key=Action(1.0, channel_density, precision.bits).variant,
        file=f"model.{bits_tag(precision.bits)}.onnx",
        channel_density=channel_density,
        bits=precision.bits,
        active_up=active_up,
        active_down=active_down,
        active_qkv=active_qkv,
        active_o=active_o,
        weight_bytes=0,
        lm_head_bits=precision.lm_head_bits,
        layer_bits=precision.layers,
    )
