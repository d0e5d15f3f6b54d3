"""Readers of a bundle's files, and of what commands write: each made around a bundle of random weights."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import tokenizers

from fuzz.targets import Reader
from helpers.tiny_bundle import write_bundle
from sol_rt import SolModel
from sol_rt.budget.cost.cost_table import CostTable, MeasuredCost
from sol_rt.budget.cost.model import CostModel, Line
from sol_rt.bundle.bundle import Bundle
from sol_rt.bundle.config import CONFIG_NAME, FileEntry
from sol_rt.bundle.config_reader import read_config
from sol_rt.cli.run.chat import _checked
from sol_rt.cli.run.saved_chat import SavedChat
from sol_rt.cli.run.saved_chat import read as read_chat
from sol_rt.errors import BundleError
from sol_rt.generate.generation_config import GenerationConfig
from sol_rt.generate.trace import read_trace
from sol_rt.text.chat_template import ChatTemplate
from sol_rt.text.tokenizer import Tokenizer

MESSAGES = [
    {"role": "system", "content": "w1 w2"},
    {"role": "user", "content": "w3 <unk>"},
    {"role": "assistant", "content": "w4"},
    {"role": "user", "content": "w5"},
]
_CONTEXT = 64
_IDENTITY = b"@IDENTITY@"
"""Stands in the corpus for the hash of the bundle that a trace belongs to."""


def tiny(folder: Path) -> Path:
    return write_bundle(folder / "tiny", policy=True, losses=True, channel_densities=(1.0,), bits=(8, 4))


def _open(path: Path) -> SolModel:
    return SolModel.from_pretrained(path, provider="cpu", measure_costs=False, max_context=_CONTEXT)


def _resealed(bundle: Path, name: str, run: Callable[[Path], None]) -> Callable[[bytes], None]:
    """Puts an input in the place of a file of the bundle, with its right hash in the config, and runs the bundle."""
    config = read_config(bundle / CONFIG_NAME)
    numbers = itertools.count()

    def read(data: bytes) -> None:
        entry = FileEntry(len(data), hashlib.sha256(data).hexdigest())
        changed = replace(config, files={**config.files, name: entry})
        _replace(bundle / name, data)  # a new file: the old one may still be mapped
        _replace(bundle / CONFIG_NAME, json.dumps(changed.to_json_dict()).encode())
        try:
            run(bundle)
        finally:
            if next(numbers) % 20 == 0:
                gc.collect()

    return read


def _replace(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.new")
    aside.write_bytes(data)
    os.replace(aside, path)


def _written(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return run


def config(folder: Path) -> Reader:
    """`sol_config.json`. What is taken is opened and generates two tokens."""
    bundle = tiny(folder)
    seed = (bundle / CONFIG_NAME).read_bytes()

    def run(path: Path) -> None:
        read_config(path)
        model = _open(bundle)
        model.generate("w1 w2", max_new_tokens=2, budget=0.7)
        model.generate("w1 w2", max_new_tokens=2, budget=0.7, schedule="sol")

    return Reader(_written(bundle / CONFIG_NAME, run), [seed])


def graph(folder: Path) -> Reader:
    """The graph of the dense variant."""
    bundle = tiny(folder)
    config = read_config(bundle / CONFIG_NAME)
    name = config.variants[config.dense.variant].file

    def run(path: Path) -> None:
        _open(path).generate([1, 2, 3], max_new_tokens=3, eos_token_id=[], schedule="dense")

    return Reader(_resealed(bundle, name, run), [(bundle / name).read_bytes()])


def policy_graph(folder: Path) -> Reader:
    """The policy's graph."""
    bundle = tiny(folder)

    def run(path: Path) -> None:
        _open(path).generate([1, 2, 3], max_new_tokens=3, eos_token_id=[], schedule="sol", budget=0.7)

    return Reader(_resealed(bundle, "policy.onnx", run), [(bundle / "policy.onnx").read_bytes()])


