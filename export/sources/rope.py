"""Rotary embedding: from a checkpoint's settings to the bundle's tables of cos and sin.

For channel pair i of a head at position p, with base `rope_theta` and r = rotary_dim:

    angle = p * f[i],   f[i] = theta^(-2 i / r),   i = 0 … r / 2 - 1

The scalings `linear`, `llama3`, `yarn` (Peng et al. 2023, arXiv 2309.00071) and `longrope` (Ding et al. 2024, arXiv
2402.13753) change f and may scale cos and sin by an attention factor. `ntk_alpha` is a larger base, theta * alpha^(r /
(r - 2)). `proportional` leaves the last pairs of a head at f = 0 and divides f of the others by a factor. All are
evaluated as transformers does. A layer without a rotary embedding has f = 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sol_rt.errors import CheckpointError, brief, one_line

_LARGEST = 1e30
"""Radians of an angle; times any position it is still a float32."""

KNOWN_SCALINGS = ("default", "linear", "llama3", "yarn", "longrope", "ntk_alpha", "proportional")
NO_ROTATION = 0.0
"""The frequency of a channel pair that is not rotated: cos 1, sin 0 at every position."""


@dataclass(frozen=True)
class Rope:
    """The angles by which one position step rotates a head.

    Attributes:
        inverse_frequencies: f, rotary_dim / 2 angles in radians, one for each rotated pair of channels.
        attention_factor: factor on cos and sin.
    """

    inverse_frequencies: tuple[float, ...]
    attention_factor: float


def make_rope(parameters: Mapping[str, Any], rotary_dim: int, max_context: int, trained_context: int) -> Rope:
    """Evaluates a checkpoint's rotary settings.

    Args:
        parameters: `rope_parameters` of a Hugging Face config: `rope_type`, `rope_theta` and what the type needs.
        rotary_dim: number of rotated channels of a head.
        max_context: longest context of the bundle in tokens. It decides between longrope's short and long factors.
        trained_context: the checkpoint's `max_position_embeddings`.

    Raises:
        CheckpointError: the scaling is unknown, or a setting that it needs is missing or wrong.
    """
    kind = parameters.get("rope_type", "default")
    if not isinstance(kind, str) or kind not in KNOWN_SCALINGS:
        raise CheckpointError(f"rope scaling: got {brief(kind)}, expected one of {', '.join(KNOWN_SCALINGS)}")
    try:
        with np.errstate(all="ignore"):
            rope = _make(kind, parameters, rotary_dim, max_context, trained_context)
    except KeyError as error:
        raise CheckpointError(
            f"rope scaling {kind}: setting {error} is missing; complete the checkpoint's config"
        ) from error
    except (TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"rope scaling {kind}: a setting is no number that fits ({one_line(error)})") from error
    if not np.less([*map(abs, rope.inverse_frequencies), abs(rope.attention_factor)], _LARGEST).all():
        raise CheckpointError(f"rope scaling {kind}: the settings give angles that are not finite")
    return rope


def _make(kind: str, parameters: Mapping[str, Any], rotary_dim: int, max_context: int, trained_context: int) -> Rope:
    base = float(parameters["rope_theta"])
    if not (math.isfinite(base) and base > 0):
        raise ValueError(f"rope_theta {base}")
    if kind == "ntk_alpha":
        alpha = float(parameters["alpha"])
        if alpha <= 0 or rotary_dim == 2:
            raise ValueError(f"alpha {alpha} for {rotary_dim} rotated channels")
        base *= alpha ** (rotary_dim / (rotary_dim - 2))
    plain = 1.0 / base ** (np.arange(0, rotary_dim, 2, dtype=np.float64) / rotary_dim)
    factor = 1.0
    if kind == "linear":
        plain = plain / float(parameters["factor"])
    elif kind == "proportional":
        plain = _proportional(plain, parameters)
    elif kind == "llama3":
        plain = _llama3(plain, parameters)
    elif kind == "yarn":
        plain, factor = _yarn(plain, base, rotary_dim, parameters, trained_context)
    elif kind == "longrope":
        plain, factor = _longrope(plain, parameters, max_context, trained_context)
    return Rope(tuple(float(value) for value in plain), float(factor))


def _proportional(plain: npt.NDArray[np.float64], parameters: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    rotated = int(float(parameters.get("partial_rotary_factor", 1.0)) * 2 * len(plain) // 2)
    scaled = plain / float(parameters.get("factor", 1.0))
    return np.where(np.arange(len(plain)) < rotated, scaled, NO_ROTATION)


def _llama3(plain: npt.NDArray[np.float64], parameters: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    factor, low, high = (float(parameters[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(parameters["original_max_position_embeddings"]) * plain / (2 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1 - smooth) * plain / factor + smooth * plain


def _yarn(
    plain: npt.NDArray[np.float64], base: float, rotary_dim: int, parameters: Mapping[str, Any], trained_context: int
) -> tuple[npt.NDArray[np.float64], float]:
    original = float(parameters["original_max_position_embeddings"])
    factor = float(parameters.get("factor") or trained_context / original)

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    attention = parameters.get("attention_factor")
    if attention is None:
        weight, weight_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
        attention = magnitude(weight) / magnitude(weight_all) if weight and weight_all else magnitude(1.0)

    def dimension(rotations: float) -> float:
        return rotary_dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(parameters.get("beta_fast") or 32), dimension(parameters.get("beta_slow") or 1)
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_dim - 1)
    ramp = np.clip((np.arange(rotary_dim // 2) - low) / (high - low if high != low else 0.001), 0.0, 1.0)
    return plain / factor * ramp + plain * (1 - ramp), float(attention)


def _longrope(
    plain: npt.NDArray[np.float64], parameters: Mapping[str, Any], max_context: int, trained_context: int
) -> tuple[npt.NDArray[np.float64], float]:
    original = int(parameters["original_max_position_embeddings"])
    # one table serves texts of every length, so the bundle's longest context decides
    key = "long_factor" if max_context > original else "short_factor"
    factors = np.asarray(parameters[key], np.float64)
    if factors.shape != plain.shape:
        raise CheckpointError(f"rope scaling longrope: {key} has {factors.size} entries, expected {plain.size}")
    factor = float(parameters.get("factor") or trained_context / original)
    attention = parameters.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return plain / factors, float(attention)


def table_names(index: int) -> tuple[str, str]:
    """The names of the tables of cos and sin of a model's rotary embedding of this index, as tensors of the bundle."""
    return ("rope.cos", "rope.sin") if index == 0 else (f"rope.{index}.cos", f"rope.{index}.sin")


def tables(rope: Rope, first: int, count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """cos and sin, times the attention factor, of `count` positions from `first` on.

    Two arrays float32 [count, rotary_dim / 2].
    """
    # angles in float32, as in transformers: at position 8000 another rounding would show
    inverse = np.asarray(rope.inverse_frequencies, np.float32)
    angles = np.arange(first, first + count, dtype=np.float32)[:, None] * inverse[None, :]
    return (np.cos(angles) * np.float32(rope.attention_factor), np.sin(angles) * np.float32(rope.attention_factor))
