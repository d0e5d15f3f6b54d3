"""A complete bundle of random weights, written without the exporter: two layers, 90 words, a policy if wanted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import tokenizers

from helpers.random_decoder import WEIGHTS, RandomDecoder, describe
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import THREE, LayerBits, Screen
from sol_rt.bundle.config import (
    CONFIG_NAME,
    ActionEntry,
    FileEntry,
    KvLayout,
    PolicySpec,
    SolConfig,
)
from sol_rt.bundle.config_reader import read_config
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.export.gpu import ARCHIVE, forms_of, gpu_archive
from sol_rt.export.graphs.policy_graph import PolicyShape, build_policy, random_policy_parameters
from sol_rt.export.sources.decoder import Decoder

END = 2
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def write_bundle(
    folder: Path,
    family: str = "llama",
    *,
    decoder: Decoder | None = None,
    channel_densities: tuple[float, ...] = (1.0, 0.5),
    bits: tuple[int, ...] = (8, 6, 4),
    kv_densities: tuple[float, ...] = (1.0, 0.3),
    policy: bool = False,
    kv: str = "float16",
    dense_layers: tuple[int, ...] = (),
    lm_head_bits: Mapping[int, int] | None = None,
    three_bit_layers: tuple[LayerBits, ...] | None = None,
    screens: Mapping[int, Screen] | None = None,
    losses: bool = False,
    gpu: bool = False,
    seed: int = 0,
) -> Path:
    """Writes the bundle into `folder` and returns it. Its words are `w0` to `w85` and those of the chat template.

    Of a 3-bit graph, `three_bit_layers` are the bits of each layer's matrices, in turn; None: 3. With `losses`, every
    action has made-up losses, which rise where bits and densities fall. With `gpu`, it has the graphs for GPUs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    decoder = decoder or describe(family)
    layout = KvLayout(kv, capacity_step=64, dense_layers=dense_layers)
    weights = RandomDecoder.write(
        decoder,
        folder,
        seed,
        layout,
        lm_head_bits,
        three_bits=THREE in bits,
        three_bit_layers=three_bit_layers,
        screens=screens,
    )
    variants = {}
    for channel_density in channel_densities:
        for level in bits:
            variant = weights.variant(channel_density, level)
            weights.write_graph(folder, channel_density, level)
            variants[variant.key] = variant
    actions = tuple(
        Action(kv_density, channel_density, level)
        for kv_density in kv_densities
        for channel_density in channel_densities
        for level in bits
    )
    _write_text_files(folder)
    spec = _write_policy(folder, weights, actions, seed) if policy else None
    config = SolConfig(
        generator="tests",
        model=decoder.dims(
            name="tiny",
            architecture=family,
            source="random",
            license="none",
            bos_token_id=None,
            eos_token_ids=(END,),
        ),
        kv=weights.kv,
        dense=Action(1.0, 1.0, max(bits)),
        variants=variants,
        actions=tuple(_entry(action, max(bits), losses) for action in actions),
        policy=spec,
        weights_file=WEIGHTS,
        tensors=weights.tensors,
        files={},
    )
    if gpu:
        (folder / ARCHIVE).write_bytes(gpu_archive(config, lambda file: (folder / file).read_bytes(), forms_of(config)))
    seal(folder, config)
    return folder


def seal(folder: Path, config: SolConfig) -> None:
    """Writes `sol_config.json` with the sizes and hashes that the files have now."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name != CONFIG_NAME:
            content = path.read_bytes()
            files[path.name] = FileEntry(len(content), hashlib.sha256(content).hexdigest())
    document = replace(config, files=files).to_json_dict()
    (folder / CONFIG_NAME).write_text(json.dumps(document), encoding="utf-8")


def with_word(folder: Path, token: int, word: str) -> Path:
    """Gives the bundle in `folder` another text for a token from 0 to 85. Returns the folder."""
    config, file = read_config(folder / CONFIG_NAME), folder / "tokenizer.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    words = document["model"]["vocab"]
    words[word] = words.pop(f"w{token}")
    file.write_text(json.dumps(document), encoding="utf-8")
    seal(folder, config)
    return folder


def with_losing_prompts(folder: Path, **losses: float) -> Path:
    """Gives variants a loss in nats behind a prompt of 512 tokens; a key is `q4` for `s100-q4`. Returns the folder."""
    path = folder / CONFIG_NAME
    config = json.loads(path.read_text())
    for bits, loss in losses.items():
        config["variants"][f"s100-{bits}"]["prompt_losses"] = {"512": loss}
    path.write_text(json.dumps(config))
    return folder


def _entry(action: Action, dense_bits: int, losses: bool) -> ActionEntry:
    if not losses:
        return ActionEntry(action, None)
    short = 0.001 * (dense_bits - action.bits) + 0.3 * (1 - action.channel_density) + 0.02 * (1 - action.kv_density)
    return ActionEntry(action, 2 * short, {64: short, 256: 2 * short})


def _write_text_files(folder: Path) -> None:
    words = [f"w{index}" for index in range(86)] + ["user", "assistant", "system", "<unk>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    words_alone = {"unk_token": "<unk>", "fuse_unk": True, "ignore_merges": True}  # no merges: a word is a token
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [], **words_alone))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _write_policy(folder: Path, weights: RandomDecoder, actions: tuple[Action, ...], seed: int) -> PolicySpec:
    sizes = {"width": 8, "heads": 2, "scalar_size": 4, "action_size": 4}
    shape = PolicyShape(weights.decoder.hidden_size, len(KNOWN_SCALARS), len(actions), **sizes)
    model = build_policy(shape, random_policy_parameters(seed, shape), weights.tensors, WEIGHTS)
    (folder / "policy.onnx").write_bytes(model.SerializeToString())
    return PolicySpec("policy.onnx", shape.horizon, KNOWN_SCALARS, actions, shape.state_shape, "untrained")