def weights(folder: Path) -> Reader:
    """The weights file, of the right size and of others."""
    bundle = tiny(folder)

    def run(path: Path) -> None:
        _open(path).generate([1, 2, 3], max_new_tokens=2, eos_token_id=[], budget=0.8)

    return Reader(_resealed(bundle, "weights.bin", run), [(bundle / "weights.bin").read_bytes()])


def tokenizer(folder: Path) -> Reader:
    """`tokenizer.json` of several kinds. What is taken encodes and decodes."""

    def run(path: Path) -> None:
        made = Tokenizer.from_folder(path.parent, 400)
        for special in (True, False):
            ids = made.encode("w0 w1 Hello, 世界 <s> \u00e9\n", parse_special=special)
            stream = made.stream(ids[:3], skip_special_tokens=special)
            for token in [*ids, 0, 1, 2, 399]:
                stream.add(token)
            stream.flush()
        user = made.marked_messages(MESSAGES)
        made.encode_rendered("<s>w3 " + json.dumps(user.marked), user)

    return Reader(_written(folder / "tokenizer.json", run), [_tokenizer(kind).encode() for kind in range(4)])


def _tokenizer(kind: int) -> str:
    from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

    vocabulary = {word: index for index, word in enumerate(["<unk>", "<s>", "</s>", "w0", "w1", "w", "0", "1", "H"])}
    if kind == 0:
        made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.decoder = decoders.Sequence([decoders.Replace("_", " "), decoders.Strip(" ", 1, 0)])
    elif kind == 1:
        made = tokenizers.Tokenizer(
            models.BPE(vocabulary, [("w", "0"), ("w", "1")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
        )
        made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("x", "w")])
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Metaspace()])
    elif kind == 2:
        alphabet = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        made = tokenizers.Tokenizer(models.BPE(alphabet, []))
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(tokenizers.Regex(r"\d{1,3}|\s+"), "isolated"), pre_tokenizers.ByteLevel(False)]
        )
        made.decoder = decoders.ByteLevel()
        made.post_processor = processors.ByteLevel(trim_offsets=True)
    else:
        made = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("▁w", -1.0), ("0", -2.0), ("1", -2.5)], 0, True))
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        made.decoder = decoders.Metaspace()
    made.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    if kind != 2:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="$A $B", special_tokens=[("<s>", made.token_to_id("<s>"))]
        )
    made.enable_truncation(8)
    return str(made.to_str())


def template(folder: Path) -> Reader:
    """A chat template. Every input is compiled and rendered twice."""

    def read(data: bytes) -> None:
        path = folder / "chat_template.jinja"
        path.write_bytes(data)
        made = ChatTemplate.from_folder(folder, ["chat_template.jinja"])
        for messages in (MESSAGES, MESSAGES[1:2]):
            made.render(messages, tools=[{"name": "f"}])

    seeds = [
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        "{{ bos_token }}{% set ns = namespace(n=0, s='') %}{% for m in messages if m.role != 'system' %}{% set ns.n = "
        "ns.n + 1 %}{% set ns.s = ns.s ~ m.content|trim %}{% endfor %}{{ ns.s }}{{ tools|tojson }}"
        "{{ '%5d'|format(1) }}",
        "{% macro say(x) %}[{{ x|upper }}]{% endmacro %}{{ messages|map(attribute='content')|join(', ') }}"
        "{{ say('a' * 3) }}{{ strftime_now('%Y') }}{% if false %}{{ raise_exception('no') }}{% endif %}",
    ]
    return Reader(read, [seed.encode() for seed in seeds])


def tokenizer_config(folder: Path) -> Reader:
    """`tokenizer_config.json` with a template in it."""
    seed = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>", "special": True},
        "chat_template": [{"name": "default", "template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"}],
    }

    def run(path: Path) -> None:
        ChatTemplate.from_folder(folder, [path.name]).render(MESSAGES)

    return Reader(_written(folder / "tokenizer_config.json", run), [json.dumps(seed).encode()])


