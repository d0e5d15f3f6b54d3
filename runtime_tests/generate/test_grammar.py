"""Texts that are held to a JSON schema, a regular expression or a grammar."""

from __future__ import annotations

import builtins
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from helpers.json_schemas import SCHEMAS
from helpers.places import GOLDEN
from helpers.tiny_bundle import seal, write_bundle
from sol_rt import Grammar, SolModel
from sol_rt.bundle.config import CONFIG_NAME
from sol_rt.bundle.config_reader import read_config
from sol_rt.errors import SolError, UsageError
from sol_rt.generate.trace import read_trace

PROMPT = "Once upon a time"
OBJECT = SCHEMAS["nested"]
MOST = 150


@pytest.fixture(scope="module")
def model() -> SolModel:
    """A tiny model with a token for every byte."""
    return SolModel.from_pretrained(GOLDEN / "tiny", provider="cpu", measure_costs=False)


def is_valid(text: str, schema: dict[str, Any]) -> bool:
    try:
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_json_is_valid_under_its_schema(model: SolModel, schema: dict[str, Any]) -> None:
    """Greedy, and draws that are nearly even, so that the grammar alone keeps the text in shape."""
    complete = 0
    for temperature in (0.0, 1.0, 2.0, 30.0, 30.0, 30.0):
        sampled = {"do_sample": temperature > 0, **({"temperature": temperature} if temperature else {})}
        result = model.generate(
            PROMPT, grammar=Grammar.json_schema(schema), max_new_tokens=MOST, seed=complete, **sampled
        )
        if result.finish_reason == "length":
            continue
        complete += 1
        assert is_valid(result.text, schema), result.text
    assert complete > 0


def test_without_a_grammar_the_text_is_not_valid(model: SolModel) -> None:
    assert not is_valid(model.generate(PROMPT, max_new_tokens=MOST).text, OBJECT)


@pytest.mark.parametrize(
    "pattern", ["[a-c]{3}-[0-9]{2}", "(yes|no)( indeed)?", "深海|🐟{1,3}", "x?", r"\d{1,3}(\.\d{2})?"]
)
def test_a_regular_expression_matches_all_of_the_text(model: SolModel, pattern: str) -> None:
    for seed in range(4):
        result = model.generate(
            PROMPT, grammar=Grammar.regex(pattern), do_sample=True, temperature=20.0, seed=seed, max_new_tokens=60
        )
        assert result.finish_reason == "stop"
        assert re.fullmatch(pattern, result.text), result.text


def test_a_text_keeps_to_a_lark_grammar(model: SolModel) -> None:
    grammar = Grammar.lark('start: sum\nsum: NUMBER (("+" | "-") NUMBER){1,3}\nNUMBER: /[1-9][0-9]?/\n')
    for seed in range(4):
        result = model.generate(PROMPT, grammar=grammar, do_sample=True, temperature=20.0, seed=seed, max_new_tokens=60)
        assert result.finish_reason == "stop"
        assert re.fullmatch(r"[1-9]\d?([+-][1-9]\d?){1,3}", result.text), result.text


def test_a_text_to_which_nothing_can_be_added_ends_with_its_last_token(model: SolModel) -> None:
    result = model.generate(PROMPT, grammar=Grammar.regex("ab"))
    ends = model.bundle.config.model.eos_token_ids
    assert (result.text, result.finish_reason) == ("ab", "stop")
    assert result.tokens[-1] not in ends
    exact = model.generate(PROMPT, grammar=Grammar.regex("ab"), max_new_tokens=len(result.tokens))
    assert exact.finish_reason == "stop"
    empty = model.generate(PROMPT, grammar=Grammar.regex(""))
    assert (empty.text, empty.finish_reason) == ("", "stop")
    assert empty.tokens[0] in ends


def test_other_settings_hold_too(model: SolModel) -> None:
    grammar = Grammar.json_schema(OBJECT)
    how: dict[str, Any] = {"grammar": grammar, "do_sample": True, "seed": 5, "max_new_tokens": MOST}
    tight = model.generate(
        PROMPT, top_k=3, top_p=0.9, min_p=0.05, repetition_penalty=1.2, frequency_penalty=0.3, budget=0.6, **how
    )
    assert is_valid(tight.text, OBJECT)
    assert tight.achieved_budget == pytest.approx(0.6, abs=0.05)
    cut = model.generate(PROMPT, stop_strings=['"name"'], **how)
    assert (cut.text, cut.finish_reason) == ('{"person": {', "stop")
    # log-probabilities are those of all tokens: the likeliest are mostly others
    open_ended = model.generate(PROMPT, max_new_tokens=1, top_logprobs=5)
    held = model.generate(PROMPT, grammar=grammar, max_new_tokens=1, top_logprobs=5)
    assert held.top_logprobs == open_ended.top_logprobs
    assert held.logprobs[0] < open_ended.logprobs[0]


def test_streams_have_matchers_of_their_own(model: SolModel) -> None:
    """Two at once, in two sessions; a third one that begins again after it was closed."""
    grammar = Grammar.json_schema(OBJECT)
    how: dict[str, Any] = {"grammar": grammar, "do_sample": True, "max_new_tokens": MOST}
    expected = [model.generate(PROMPT, seed=seed, **how).text for seed in (1, 2)]
    streams = [model.stream(PROMPT, seed=seed, **how) for seed in (1, 2)]
    streams[1].move_to(model.session())
    texts = ["", ""]
    while any(alive := [stream.result is None for stream in streams]):
        for place, stream in enumerate(streams):
            if alive[place]:
                texts[place] += next(stream).text
    assert texts == expected
    closed = model.stream(PROMPT, seed=1, **how)
    next(closed)
    closed.close()
    assert model.generate(PROMPT, seed=1, **how).text == expected[0]


