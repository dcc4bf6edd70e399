"""Attention of a decoding step over shared prompts, against plain attention of each completion on its own."""

from __future__ import annotations

import pytest
import torch

from vgpo_lite.algorithm.focus import next_token_attention_focus
from vgpo_lite.engine.decode import GroupCache
from vgpo_lite.engine.fixed import FixedCache

LENGTHS = (7, 4, 9)
HEADS, KV_HEADS, DIM, SLOTS, SCALE = 6, 2, 8, 3, 0.4


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Bench:
    """A cache, and beside it what every completion has seen, in full."""

    def __init__(
        self,
        *,
        dtype: torch.dtype = torch.float32,
        bias: float = 0.0,
        max_tokens: int = 12,
        kind: type[GroupCache] = GroupCache,
        window: int | None = None,
    ) -> None:
        self.dtype = dtype
        self.window = window
        self.masks = [normal(length, seed=length) > 0 for length in LENGTHS]
        self.cache = kind(self.masks, slots=SLOTS, max_tokens=max_tokens, focus_layer=0, windows=[window])
        self.bias = bias * normal(1, KV_HEADS, 1, DIM, seed=40)
        self.prompts = []
        for place, length in enumerate(LENGTHS):
            key = (normal(1, KV_HEADS, length, DIM, seed=50 + place) + self.bias).to(dtype)
            value = normal(1, KV_HEADS, length, DIM, seed=60 + place).to(dtype)
            self.prompts.append((key, value))
            self.cache.store_prompt(place, {0: (key, value)})
        self.rows = [(prompt, []) for prompt in range(len(LENGTHS)) for _ in range(SLOTS)]

    def step(self, seed: int) -> tuple[torch.Tensor, ...]:
        """Attend one more token: what the cache says, what is so, and the same for the attention on the image."""
        count = len(self.rows)
        query = normal(count, HEADS, 1, DIM, seed=seed).to(self.dtype)
        key = (normal(count, KV_HEADS, 1, DIM, seed=seed + 100) + self.bias).to(self.dtype)
        value = normal(count, KV_HEADS, 1, DIM, seed=seed + 200).to(self.dtype)
        if isinstance(self.cache, FixedCache):
            self.cache.prepare()
        found = self.cache.attend(0, query, key, value, scale=SCALE)
        self.cache.advance()
        expected, focus = [], []
        for row, (prompt, own) in enumerate(self.rows):
            own.append((key[row : row + 1], value[row : row + 1]))
            keys = torch.cat([self.prompts[prompt][0], *(k for k, _ in own)], dim=2).double()
            values = torch.cat([self.prompts[prompt][1], *(v for _, v in own)], dim=2).double()
            keys, values = (x.repeat_interleave(HEADS // KV_HEADS, dim=1) for x in (keys, values))
            if self.window is not None:
                keys, values = keys[:, :, -self.window :], values[:, :, -self.window :]
            weights = (query[row : row + 1].double() @ keys.mT * SCALE).softmax(-1)
            expected.append((weights @ values).transpose(1, 2))
            own_key = torch.cat([k for k, _ in own], dim=2)
            prompt_key, mask = self.prompts[prompt][0][0], self.masks[prompt]
            if self.window is not None:
                continue  # focus is read where a layer sees everything
            focus.append(next_token_attention_focus(query[row, None, :, 0], prompt_key, own_key, mask, scale=SCALE))
        return found, torch.cat(expected), self.cache.attention.flatten(), torch.cat(focus) if focus else None

    def keep(self, prompts: list[int], slots: list[list[int]]) -> None:
        width = len(self.rows) // len({prompt for prompt, _ in self.rows})
        self.cache.keep(torch.tensor(prompts), torch.tensor(slots))
        self.rows = [self.rows[p * width + s] for p, own in zip(prompts, slots, strict=True) for s in own]


@pytest.mark.parametrize("kind", [GroupCache, FixedCache])
def test_each_completion_attends_its_prompt_and_itself(kind):
    bench = Bench(kind=kind)
    for seed in range(5):
        found, expected, focus, expected_focus = bench.step(seed)
        assert found.shape == (9, 1, HEADS, DIM)
        torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(focus, expected_focus, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("window", [1, 3, 8, 10, 100])
@pytest.mark.parametrize("kind", [GroupCache, FixedCache])
def test_a_window_moves_over_the_prompt_and_the_completion(monkeypatch, kind, window):
    monkeypatch.setattr("vgpo_lite.engine.decode.FIRST_ROOM", 2)
    bench = Bench(kind=kind, window=window)
    for seed in range(9):
        if seed == 4:
            bench.keep([0, 2], [[2, 0], [0, 1]])
        found, expected, *_ = bench.step(seed)
        torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", [GroupCache, FixedCache])
def test_what_stays_is_not_disturbed_by_what_leaves(kind):
    bench = Bench(kind=kind)
    bench.step(0)
    for seed, (prompts, slots) in enumerate([([0, 2], [[2, 0], [0, 1]]), ([0, 1], [[1], [0]]), ([1], [[0]])], start=1):
        bench.keep(prompts, slots)
        found, expected, focus, expected_focus = bench.step(seed)
        assert found.shape[0] == sum(map(len, slots))
        torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(focus, expected_focus, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", [GroupCache, FixedCache])
def test_room_grows_to_the_limit_and_no_further(monkeypatch, kind):
    monkeypatch.setattr("vgpo_lite.engine.decode.FIRST_ROOM", 2)
    bench = Bench(kind=kind, max_tokens=5)
    rooms = []
    for seed in range(5):
        found, expected, _, _ = bench.step(seed)
        torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-5)
        rooms.append(bench.cache._own[0].shape[4])
    assert rooms == [2, 2, 4, 4, 5]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_large_biases_of_keys_do_not_blur_the_scores_of_half_precision(dtype, tolerance):
    # Scores near 100 have a spacing of 0.5 in bfloat16, so weights formed from them would be off by a quarter and more.
    bench = Bench(dtype=dtype, bias=30.0)
    for seed in range(3):
        found, expected, focus, expected_focus = bench.step(seed)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(focus, expected_focus, atol=1e-5, rtol=1e-4)
