"""What must never be allocated, and what must not grow."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from tests.engine.allocations import allocations
from tests.engine.work import PLAIN, advantages_of, batched, shared, taken_gradients
from tests.small_models import make_group, make_prompt, small_model, small_policy, with_adapters

PROMPT = make_prompt([(8, 12)], text=(12, 20))
GROUP = make_group(PROMPT, (40, 33, 40, 21))
TOKENS, CONTEXT, HEADS, VOCABULARY = 134, 170, 4, 1500
FLOAT = 4


def wide_policy(model_type="qwen2_vl", layers=3):
    """A vocabulary so wide that logits of all tokens would be the largest thing by far."""
    policy = small_policy(model_type)
    return replace(policy, model=with_adapters(small_model(model_type, layers=layers, vocabulary=VOCABULARY)).train())


def learn(engine):
    """One look and one update; the gradients are dropped."""
    look = engine.look(GROUP, keep_graph=True, reference=False)
    engine.update(look, advantages_of(GROUP), PLAIN, denominator=float(GROUP.token_count))
    taken_gradients(engine._policy)


@pytest.mark.parametrize("signal", ["attention", "similarity"])
@pytest.mark.parametrize("rows", [None, 2])
def test_neither_heads_by_tokens_by_context_nor_tokens_by_vocabulary_is_ever_allocated(signal, rows):
    engine = shared(
        wide_policy(), focus_signal=signal, rows_per_micro_batch=rows, logprob_chunk=16, focus_chunk=8, recompute=True
    )
    learn(engine)  # kernels are tried out on the first use
    largest = allocations(lambda: learn(engine)).largest
    # The row's MLP activations are the largest thing there is: 266 tokens x 96.
    assert largest <= CONTEXT * 2 * 96 * FLOAT
    assert largest < HEADS * TOKENS * CONTEXT * FLOAT / 2
    assert largest < TOKENS * VOCABULARY * FLOAT / 5


def test_the_memory_test_sees_what_it_forbids():
    policy = wide_policy()
    engine = shared(policy, logprob_chunk=10_000, focus_chunk=10_000)
    assert allocations(lambda: learn(engine)).largest >= TOKENS * VOCABULARY * FLOAT


@pytest.mark.parametrize("signal", ["attention", "similarity"])
def test_reading_focus_costs_the_same_memory_whatever_the_number_of_layers(signal):
    costs = []
    for layers in (2, 8):
        passes = shared(wide_policy(layers=layers), focus_signal=signal, focus_chunk=8, recompute=True)._passes

        def forward(passes=passes, *, with_focus):
            prompt = passes.prompt(PROMPT, with_focus=with_focus, kept_layers=1)
            return passes.completions(GROUP, slice(None), prompt, with_focus=with_focus, kept_layers=1)

        forward(with_focus=True)
        with_focus = allocations(partial(forward, with_focus=True)).peak
        costs.append(with_focus - allocations(partial(forward, with_focus=False)).peak)
    # Under checkpointing every layer keeps its input: for similarity, that of each completion's last token too.
    more_inputs = 6 * len(GROUP.texts) * 64 * FLOAT if signal == "similarity" else 0
    assert costs[1] <= costs[0] + more_inputs + 2048


def test_micro_batches_need_the_memory_of_one_whatever_the_size_of_the_group():
    engine = shared(wide_policy(), rows_per_micro_batch=2, recompute=True, logprob_chunk=16, needs_focus=False)
    peaks = []
    for rows in (4, 16):
        group = make_group(PROMPT, [40] * rows)

        def update(group=group):
            look = engine.look(group, keep_graph=True, reference=False)
            engine.update(look, advantages_of(group), PLAIN, denominator=1.0)
            taken_gradients(engine._policy)

        update()
        peaks.append(allocations(update).peak)
    assert peaks[1] < 1.05 * peaks[0]


def test_a_shared_prompt_takes_less_memory_than_copies():
    policy = wide_policy()
    ways = {}
    for name, engine in (("shared", shared(policy, recompute=True)), ("batched", batched(policy, recompute=True))):
        learn(engine)
        ways[name] = allocations(lambda engine=engine: learn(engine)).peak
    assert ways["shared"] < 0.7 * ways["batched"]
