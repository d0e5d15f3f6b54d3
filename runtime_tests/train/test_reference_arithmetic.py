"""The reference model's own arithmetic: against transformers with nothing rounded, and against plain loops over
docs/reference/bundle-details.md."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from helpers import reference  # noqa: E402
from sol_rt.bundle.actions import Action  # noqa: E402
from sol_rt.bundle.config import PAGE_SIZE  # noqa: E402
from sol_rt.export.sources.decoder import from_hf_config  # noqa: E402
from sol_rt.train.reference_model.model import (  # noqa: E402
    UNROUNDED,
    Arithmetic,
    ReferenceModel,
    keep_largest,
    round_activations,
)
from sol_rt.train.reference_model.weights import FloatMatrix, ModelWeights, from_tensors  # noqa: E402

VOCAB = 96
DIMS = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
CONFIGS = {
    "llama-tied": ("LlamaConfig", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-biased": ("LlamaConfig", {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
    "qwen2": ("Qwen2Config", {"num_key_value_heads": 1}),
    "phi3": ("Phi3Config", {"num_key_value_heads": 2}),
    "phi": ("PhiConfig", {"partial_rotary_factor": 0.5}),
}
DENSE = Action(1.0, 1.0, 8)


def _reference(name: str) -> tuple[torch.nn.Module, ModelWeights]:
    """A random transformers model, norms and biases included, and its reference model's unrounded weights."""
    kind, extra = CONFIGS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**DIMS, **extra)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float().eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    decoder = from_hf_config(config.to_dict() | {"architectures": [type(model).__name__]})
    return model, from_tensors(decoder, model.state_dict().__getitem__, FloatMatrix)


def _tokens(rows: int, count: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, VOCAB, (rows, count), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CONFIGS)
def test_unrounded_reference_model_equals_transformers(name: str) -> None:
    model, weights = _reference(name)
    tokens = _tokens(2, 44)
    with torch.no_grad():
        expected = model(tokens).logits
    torch_reference = ReferenceModel(weights, UNROUNDED)
    cache = torch_reference.new_cache(2)
    prefill, hidden = torch_reference(tokens[:, :37], DENSE, cache)
    steps = [torch_reference.step(tokens[:, i], [DENSE, DENSE], cache)[0] for i in range(37, 44)]
    got = torch.cat([prefill, torch.stack(steps, dim=1)], dim=1)
    assert hidden.shape == (2, 37, 64)
    assert (got - expected).abs().max() < 1e-4  # logits have a standard deviation of about 1.6


def test_chunks_give_what_one_pass_gives_and_truncate_rewinds() -> None:
    _, weights = _reference("llama-tied")
    torch_reference, tokens = ReferenceModel(weights, UNROUNDED), _tokens(1, 40)
    whole, _ = torch_reference(tokens, DENSE, torch_reference.new_cache(1))
    cache = torch_reference.new_cache(1)
    torch_reference(tokens[:, :21], DENSE, cache)
    torch_reference(_tokens(1, 30, seed=5), DENSE, cache)  # to be rewound
    cache.truncate(21)
    rest, _ = torch_reference(tokens[:, 21:], DENSE, cache, num_logits=3)
    assert rest.shape == (1, 3, VOCAB)
    torch.testing.assert_close(rest, whole[:, -3:], atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="truncate"):
        cache.truncate(41)


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, torch.float32])
def test_codes_are_those_of_the_keys_that_are_held(dtype: torch.dtype) -> None:
    """After a rewind as well; unrounded keys are coded as they are."""
    _, weights = _reference("phi")
    torch_reference, tokens = ReferenceModel(weights, Arithmetic(kv_dtype=dtype)), _tokens(2, 52)
    cache = torch_reference.new_cache(2)
    torch_reference(tokens, DENSE, cache)
    cache.truncate(torch.tensor([35, 20]))
    torch_reference(_tokens(2, 8, seed=5), DENSE, cache)
    for row, length in enumerate((43, 28)):
        keys = cache.keys[:, row, :, :length].numpy()
        if dtype == torch.int8:
            keys = reference.scaled_rows(keys, cache.key_scales[:, row, :, :length].numpy())
        codes, ranges = reference.key_codes(keys)
        assert np.array_equal(cache.key_codes[:, row, :, :length].numpy(), reference.unpacked(codes))
        assert np.array_equal(cache.key_ranges[:, row, :, :length].numpy(), ranges)


def test_batched_step_equals_each_row_alone() -> None:
    """Rows of different lengths and actions in one call; unrounded, so that nothing can flip at a rounding border."""
    _, weights = _reference("llama-tied")
    torch_reference = ReferenceModel(weights, UNROUNDED)
    tokens, lengths = _tokens(5, 120), [100, 83, 64, 17, 96]
    actions = [
        Action.parse(tag) for tag in ("k025-s100-q8", "k050-s050-q8", "k100-s100-q4", "k010-s050-q8", "k025-s050-q6")
    ]
    together = torch_reference.new_cache(5)
    torch_reference(tokens, DENSE, together)
    together.truncate(torch.tensor(lengths))
    logits, hidden = [], []
    for i in range(3):
        step = torch.stack([tokens[row, length + i] for row, length in enumerate(lengths)])
        out = torch_reference.step(step, actions, together)
        logits.append(out[0])
        hidden.append(out[1])
    for row, (action, length) in enumerate(zip(actions, lengths, strict=True)):
        alone = torch_reference.new_cache(1)
        torch_reference(tokens[row : row + 1, :length], DENSE, alone)
        for i in range(3):
            expected, expected_hidden = torch_reference(
                tokens[row : row + 1, length + i : length + i + 1], action, alone
            )
            torch.testing.assert_close(logits[i][row], expected[0, 0], atol=1e-4, rtol=0)
            torch.testing.assert_close(hidden[i][row], expected_hidden[0, 0], atol=1e-4, rtol=0)
    assert together.lengths.tolist() == [length + 3 for length in lengths]


