"""The tiny model of the golden traces: a tokenizer, a decoder that is trained on made-up stories, and its bundle.

A decoder of random weights would not do: its likeliest tokens lie so close together that hosts which round in other
ways would choose apart. The bundle has what hosts must handle: four precisions, two channel densities, two KV
densities, a layer that reads all tokens, losses by context, a policy, a chat template and generation settings.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from golden.stories import stories
from helpers.random_decoder import WEIGHTS, RandomDecoder
from helpers.reference import Nested
from helpers.tiny_bundle import seal
from sol_rt.bundle.actions import Action
from sol_rt.bundle.bits import MIXED
from sol_rt.bundle.config import ActionEntry, KvLayout, PolicySpec, SolConfig
from sol_rt.bundle.policy_inputs import KNOWN_SCALARS
from sol_rt.export.graphs.policy_graph import PolicyShape, build_policy, random_policy_parameters
from sol_rt.export.quantize.nested import quantize_matrix
from sol_rt.export.sources.chat_segments import write_chat_segments
from sol_rt.export.sources.decoder import Decoder, from_hf_config

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END = 2
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 384,
    "max_position_embeddings": 768,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": END,
}
GENERATION = {"bos_token_id": 0, "eos_token_id": [0, END], "do_sample": False, "temperature": 0.8, "top_k": 40}
KV = KvLayout("float16", capacity_step=64, dense_layers=(0,))
VARIANTS = ((1.0, 8), (1.0, 6), (1.0, MIXED), (1.0, 4), (0.6, 8), (0.6, 6), (0.6, 4))
KV_DENSITIES = (1.0, 0.3)
_STEPS, _TOKENS = 700, 400_000  # of training
_BATCH, _WINDOW = 8, 384


def write_tiny(folder: Path, steps: int = _STEPS) -> Path:
    """Writes the bundle into `folder`, which must not exist, and returns it. Training takes a few minutes."""
    folder.mkdir(parents=True)
    tokenizer = _write_text_files(folder)
    decoder = from_hf_config(CONFIG)
    weights = _weights(decoder, _trained(tokenizer, steps))
    weights.write_blob(folder)
    variants = {}
    for channel_density, bits in VARIANTS:
        variant = weights.variant(channel_density, bits)
        weights.write_graph(folder, channel_density, bits)
        variants[variant.key] = variant
    actions = tuple(Action(kv, channels, bits) for kv in KV_DENSITIES for channels, bits in VARIANTS)
    dims = decoder.dims(
        name="golden-tiny",
        architecture="LlamaForCausalLM",
        source="runtime_tests/golden/tiny_model.py",
        license="apache-2.0",
        bos_token_id=0,
        eos_token_ids=(0, END),
    )
    config = SolConfig(
        generator="sol_rt golden traces",
        model=dims,
        kv=weights.kv,
        dense=Action(1.0, 1.0, 8),
        variants=variants,
        actions=tuple(_entry(action) for action in actions),
        policy=_write_policy(folder, weights, actions),
        weights_file=WEIGHTS,
        tensors=weights.tensors,
        files={},
    )
    seal(folder, config)
    return folder


def _write_text_files(folder: Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=list(SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    source = stories(0)
    tokenizer.train_from_iterator([next(source) for _ in range(200)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    settings = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[END], "clean_up_tokenization_spaces": False}
    for name, content in (
        ("tokenizer_config.json", settings),
        ("config.json", CONFIG),
        ("generation_config.json", GENERATION),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_chat_segments(folder)
    return tokenizer


def _trained(tokenizer: tokenizers.Tokenizer, steps: int) -> dict[str, np.ndarray]:
    """The weights of a decoder that was trained on stories, float32, by their names in the checkpoint."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{key: CONFIG[key] for key in CONFIG if key != "architectures"}))
    source = stories(1)
    tokens: list[int] = []
    while len(tokens) < _TOKENS:
        tokens += [*tokenizer.encode(next(source)).ids, END]
    text = torch.tensor(tokens)
    chooser = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-3, total_steps=steps)
    for step in range(steps):
        starts = torch.randint(len(text) - _WINDOW, (_BATCH,), generator=chooser).tolist()
        batch = torch.stack([text[start : start + _WINDOW] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"training: step {step}, loss {loss.item():.3f}", flush=True)
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def _weights(decoder: Decoder, trained: dict[str, np.ndarray]) -> RandomDecoder:
    """The trained weights as nested matrices, under the names of the weights file."""
    made = RandomDecoder(decoder, kv=KV)

    def matrix(name: str, *parts: str) -> None:
        joined = np.concatenate([trained[f"model.{part}.weight"] for part in parts])
        found = quantize_matrix(np.ascontiguousarray(joined), 2, name)
        assert found.b is not None
        assert found.c is not None
        made.matrices[name] = Nested(found.q.T, found.b.T, found.c.T, found.scale, found.zero)

    def vector(name: str, part: str) -> None:
        made.vectors[f"{name}.weight"] = trained[f"model.{part}.weight"]

    matrix("embed", "embed_tokens")
    for layer in range(decoder.num_layers):
        at, source = f"layers.{layer}", f"layers.{layer}"
        matrix(f"{at}.qkv", *(f"{source}.self_attn.{name}_proj" for name in "qkv"))
        matrix(f"{at}.o", f"{source}.self_attn.o_proj")
        matrix(f"{at}.up", f"{source}.mlp.gate_proj", f"{source}.mlp.up_proj")
        matrix(f"{at}.down", f"{source}.mlp.down_proj")
        vector(f"{at}.attn_norm", f"{source}.input_layernorm")
        vector(f"{at}.mlp_norm", f"{source}.post_attention_layernorm")
    vector("final_norm", "norm")
    angles = np.arange(decoder.max_context)[:, None] * np.array(decoder.ropes[0].inverse_frequencies)
    made.vectors["rope.cos"], made.vectors["rope.sin"] = (
        part.astype(np.float32) for part in (np.cos(angles), np.sin(angles))
    )
    return made


def _entry(action: Action) -> ActionEntry:
    """Made-up losses: they grow where bits and densities fall, and with the context."""
    if action == Action(1.0, 1.0, 8):
        return ActionEntry(action, None)
    short = 0.0015 * (8 - action.bits) + 0.2 * (1 - action.channel_density) + 0.01 * (1 - action.kv_density)
    long = short + 0.03 * (1 - action.kv_density)
    return ActionEntry(action, long, {32: short, 512: long})


def _write_policy(folder: Path, weights: RandomDecoder, actions: tuple[Action, ...]) -> PolicySpec:
    """An untrained policy over the actions in another order. It is small: its bytes count as cost."""
    ordered = actions[::2] + actions[1::2]
    sizes = {"width": 4, "heads": 2, "scalar_size": 4, "action_size": 2}
    shape = PolicyShape(weights.decoder.hidden_size, len(KNOWN_SCALARS), len(ordered), **sizes)
    model = build_policy(shape, random_policy_parameters(3, shape), weights.tensors, WEIGHTS)
    (folder / "policy.onnx").write_bytes(model.SerializeToString())
    return PolicySpec("policy.onnx", shape.horizon, KNOWN_SCALARS, ordered, shape.state_shape, "untrained")