def generation_config(folder: Path) -> Reader:
    """`generation_config.json`. What is taken generates two tokens."""
    model = _open(tiny(folder))
    seeds: list[dict[str, Any]] = [
        {"bos_token_id": 1, "eos_token_id": [2, 3], "max_new_tokens": 5, "do_sample": True, "temperature": 0.6,
         "top_k": 20, "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "transformers_version": "5.0"},
        {"do_sample": True, "presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"3": 5.0, "7": -100},
         "top_logprobs": 3, "stop_strings": ["w5", "w6 w7"], "seed": 3},
    ]  # fmt: skip

    def run(path: Path) -> None:
        made = GenerationConfig().with_file(path)
        made.check_vocabulary(model.bundle.config.model.vocab_size)
        model.generate([1, 2, 3, 2], **{**asdict(made), "max_new_tokens": 3})

    return Reader(_written(folder / "generation_config.json", run), [json.dumps(seed).encode() for seed in seeds])


def trace(folder: Path) -> Reader:
    """A trace, read and replayed."""
    model = _open(tiny(folder))
    path = folder / "t.jsonl"
    settings: list[dict[str, Any]] = [{}, {"do_sample": True, "seed": 1, "temperature": 0.7, "stop_strings": ["w3 w4"]}]
    seeds = []
    for setting in settings:
        model.generate("w1 w2 w3", budget=0.7, max_new_tokens=4, eos_token_id=[], trace=path, **setting)
        seeds.append(path.read_bytes())
    identity = model.bundle.identity.encode()

    def read(data: bytes) -> None:
        path.write_bytes(data.replace(_IDENTITY, identity))
        model.generate(replay=read_trace(path))

    return Reader(read, seeds)


def saved_chat(folder: Path) -> Reader:
    """A chat that `/save` wrote, with its settings, and the conversation as a prompt."""
    model = _open(tiny(folder))
    said = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    path = folder / "c.json"
    settings: list[dict[str, Any]] = [
        {"budget": 0.5, "temperature": 0.5, "schedule": "hull"},
        {"max_loss": 0.01, "max_new_tokens": 3, "stop_strings": ["w3"], "logit_bias": {"1": 3}},
        {"kv_density": 0.5, "bits": 5, "top_k": 4, "seed": 1},
    ]
    seeds = []
    for setting in settings:
        SavedChat("tiny", "w5", said, setting).write(str(path))
        seeds.append(path.read_bytes())

    def run(file: Path) -> None:
        chat = read_chat(str(file))
        given = _checked(chat.settings, model)
        messages = [*chat.messages, {"role": "user", "content": "w3"}]
        model.generate(messages, **{**given, "max_new_tokens": 2})

    return Reader(_written(path, run), seeds)


def device_table(folder: Path) -> Reader:
    """A table of milliseconds. What is taken counts the costs of a generation."""
    bundle = Bundle.open(tiny(folder))
    model = _open(bundle.path)
    table = CostTable(
        bundle=bundle.identity,
        device="a processor",
        created="2026-01-01T00:00:00",
        policy_ms=0.1,
        lines={
            key: {1.0: Line(2.0 * number, 0.01, 0.001), 0.3: Line(1.5 * number, 0.005, 0.001)}
            for number, key in enumerate(bundle.config.variants, 1)
        },
    )

    def read(data: bytes) -> None:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            raise BundleError("table", "", "no text", "UTF-8") from None
        CostModel(bundle.config, text.replace("\0", "0"), "")  # refuses what is no table
        model.cost = MeasuredCost(bundle.config, CostTable.from_json(text))
        for how in ({"budget": 0.7, "schedule": "uniform"}, {"budget": 0.8, "schedule": "sol"}, {}):
            model.generate([1, 2, 3], max_new_tokens=3, eos_token_id=[], **how)
        model.generate([1, 2, 3], max_new_tokens=3, eos_token_id=[], tokens_per_second=100)

    return Reader(read, [table.to_json().encode()])
