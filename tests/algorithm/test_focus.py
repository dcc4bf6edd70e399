from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.models.qwen2.configuration_qwen2 import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2RotaryEmbedding, apply_rotary_pos_emb

from tests.algorithm.groups import assert_close, seeds
from tests.tolerances import EAGER_ATTENTION, FLOAT32, FLOAT64
from vgpo_lite.algorithm.focus import attention_focus, next_token_attention_focus, similarity_focus


def random(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Layer:
    """Random queries and keys of one layer: group 3, heads 4 on 2 key heads, 11 tokens after a prompt of 7."""

    def __init__(self, seed: int, *, tokens: int = 11, dtype: torch.dtype = torch.float64) -> None:
        self.query = random(3, 4, tokens, 8, seed=seed, dtype=dtype)
        self.prompt_key = random(2, 7, 8, seed=seed + 1, dtype=dtype)
        self.own_key = random(3, 2, tokens, 8, seed=seed + 2, dtype=dtype)
        self.image = torch.tensor([False, True, True, False, True, False, False])

    def focus(self, *, chunk_size: int, scale: float = 0.9) -> torch.Tensor:
        return attention_focus(
            self.query, self.prompt_key, self.own_key, self.image, scale=scale, chunk_size=chunk_size
        )


def attention_by_hand(layer: Layer, *, scale: float) -> torch.Tensor:
    """Mean over heads of the softmax mass on the image, one query after the other."""
    group, heads, tokens, _ = layer.query.shape
    share = heads // layer.prompt_key.shape[0]
    focus = torch.zeros(group, tokens, dtype=torch.float64)
    for row in range(group):
        for token in range(tokens):
            for head in range(heads):
                prompt = layer.prompt_key[head // share]
                own = layer.own_key[row, head // share, :token]
                scores = [scale * float(layer.query[row, head, token] @ key) for key in (*prompt, *own)]
                weights = [math.exp(score - max(scores)) for score in scores]
                on_image = math.fsum(weight for weight, image in zip(weights, layer.image, strict=False) if image)
                focus[row, token] += on_image / math.fsum(weights) / heads
    return focus


def test_similarity_focus_equals_the_equation():
    hidden, image_hidden = random(2, 5, 6, seed=0), random(4, 6, seed=1)
    mu = [math.fsum(column) / 4 for column in image_hidden.T.tolist()]
    expected = torch.zeros(2, 5, dtype=torch.float64)
    for row in range(2):
        for token, state in enumerate(hidden[row].tolist()):
            dot = math.fsum(a * b for a, b in zip(state, mu, strict=True))
            cosine = dot / math.hypot(*state) / math.hypot(*mu)
            expected[row, token] = (cosine + 1) / 2
    assert_close(similarity_focus(hidden, image_hidden), expected, FLOAT64)


def test_similarity_focus_of_three_tokens():
    # mu = ((2, 0) + (0, 2)) / 2 = (1, 1). Along (3, 3): cos 1; along (-1, -1): cos -1; along (1, 0): cos 1 / sqrt 2
    hidden = torch.tensor([[[3.0, 3.0], [-1.0, -1.0], [1.0, 0.0]]], dtype=torch.float64)
    actual = similarity_focus(hidden, torch.tensor([[2.0, 0.0], [0.0, 2.0]], dtype=torch.float64))
    assert_close(actual, torch.tensor([[1.0, 0.0, (math.sqrt(0.5) + 1) / 2]], dtype=torch.float64), FLOAT64)


def test_similarity_focus_stays_in_its_range_for_zero_vectors_and_low_precision():
    half = torch.full((2, 3), 0.5)
    assert torch.equal(similarity_focus(torch.zeros(2, 3, 4), torch.ones(5, 4)), half)
    assert torch.equal(similarity_focus(torch.ones(2, 3, 4), torch.zeros(5, 4)), half)
    hidden = random(1, 200, 64, seed=3, dtype=torch.bfloat16)
    along = similarity_focus(hidden, hidden[0, :1])
    assert along.dtype == torch.float32
    assert ((along >= 0) & (along <= 1)).all()
    assert_close(along, similarity_focus(hidden.double(), hidden[0, :1].double()), FLOAT32)


def test_similarity_focus_without_an_image_is_refused():
    with pytest.raises(ValueError, match="without image tokens has no focus"):
        similarity_focus(torch.ones(1, 2, 3), torch.ones(0, 3))


@settings(max_examples=10, deadline=None)
@given(seed=seeds, chunk_size=st.integers(1, 13))
def test_attention_focus_equals_a_softmax_query_by_query_for_any_chunk_size(seed, chunk_size):
    layer = Layer(seed)
    assert_close(layer.focus(chunk_size=chunk_size), attention_by_hand(layer, scale=0.9), FLOAT64)


def test_attention_focus_of_two_tokens():
    # one head, scale 1, dim 1, prompt keys 0 (text) and ln 3 (image), own key of the first token ln 4.
    # query 1 of token 0 sees the prompt: weights 1 3: mass 3/4; query 1 of token 1 sees 1 3 4: 3/8.
    # The second token's own key is never seen
    query = torch.ones(1, 1, 2, 1, dtype=torch.float64)
    prompt_key = torch.tensor([[[0.0], [math.log(3)]]], dtype=torch.float64)
    own_key = torch.tensor([[[[math.log(4)], [float("nan")]]]], dtype=torch.float64)
    focus = attention_focus(query, prompt_key, own_key, torch.tensor([False, True]), scale=1.0, chunk_size=2)
    assert_close(focus, torch.tensor([[3 / 4, 3 / 8]], dtype=torch.float64), FLOAT64)


@pytest.mark.parametrize("chunk_size", [1, 4, 64])
def test_attention_focus_equals_the_weights_of_a_model_s_eager_attention(chunk_size):
    prompt, tokens, group = 9, 10, 3
    config = Qwen2Config(hidden_size=32, num_attention_heads=4, num_key_value_heads=2, attn_implementation="eager")
    torch.manual_seed(0)
    attention, rotary = Qwen2Attention(config, layer_idx=0).eval(), Qwen2RotaryEmbedding(config)
    hidden = 4 * torch.randn(group, prompt + tokens, 32)  # scores of several units: weights far from uniform
    hidden[:, :prompt] = hidden[0, :prompt]
    image = torch.tensor([False, True, True, True, False, False, True, False, False])
    length = prompt + tokens
    cos, sin = rotary(hidden, torch.arange(length).unsqueeze(0))
    causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    with torch.no_grad():
        _, weights = attention(hidden, position_embeddings=(cos, sin), attention_mask=causal)
        query = attention.q_proj(hidden).unflatten(-1, (4, 8)).transpose(1, 2)
        key = attention.k_proj(hidden).unflatten(-1, (2, 8)).transpose(1, 2)
    query, key = apply_rotary_pos_emb(query, key, cos, sin)
    emitters = slice(prompt - 1, length - 1)
    expected = weights[:, :, emitters, :prompt][..., image].sum(dim=-1).mean(dim=1)
    actual = attention_focus(
        query[:, :, emitters],
        key[0, :, :prompt],
        key[:, :, prompt:],
        image,
        scale=attention.scaling,
        chunk_size=chunk_size,
    )
    assert weights.max() > 0.9
    assert_close(actual, expected, EAGER_ATTENTION)


def test_attention_focus_seen_step_by_step_is_the_same():
    layer = Layer(1)
    steps = [
        next_token_attention_focus(
            layer.query[:, :, t], layer.prompt_key, layer.own_key[:, :, :t], layer.image, scale=0.9
        )
        for t in range(11)
    ]
    assert_close(torch.stack(steps, dim=-1), layer.focus(chunk_size=4), FLOAT64)


def test_attention_focus_never_reads_what_lies_under_the_padding():
    layer, padded = Layer(2), Layer(2)
    padded.query[1, :, 6:] = torch.nan  # the second completion has six tokens
    padded.own_key[1, :, 6:] = torch.nan
    expected, actual = layer.focus(chunk_size=4), padded.focus(chunk_size=4)
    assert torch.equal(actual[[0, 2]], expected[[0, 2]])
    assert torch.equal(actual[1, :6], expected[1, :6])


def test_attention_focus_of_a_row_needs_no_group():
    layer = Layer(3)
    expected = layer.focus(chunk_size=4)
    for row in range(3):
        query, own_key = layer.query[row : row + 1], layer.own_key[row : row + 1]
        alone = attention_focus(query, layer.prompt_key, own_key, layer.image, scale=0.9, chunk_size=4)
        assert_close(alone, expected[row : row + 1], FLOAT64)


def test_attention_focus_is_finite_for_zero_vectors_and_large_scores():
    layer = Layer(4, dtype=torch.float32)
    large = layer.focus(chunk_size=4, scale=1e4)
    assert ((large >= 0) & (large <= 1)).all()
    layer.query.zero_()
    # all keys alike: query t sees 3 image tokens among 7 + t
    expected = torch.tensor([[3 / (7 + t) for t in range(11)]]).expand(3, -1)
    assert_close(layer.focus(chunk_size=4), expected, FLOAT32)


def test_attention_focus_of_low_precision_is_computed_in_float32():
    layer, exact = Layer(5, dtype=torch.bfloat16), Layer(5)
    exact.query, exact.prompt_key = layer.query.double(), layer.prompt_key.double()
    exact.own_key = layer.own_key.double()
    focus = layer.focus(chunk_size=4)
    assert focus.dtype == torch.float32
    assert exact.focus(chunk_size=4).dtype == torch.float64
    assert_close(focus, attention_by_hand(exact, scale=0.9), FLOAT32)


class Allocations(TorchDispatchMode):
    """Records how many numbers each operation puts out."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def test_attention_focus_never_holds_more_than_a_chunk_of_weights():
    group, heads, tokens, prompt, chunk_size = 3, 4, 64, 40, 5
    query, own_key = torch.randn(group, heads, tokens, 2), torch.randn(group, 2, tokens, 2)
    prompt_key, image = torch.randn(2, prompt, 2), torch.arange(prompt) < 9
    with Allocations() as chunked:
        attention_focus(query, prompt_key, own_key, image, scale=0.5, chunk_size=chunk_size)
    with Allocations() as whole:
        attention_focus(query, prompt_key, own_key, image, scale=0.5, chunk_size=tokens)
    assert chunked.largest <= group * heads * chunk_size * (prompt + tokens)
    assert whole.largest >= group * heads * tokens * tokens  # the count sees what a chunk avoids


def test_focus_carries_no_gradient():
    layer = Layer(6)
    layer.query.requires_grad_()
    assert not layer.focus(chunk_size=4).requires_grad
    assert not similarity_focus(torch.ones(1, 2, 3, requires_grad=True), torch.ones(1, 3)).requires_grad


def test_attention_focus_refuses_what_cannot_fit():
    layer = Layer(7)
    with pytest.raises(ValueError, match="chunk_size is 0; expected at least 1"):
        layer.focus(chunk_size=0)
    with pytest.raises(ValueError, match="3 query heads cannot share 2 key heads evenly"):
        attention_focus(layer.query[:, :3], layer.prompt_key, layer.own_key, layer.image, scale=1.0, chunk_size=4)
