"""The readers that are fuzzed: what each reads, how its inputs are changed, and how many the test suite tries."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

CORPUS = Path(__file__).resolve().parents[1] / "corpus"


class Reader(NamedTuple):
    """A reader that is ready to be given inputs.

    Attributes:
        read: takes an input and raises SolError if it refuses it.
        seeds: inputs that it takes.
    """

    read: Callable[[bytes], None]
    seeds: Sequence[bytes]


@dataclass(frozen=True)
class Target:
    """A reader to be fuzzed.

    Attributes:
        name: of the target, and of its folder in the corpus.
        make: module and function that make the reader, given an empty folder for its files.
        kind: how `mutate.py` changes its inputs.
        words: pieces of text that its inputs are made of.
        inputs: how many the test suite tries.
        share: of the time of a long run.
        atheris: whether atheris takes it; its process ends without a word where a reader opens sessions of ONNX Runtime
            or starts processes.
    """

    name: str
    make: str
    kind: str
    words: tuple[bytes, ...] = ()
    inputs: int = 400
    share: float = 1.0
    atheris: bool = True

    def reader(self, folder: Path) -> Reader:
        """Makes the reader. `folder` has to exist."""
        module, _, function = self.make.partition(":")
        made: Reader = getattr(importlib.import_module(module), function)(folder)
        return made

    def corpus(self) -> dict[str, bytes]:
        """The inputs in the corpus, by file name."""
        folder = CORPUS / self.name
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.is_dir() else {}


_TEMPLATE_WORDS = tuple(
    word.encode()
    for word in (
        "{{ ", " }}", "{% ", " %}", "{# ", " #}", "{% for i in range(9) %}", "{% endfor %}", "{% if x %}",
        "{% endif %}",
        "{% set a = 'x' %}", "{% set ns = namespace(s='x') %}", "{% macro m() %}", "{% endmacro %}", "messages", "[0]",
        "['content']", ".role", "|tojson", "|length", "|join", "|replace('x', 'xxxxxxxxxxxxxxxx')", "|list", "|string",
        "|format(1)", "'%1000000000d'", "'x'*1000000", " ~ ", " * ", " ** ", " % ",
        "range(100000)", "raise_exception(1)",
        "strftime_now('%Y')", ".translate({120:'y'*1000000})", ".__class__", ".__mro__", "|attr('__class__')", "loop",
        "self", "cycler", "joiner", "{% generation %}", "{% endgeneration %}", "|sort", "|map('upper')", "|batch(3)",
        "|indent(999999999)", "|center(999999999)", ".ljust(999999999)", "|wordwrap", "|urlize", "|xmlattr",
        "{% break %}",
    )
)  # fmt: skip
_TOKENIZER_WORDS = tuple(
    word.encode()
    for word in (
        "BPE", "Unigram", "WordPiece", "WordLevel", "ByteLevel", "Metaspace", "Strip", "Replace", "Split", "Sequence",
        "Precompiled", "TemplateProcessing", "RobertaProcessing", "BertProcessing", "prepend_scheme", "first", "NFKC",
        "dropout", "byte_fallback", "Regex", "(", "(a+)+$", "<unk>",
    )
)  # fmt: skip
_COMMAND_WORDS = tuple(
    word.encode()
    for word in (
        "\n", "\n-p\n", "\n-n\n", "\n--temperature\n", "\n--top-k\n", "\n--logit-bias\n", "\n--stop\n", "=",
        "\n--seed\n", "\n--budget\n", "\n--max-loss\n", "\n--tokens-per-second\n", "\n--schedule\n",
        "\nfixed:k100-s100-q4\n", "\n--bits\n", "\n--special\n", "\n--chat\n", "\n--ctx-size\n",
        "\n--no-native-ops\n", "\n--no-verify\n",
        "nan", "inf", "-1", "1e-320", "1e308", "<|im_end|>", "\x1b[31m", "\u2028",
    )
)  # fmt: skip
_GGUF_WORDS = (b"llama", b"tokenizer.ggml.tokens", b"general.alignment", b"token_embd.weight", b"gpt2", b"rope_freqs")

TARGETS = {
    target.name: target
    for target in (
        Target("config", "fuzz.bundle_targets:config", "json", inputs=300),
        Target("graph", "fuzz.bundle_targets:graph", "onnx", inputs=100, share=2, atheris=False),
        Target("policy_graph", "fuzz.bundle_targets:policy_graph", "onnx", inputs=80, atheris=False),
        Target("weights", "fuzz.bundle_targets:weights", "bytes", inputs=50, atheris=False),
        Target("tokenizer", "fuzz.bundle_targets:tokenizer", "json", _TOKENIZER_WORDS, inputs=500),
        Target("tokenizer_config", "fuzz.bundle_targets:tokenizer_config", "json", inputs=15, atheris=False),
        Target("template", "fuzz.bundle_targets:template", "text", _TEMPLATE_WORDS, inputs=15, share=2, atheris=False),
        Target("generation_config", "fuzz.bundle_targets:generation_config", "json", inputs=300),
        Target("trace", "fuzz.bundle_targets:trace", "lines", inputs=300),
        Target("saved_chat", "fuzz.bundle_targets:saved_chat", "json", inputs=300),
        Target("device_table", "fuzz.bundle_targets:device_table", "json", inputs=200),
        Target("command", "fuzz.command_target:command", "text", _COMMAND_WORDS, inputs=60, atheris=False),
        Target("gguf", "fuzz.source_targets:gguf_file", "bytes", _GGUF_WORDS, inputs=120, share=2),
        Target("safetensors", "fuzz.source_targets:safetensors_file", "safetensors", inputs=100),
        Target("hf_config", "fuzz.source_targets:hf_config", "json", inputs=150),
        Target("torch_file", "fuzz.source_targets:torch_file", "bytes", inputs=80),
        Target("policy_file", "fuzz.source_targets:policy_file", "safetensors", inputs=150),
        Target("stored_calibration", "fuzz.source_targets:stored_calibration", "json", inputs=100),
    )
}
