"""One-line errors of models that can't be exported: a setting and where it was read, or an unknown architecture."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from sol_rt.errors import CheckpointError, brief

_NEAREST = (
    ("gemma", (("gemma3_text", "Gemma 3"), ("gemma2", "Gemma 2"))),
    ("granitemoehybrid", (("granitemoehybrid", "Granite 4.0 Micro"), ("granite", "Granite 3"))),
    ("granite", (("granite", "Granite 3"),)),
    ("llama", (("llama", "Llama 3.2"),)),
    ("qwen2", (("qwen2", "Qwen2.5"),)),
    ("qwen", (("qwen3", "Qwen3"), ("qwen2", "Qwen2.5"))),
    ("mi", (("mistral", "Mistral"),)),  # mistral3, mixtral, minicpm3
    ("olmo", (("olmo2", "OLMo 2"),)),
    ("ernie", (("ernie4_5", "ERNIE 4.5 0.3B"),)),
    ("hunyuan", (("hunyuan_v1_dense", "Hunyuan dense"),)),
    ("lfm", (("lfm2", "LFM2"),)),
    ("phi", (("phi3", "Phi-4-mini"),)),
    ("deepseek", (("qwen2", "DeepSeek-R1-Distill-Qwen"),)),
    ("gpt_neo", (("gpt_neox", "Pythia"),)),
    ("", (("qwen3", "Qwen3"), ("llama", "Llama 3.2"))),
)
"""Start of a `model_type` -> families that may take its place, and a name of each that people know, the best first."""

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_STATE_SPACE = ("mamba", "bamba", "jamba", "zamba", "falcon_h1", "nemotron_h")
_LINEAR = ("linear_attention", "linear_num_value_heads")
_LINEAR_KINDS, _GGUF_LINEAR = ("rwkv",), ("qwen", "kimi")
_BY_LAYER = {"mamba": "state-space layers (Mamba)", "linear_attention": "linear attention"}
"""Kind of a layer in config.json -> the trait of a model that has such layers."""
_GGUF_TRAITS = {
    "expert_count": ("a mixture of experts", ""),
    "attention.kv_lora_rank": ("multi-head latent attention (MLA)", ""),
    "ssm.state_size": ("state-space layers (Mamba)", ".ssm_"),  # dense models of Granite 4 have the key as well
}
"""GGUF key -> what it means, and what the names of tensors hold that have the trait."""
_NO_MODEL = "its config names no model"


class SourceSettings(dict[str, Any]):
    """A model's settings under the names of config.json, which know where they were read.

    Attributes:
        where: the place for errors, such as `config.json` or `model.gguf: metadata`.
    """

    def __init__(self, settings: Mapping[str, Any], where: str) -> None:
        super().__init__(settings)
        self.where = where


def where_of(config: Mapping[str, Any]) -> str:
    """Name of the place where settings were read."""
    return config.where if isinstance(config, SourceSettings) else "config.json"


def wrong(config: Mapping[str, Any], said: str) -> CheckpointError:
    """The error of a setting, which names where it was read."""
    return CheckpointError(f"{where_of(config)}: {said}")


def refusal(config: Mapping[str, Any], families: Collection[str]) -> str:
    """The line of an error.

    Args:
        config: the content of a Hugging Face config.json whose architecture is unknown.
        families: keys of the families that can be exported.
    """
    listed = config.get("architectures")
    named = listed[0] if isinstance(listed, list) and listed else config.get("model_type")
    if not named:
        return f"architecture: {_NO_MODEL}, expected architectures or model_type in config.json"
    what = trait(config)
    reason = f"not supported: {what}" if what else "not supported"
    return f"architecture: got {brief(named)}, {reason}; nearest that works: {nearest(config, families)}"


def gguf_refusal(metadata: Mapping[str, Any], tensors: Collection[str], families: Collection[str]) -> str:
    """The line of an error if a GGUF file's metadata name a trait that can't be exported, else empty.

    Args:
        metadata: GGUF key -> value. Files of a known architecture may have such a trait as well.
        tensors: names of the file's tensors.
        families: keys of the families that can be exported.
    """
    architecture = str(metadata.get("general.architecture"))
    for key, (what, part) in _GGUF_TRAITS.items():
        if metadata.get(f"{architecture}.{key}") and any(part in tensor for tensor in tensors):
            if key == "ssm.state_size" and architecture.startswith(_GGUF_LINEAR):  # llama.cpp has one set of keys
                what = _BY_LAYER["linear_attention"]
            near = nearest({"model_type": architecture.replace("-", "_")}, families)
            return f"GGUF architecture {architecture}: not supported: {what}; nearest that works: {near}"
    parts = metadata.get("split.count")
    if isinstance(parts, int) and parts > 1:
        return f"got one part of {parts}, expected a whole GGUF file; join them with llama-gguf-split --merge"
    return ""


def gguf_unknown(metadata: Mapping[str, Any], families: Collection[str]) -> str:
    """The line of an error of a GGUF file whose architecture is no family's.

    Args:
        metadata: GGUF key -> value.
        families: keys of the families that can be exported.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        return f"GGUF key general.architecture: got {brief(architecture)}, expected the name of an architecture"
    config: dict[str, Any] = {"model_type": architecture.replace("-", "_"), "architectures": [architecture]}
    if metadata.get(f"{architecture}.attention.causal") is False:
        config["use_bidirectional_attention"] = True
    return f"GGUF {refusal(config, families)}"


