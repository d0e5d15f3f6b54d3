"""Writes JSON under a sample of real schemas, and tells how much is valid and what the masks take.

    python benchmarks quality.json_schemas smollm2-135m FOLDER [--peer PYTHON --file FILE.gguf]

FOLDER has JSONSchemaBench's schemas (github.com/guidance-ai/jsonschemabench, `data`), of which a fixed sample is asked
for, greedily, by the default dial. *Complete* texts end before the bound on tokens; each is checked by the package
jsonschema. Mask times are those of the tokens that were written, made again without the model. PYTHON is that of an
environment with xllamacpp, whose server is asked for the same; it shows no mask times.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]
import llguidance
import numpy as np

from serve.load import started
from serve.servers import SERVER
from sol_rt import SolModel
from sol_rt.errors import SolError
from sol_rt.generate.grammar import JSON_SPACES, Grammar
from sol_rt.store.home import find_bundle


@dataclass
class Found:
    """Counts of the schemas, tokens and times of one engine.

    Attributes:
        refused: schemas that the engine does not take.
        complete: texts that ended by themselves.
        valid: complete texts that keep their schema.
        tokens: of all texts.
        seconds: of all answers.
        compile_ms: until a schema's first mask could be made.
        mask_us: each token's mask.
    """

    refused: int = 0
    complete: int = 0
    valid: int = 0
    tokens: int = 0
    seconds: float = 0.0
    compile_ms: list[float] = field(default_factory=list)
    mask_us: list[float] = field(default_factory=list)


Answer = Callable[[Any, str, int], tuple[str, int, bool] | None]
"""Text, tokens and True for a complete one, of a schema, a prompt and a bound; None where the schema is refused."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("-n", "--count", type=int, default=256, help="most tokens of a text")
    parser.add_argument("-t", "--threads", type=int)
    parser.add_argument("--peer", type=Path, help="python of an environment with xllamacpp")
    parser.add_argument("--file", help="the model's .gguf, for xllamacpp")
    given = parser.parse_args()

    schemas = sample(given.folder, given.sample)
    model = SolModel.from_pretrained(find_bundle(given.model), threads=given.threads)
    masks = Found()
    print("| engine | refused | complete | valid of these | tokens | seconds |\n|---|--:|--:|--:|--:|--:|", flush=True)
    config = model.bundle.config.model
    tokenizer = llguidance.LLTokenizer(model.tokenizer.to_json(), config.vocab_size, sorted(config.eos_token_ids))
    show("sol_rt", ask(schemas, given.count, lambda *asked: own(model, tokenizer, masks, *asked)))
    if given.peer:
        command = [str(given.peer), str(SERVER), given.file, "--slots", "1", "--context", "4096"]
        with started(command) as (address, _), httpx.Client(base_url=address, timeout=600) as client:
            show("llama.cpp", ask(schemas, given.count, lambda *asked: peer(client, *asked)))
    compiled, mask = (np.percentile(times, [50, 95, 100]) for times in (masks.compile_ms, masks.mask_us))
    print("compiling a schema, ms, median, 95%, most: {:.1f}, {:.1f}, {:.1f}".format(*compiled))
    print(
        f"a token's mask, us, mean {np.mean(masks.mask_us):.0f}; "
        + "median, 95%, most: {:.0f}, {:.0f}, {:.0f}".format(*mask)
    )


def sample(folder: Path, count: int) -> list[Any]:
    """The same schemas on every machine: a draw from all files in the order of their names."""
    files = sorted(folder.rglob("*.json"), key=lambda file: file.relative_to(folder).as_posix())
    drawn = random.Random(0).sample(files, count)
    return [json.loads(file.read_text(encoding="utf-8")) for file in drawn]


def ask(schemas: list[Any], count: int, answer: Answer) -> Found:
    """Asks for a text of each schema and judges it."""
    found = Found()
    for schema in schemas:
        begun = time.perf_counter()
        given = answer(schema, f"Write JSON that is valid under this schema:\n{json.dumps(schema)[:1000]}", count)
        if given is None:
            found.refused += 1
            continue
        found.seconds += time.perf_counter() - begun
        text, tokens, complete = given
        found.tokens += tokens
        found.complete += complete
        found.valid += complete and keeps(text, schema)
    return found


def keeps(text: str, schema: Any) -> bool:
    """True if a text is JSON and valid under a schema, formats included."""
    checker = jsonschema.validators.validator_for(schema)
    try:
        checker(schema, format_checker=checker.FORMAT_CHECKER).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def own(
    model: SolModel, tokenizer: llguidance.LLTokenizer, masks: Found, schema: Any, prompt: str, count: int
) -> tuple[str, int, bool] | None:
    grammar = Grammar.json_schema(schema)
    asked = [{"role": "user", "content": prompt}]
    try:
        result = model.generate(asked, grammar=grammar, max_new_tokens=count, temperature=0)
    except SolError:
        return None
    time_masks(tokenizer, grammar, result.tokens, masks)
    return result.text, len(result.tokens), result.finish_reason != "length"


def time_masks(tokenizer: llguidance.LLTokenizer, grammar: Grammar, tokens: list[int], masks: Found) -> None:
    """Makes the masks of a text again, and notes their times."""
    row = np.zeros((tokenizer.vocab_size + 31) // 32, np.uint32)
    begun = time.perf_counter()
    text = llguidance.LLMatcher.grammar_from_json_schema(grammar.text, defaults=JSON_SPACES)
    matcher = llguidance.LLMatcher(tokenizer, text, log_level=0)
    masks.compile_ms.append(1e3 * (time.perf_counter() - begun))
    for token in tokens:
        begun = time.perf_counter()
        matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        masks.mask_us.append(1e6 * (time.perf_counter() - begun))
        matcher.consume_token(token)


def peer(client: httpx.Client, schema: Any, prompt: str, count: int) -> tuple[str, int, bool] | None:
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        "max_tokens": count,
        "temperature": 0,
    }
    answer = client.post("/chat/completions", json=body)
    if answer.status_code != 200:
        return None
    (choice,) = answer.json()["choices"]
    tokens = answer.json()["usage"]["completion_tokens"]
    return choice["message"]["content"], tokens, choice["finish_reason"] != "length"


def show(name: str, found: Found) -> None:
    print(
        f"| {name} | {found.refused} | {found.complete} | {found.valid} | {found.tokens} | {found.seconds:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