def test_selected_rows_are_copies() -> None:
    _, weights = _reference("llama-tied")
    torch_reference, tokens = ReferenceModel(weights), _tokens(2, 40)
    cache = torch_reference.new_cache(2)
    torch_reference(tokens, DENSE, cache)
    forks = cache.select(torch.tensor([1, 1, 0]))
    before = cache.keys.clone()
    logits, _ = torch_reference.step(torch.tensor([7, 7, 7]), [DENSE] * 3, forks)
    torch.testing.assert_close(logits[0], logits[1])
    assert not torch.allclose(logits[0], logits[2], atol=1e-3)
    assert torch.equal(cache.keys, before)
    assert cache.lengths.tolist() == [40, 40]


@pytest.mark.parametrize(("bits", "largest"), [(4, 127.0), (6, 127.0), (8, 32258.0)])
def test_activations_round_half_to_even_in_blocks_of_32(bits: int, largest: float) -> None:
    x = torch.zeros(2, 64)
    x[0, :5] = torch.tensor([largest, 0.5, 1.5, 2.5, -3.5])
    x[0, 32:34] = torch.tensor([0.01 * largest, 0.004])
    rounded = round_activations(x, bits)
    assert rounded[0, :5].tolist() == [largest, 0.0, 2.0, 2.0, -4.0]
    assert rounded[0, 33] == 0.0  # 0.4 of a step of 0.01
    assert torch.equal(rounded[1], x[1])


@pytest.mark.parametrize("count", [1, 3, 17, 40, 64])
def test_keep_largest_takes_the_lower_index_of_ties(count: int) -> None:
    rng = np.random.default_rng(count)
    x = rng.integers(-4, 5, (6, 64)).astype(np.float32)  # many ties
    expected = np.zeros_like(x)
    for row, out in zip(x, expected, strict=True):
        kept = sorted(range(64), key=lambda i, row=row: (-abs(row[i]), i))[:count]
        out[kept] = row[kept]
    assert np.array_equal(keep_largest(torch.from_numpy(x), count).numpy(), expected)


@pytest.mark.parametrize("name", ["llama-tied", "phi"])
@pytest.mark.parametrize(
    ("length", "kv_density"), [(3, 0.1), (4, 0.1), (8, 0.1), (95, 0.1), (95, 0.5), (100, 0.25), (112, 0.99)]
)
def test_sparse_step_equals_plain_loops(name: str, length: int, kv_density: float) -> None:
    """Attention of one step with float16 keys and values, by docs/reference/bundle-details.md section 3."""
    _, weights = _reference(name)
    torch_reference = ReferenceModel(weights, Arithmetic(rounded_activations=False))
    d, cache = torch_reference.decoder, torch_reference.new_cache(1)
    torch_reference(_tokens(1, length), DENSE, cache)
    slots = cache.open(1)
    q = torch.randn(1, d.num_heads, 1, d.head_dim, generator=torch.Generator().manual_seed(3))
    k = torch.randn(1, 1, d.num_kv_heads, d.head_dim, generator=torch.Generator().manual_seed(4))
    cache.append(slots, 0, k, k)
    keys, _ = cache.held(0, slots.longest)
    pages = Action(kv_density, 1.0, 8).pages(length, PAGE_SIZE)
    read = torch_reference._read(q, cache, 0, torch.tensor([pages]), slots)[0]

    total = length + 1
    old = 4 * (math.ceil(total / 4) - 1)
    group = d.num_heads // d.num_kv_heads
    scores = {}
    for kv in range(d.num_kv_heads):
        for query in q[0, kv * group : (kv + 1) * group, 0]:
            logits = [d.softmax_scale * _score(query, key) for key in keys[0, kv, :old]]
            weights = [math.exp(logit - max(logits)) for logit in logits]
            for token, weight in enumerate(weights):
                scores[kv, token] = scores.get((kv, token), 0.0) + weight / sum(weights)
    kept = sorted(scores, key=lambda pair: (-scores[pair], pair))[: 4 * pages * d.num_kv_heads]
    for kv in range(d.num_kv_heads):
        expected = {token for head, token in kept if head == kv} | set(range(min(4, total))) | set(range(old, total))
        for head in range(kv * group, (kv + 1) * group):
            assert set(read[head].nonzero().flatten().tolist()) == expected


def _score(query: torch.Tensor, key: torch.Tensor) -> float:
    """The product of a query [D] and a float16 key [D] as their codes stand for them, in float64."""
    numbers = [float(x) for x in key]
    least, step = min(numbers), float(np.float16(np.float32(max(numbers) - min(numbers)) / np.float32(15)))
    codes = [min(max(round((x - least) / step), 0), 15) for x in numbers]
    unit = max(map(abs, query.tolist())) / 127
    whole = [round(x / unit) for x in query.tolist()]
    product = sum(code * c for code, c in zip(codes, whole, strict=True))
    return unit * (step * product + least * sum(whole))