def trait(config: Mapping[str, Any]) -> str:
    """Names a trait that keeps a model from being exported, as far as its config shows it; empty if there is none.

    The text part of a model that also sees or hears comes first: it may be what is in the way.
    """
    text = config.get("text_config")
    return (_trait(text) if isinstance(text, Mapping) else "") or _trait(config)


def layer_trait(kinds: Any) -> str:
    """The trait that a list of the layers' kinds shows; empty if it shows none, or is no list."""
    listed = kinds if isinstance(kinds, list) else []
    return next((what for kind, what in _BY_LAYER.items() if kind in listed), "")


def has_experts(value: Any) -> bool:
    """True if a config's number of experts, or any entry of the layers' list, is more than one."""
    return any(isinstance(number, int) and number > 1 for number in (value if isinstance(value, list) else [value]))


def _trait(config: Mapping[str, Any]) -> str:
    kind = str(config.get("model_type") or "").lower()
    if kind == "gpt_oss":
        return "a mixture of experts with attention sinks"
    if any(has_experts(config.get(key)) for key in _EXPERTS) or config.get("num_experts_per_tok"):
        return "a mixture of experts"
    if config.get("kv_lora_rank") is not None:
        return "multi-head latent attention (MLA)"
    by_layer = layer_trait(config.get("layer_types")) or layer_trait(config.get("layers_block_type"))
    if kind.startswith(_STATE_SPACE) or "mamba_d_state" in config:
        return _BY_LAYER["mamba"]
    if kind.startswith(_LINEAR_KINDS) or any(key in config for key in _LINEAR):
        return _BY_LAYER["linear_attention"]
    if by_layer:
        return by_layer
    if "vision_config" in config or "audio_config" in config:
        return f"a {'vision' if 'vision_config' in config else 'speech'} tower whose text part does not stand alone"
    if config.get("is_encoder_decoder"):
        return "an encoder beside the decoder"
    if config.get("use_bidirectional_attention") is True:
        return "it attends to later tokens, so it embeds texts and can't generate them"
    if kind == "bitnet":
        return "norms inside attention and MLP (BitNet)"
    if config.get("auto_map"):
        return "it needs code that comes with the checkpoint (auto_map), and none of that runs"
    return ""


def nearest(config: Mapping[str, Any], families: Collection[str]) -> str:
    """The name of a model that works and is near to one that does not."""
    kind = str(config.get("model_type") or "").lower()
    rows = (row for start, row in _NEAREST if kind.startswith(start))
    return next(name for row in rows for family, name in row if family in families)
