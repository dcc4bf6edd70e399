"""The plan of an update: within its memory, no slower than it must be, and true to what is really allocated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.allocations import allocations
from tests.engine.work import PLAIN, advantages_of, assert_same_gradients, batched, shared, taken_gradients
from tests.small_models import make_group, make_prompt, small_policy
from vgpo_lite.planning import update as planning
from vgpo_lite.planning.update import Sizes, UpdatePlan, undivided, update_plan

SIZES = st.builds(
    Sizes,
    prompt=st.integers(2, 4000),
    completion=st.integers(1, 2000),
    rows=st.integers(2, 24),
    layers=st.integers(1, 36),
    layer_bytes=st.just(2**30),
)


def ordinary(sizes: Sizes, *, recompute: bool) -> float:
    return sizes.rows * planning._kept(sizes.prompt + sizes.completion, 1 if recompute else sizes.layers, sizes.layers)


@given(sizes=SIZES, recompute=st.booleans(), weight_tokens=st.sampled_from([16, 160]))
def test_a_plan_takes_a_quarter_of_the_ordinary_memory_or_the_least_there_is(sizes, recompute, weight_tokens):
    plan = update_plan(sizes, recompute=recompute, weight_tokens=weight_tokens)
    least = UpdatePlan(1, *((1, 1) if recompute else (sizes.layers, sizes.layers)))
    least_memory = planning._memory(least, sizes)
    limit = 0.25 * ordinary(sizes, recompute=recompute)
    assert planning._memory(plan, sizes) <= max(limit, least_memory) + 1e-9
    assert 1 <= plan.rows <= sizes.rows
    if not recompute:
        assert plan.kept_layers == plan.kept_prompt_layers == sizes.layers


def test_a_long_prompt_leaves_the_group_undivided():
    sizes = Sizes(prompt=1088, completion=68, rows=8, layers=6, layer_bytes=63_000)
    assert update_plan(sizes, recompute=False, weight_tokens=16) == undivided(sizes, recompute=False)


def test_memory_that_is_left_spares_the_second_run():
    sizes = Sizes(prompt=288, completion=80, rows=8, layers=6, layer_bytes=63_000)
    assert update_plan(sizes, recompute=True, weight_tokens=16).kept_layers == 6


def test_a_small_update_is_not_divided_at_all():
    sizes = Sizes(prompt=20, completion=8, rows=8, layers=6, layer_bytes=10_000)
    assert update_plan(sizes, recompute=True, weight_tokens=16) == undivided(sizes, recompute=True)
    assert update_plan(replace(sizes, layer_bytes=10**9), recompute=True, weight_tokens=16).rows < 8


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("grid", "tokens"), [((8, 12), 24), ((4, 6), 60), ((12, 12), 10)])
def test_an_automatic_update_takes_a_third_of_the_memory_of_copies_at_most(recompute, grid, tokens):
    policy = small_policy("qwen2_vl", layers=6)
    group = make_group(make_prompt([grid], text=(4, 12)), [tokens] * 8)
    group = replace(group, decode_focus=torch.full(group.completion_ids.shape, 0.5))
    peaks, gradients = [], []
    for make in (shared, batched):
        engine = make(policy, recompute=recompute, logprob_chunk=8)
        engine._layer_bytes = 2**30  # as if the model were large: small updates are not divided

        def update(engine=engine):
            look = engine.look(group, keep_graph=True, reference=False)
            engine.update(look, advantages_of(group), PLAIN, denominator=float(group.token_count))

        update()
        taken_gradients(policy)
        peaks.append(allocations(update).peak)
        gradients.append(taken_gradients(policy))
    assert peaks[0] < peaks[1] / 3
    assert_same_gradients(gradients[0], gradients[1])