def test_a_replay_needs_the_grammar_again(model: SolModel, tmp_path: Path) -> None:
    trace, grammar = tmp_path / "held.jsonl", Grammar.json_schema(OBJECT)
    recorded = model.generate(PROMPT, grammar=grammar, budget=0.7, max_new_tokens=MOST, trace=trace)
    assert model.generate(replay=read_trace(trace), grammar=grammar).tokens == recorded.tokens
    assert model.generate(replay=read_trace(trace)).first_difference is not None


def chain(length: int) -> dict[str, Any]:
    """A schema of objects in each other, each by a reference."""
    links = {str(n): {"type": "object", "properties": {"a": {"$ref": f"#/$defs/{n + 1}"}}} for n in range(length)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(length): {"type": "null"}}}


def test_a_long_chain_of_references_is_held(model: SolModel) -> None:
    """On a usual stack it ends the process."""
    result = model.generate(PROMPT, grammar=Grammar.json_schema(chain(1500)), max_new_tokens=4)
    assert result.text.startswith("{")


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar.json_schema({"type": "strin"}), "json_schema: Invalid type: strin"),
        (Grammar.json_schema({"type": "integer", "minimum": 5, "maximum": 1}), "Unsatisfiable schema"),
        (Grammar.json_schema({"not": {"type": "null"}}), 'Unimplemented keys: ["not"]'),
        (Grammar.json_schema('{"$ref": "#/nowhere"}'), "does not exist"),
        (Grammar.regex("a(b"), "unclosed group"),
        (Grammar.lark("start: nowhere"), 'unknown name: "nowhere"'),
        (Grammar.regex("\ud800"), "surrogates not allowed"),
        (Grammar.json_schema({"const": float("nan")}), "expected value at line 1 column 11"),
        (Grammar.json_schema({"const": json.loads("[" * 400 + "]" * 400)}), "recursion limit exceeded"),
        (Grammar.json_schema(chain(20_000)), "characters, expected at most 524288"),
        ({"type": "object"}, "expected a Grammar"),
    ],
)
def test_bad_grammars_are_refused_with_the_reason(model: SolModel, grammar: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=r"^grammar: ") as refused:
        model.stream(PROMPT, grammar=grammar)
    assert reason in str(refused.value)
    assert "\n" not in refused.value.whole


@pytest.mark.parametrize("schema", ["{", "[1]", "3", "[" * 100_000, {"enum": [{1, 2}]}, 7])
def test_what_is_no_schema_is_refused(schema: Any) -> None:
    with pytest.raises(UsageError, match=r"grammar: JSON schema: .*(expected an object|too deeply)"):
        Grammar.json_schema(schema)


@pytest.mark.parametrize("make", [lambda: Grammar("prose", "a"), lambda: Grammar.regex(re.compile("a"))])
def test_what_is_no_grammar_is_refused(make: Any) -> None:
    with pytest.raises(UsageError, match=r"expected Grammar.json_schema, .regex or .lark"):
        make()


def test_a_text_that_python_writes_has_its_last_token(tmp_path: Path) -> None:
    """Where the core cannot read the tokenizer."""
    bundle = Path(shutil.copytree(GOLDEN / "tiny", tmp_path / "tiny"))
    (bundle / "chat_segments.json").unlink()
    content = json.loads((bundle / "tokenizer.json").read_text(encoding="utf-8"))
    (bundle / "tokenizer.json").write_text(json.dumps(content | {"normalizer": {"type": "Nmt"}}), encoding="utf-8")
    seal(bundle, read_config(bundle / CONFIG_NAME))
    model = SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False)
    assert model.generate(PROMPT, grammar=Grammar.regex("ab")).text == "ab"
    ended = model.generate(
        PROMPT, grammar=Grammar.regex("ab*"), logit_bias={model.bundle.config.model.eos_token_ids[0]: 100}
    )
    assert (ended.text, ended.finish_reason) == ("a", "stop")


def test_a_vocabulary_without_the_characters_is_an_error(tmp_path: Path) -> None:
    """Its words are w0 to w85, first without a decoder that says which bytes they are."""
    bundle = write_bundle(tmp_path / "words")
    words = SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False)
    with pytest.raises(UsageError, match="cannot read this model's tokenizer"):
        words.stream("w1 w2", grammar=Grammar.regex("w1"))
    content = json.loads((bundle / "tokenizer.json").read_text())
    content["decoder"] = json.loads((GOLDEN / "tiny" / "tokenizer.json").read_text())["decoder"]
    (bundle / "tokenizer.json").write_text(json.dumps(content))
    seal(bundle, read_config(bundle / CONFIG_NAME))
    words = SolModel.from_pretrained(bundle, provider="cpu", measure_costs=False)
    for grammar in (Grammar.regex("[xy]z"), Grammar.json_schema(OBJECT)):
        with pytest.raises(SolError, match=r"^grammar: .*allow characters that the model has tokens for"):
            words.generate("w1 w2", grammar=grammar)
    assert len(words.generate("w1 w2", max_new_tokens=3, eos_token_id=[]).tokens) == 3


def test_without_the_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "llguidance":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    model = SolModel.from_pretrained(GOLDEN / "tiny", provider="cpu", measure_costs=False)
    with pytest.raises(UsageError, match=r"pip install 'sol-rt\[grammar\]'"):
        model.stream(PROMPT, grammar=Grammar.regex("a"))
