"""Estimates the main memory that a process takes to run a bundle on the CPU with native operators.

docs/design/memory.md compares the estimates with measurements.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

from sol_rt.bundle.cache_layout import CacheLayout, most_kept, states_bytes
from sol_rt.bundle.config import SolConfig

CHUNK = 512  # tokens of a prompt that run at once
_LIBRARIES = 72_000_000  # Python, NumPy and ONNX Runtime
_TOKENIZER_ENTRY = 390  # bytes of a token's text, id and merges
_GRAPH, _GRAPH_LAYER = 1_000_000, 80_000  # bytes of a session, and of each layer in it
_CONTEXTS = (512, 4096, 16384, 65536)


@dataclass(frozen=True)
class Footprint:
    """Bytes of main memory, by what they are for.

    Attributes:
        weights: of weights.bin. It is mapped: processes share it, and the system drops what it needs room for.
        program: of Python, libraries, tokenizer and graphs.
        cache: of the KV cache, which grows with the text, up to what a window needs in layers that have one, and of
            layers' states, which do not.
        activations: of a chunk of the prompt.
    """

    weights: int
    program: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """All bytes."""
        return self.weights + self.program + self.cache + self.activations

    @property
    def private(self) -> int:
        """The bytes that can't be dropped: all but the mapped weights."""
        return self.total - self.weights

    def to_json_dict(self) -> dict[str, int]:
        """The bytes by name, `total` among them."""
        return {**asdict(self), "total": self.total}


def footprint(config: SolConfig, context: int) -> Footprint:
    """Memory of a process that has loaded all graphs of a bundle and holds a text of `context` tokens, bytes."""
    model = config.model
    cache = CacheLayout(model, config.kv)
    graphs = len({variant.file for variant in config.variants.values()})
    program = _LIBRARIES + _TOKENIZER_ENTRY * model.vocab_size + graphs * (_GRAPH + _GRAPH_LAYER * model.num_layers)
    attended = (2 * model.num_heads + 2 * model.num_kv_heads) * model.head_dim
    mixed = max(attended, 6 * model.hidden_size if config.kv.convolving else 0)  # a convolution's parts and their like
    numbers = 3 * model.hidden_size + mixed + 2 * model.intermediate_size
    return Footprint(
        weights=max(entry.offset + entry.bytes for entry in config.tensors.values()),
        program=program,
        cache=cache.most_held(cache.capacity_for(context)) + states_bytes(model, config.kv),
        activations=4 * (min(CHUNK, context) * numbers + model.vocab_size),
    )


@dataclass(frozen=True)
class WindowedLayers:
    """Layers with the same window.

    Attributes:
        window: tokens that they attend to.
        layers: their number.
        tokens: tokens that each of them keeps in the KV cache at most.
        cache: bytes that these take in all of the layers.
    """

    window: int
    layers: int
    tokens: int
    cache: int


def windowed_layers(config: SolConfig) -> list[WindowedLayers]:
    """Memory that the layers with a window keep of a long text, the narrowest window first; empty without windows."""
    kv, cache = config.kv, CacheLayout(config.model, config.kv)
    longest = cache.capacity_for(config.model.max_context)
    attending = kv.attending(config.model.num_layers)
    counts = Counter(kv.windows[layer] for layer in attending if kv.windows and kv.windows[layer])
    return [
        WindowedLayers(window, layers, min(most_kept(window), longest), cache.most_held(longest, window))
        for window, layers in sorted(counts.items())
    ]


def usual_contexts(longest: int) -> list[int]:
    """Contexts to show a footprint at: some powers of two, and the longest."""
    return [*(context for context in _CONTEXTS if context < longest), longest]


def fitting_context(config: SolConfig, available: int) -> int:
    """The longest context in tokens whose private memory is at most `available` bytes; 0 if none is."""
    low, high = 0, config.model.max_context
    while low < high:
        middle = (low + high + 1) // 2
        if footprint(config, middle).private <= available:
            low = middle
        else:
            high = middle - 1
    return low
