"""Undivided, in micro-batches and on copies, the engine says what the plain model says, and learns what it would."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.engine.work import (
    PLAIN,
    advantages_of,
    assert_same,
    assert_same_gradients,
    batched,
    outcome,
    plain_logprobs,
    plain_outcome,
    shared,
    taken_gradients,
)
from tests.small_models import MODEL_TYPES, make_group, make_prompt, seen_alone, seen_by, small_policy
from vgpo_lite.algorithm.objective import Objective
from vgpo_lite.data_types import Sampling

TWO_IMAGES = make_prompt([(2, 3), (4, 2)], seed=1)
THREE_IMAGES = make_prompt([(2, 2), (1, 3), (3, 2)], text=(1, 2, 3, 9), seed=2)
ONE_IMAGE = make_prompt([(3, 3)], text=(2, 5), seed=3)
NO_IMAGE = make_prompt([], text=(7,), seed=4)
RAGGED = (5, 9, 9, 1, 12)

WAYS = {
    "undivided": {},
    "undivided, recomputing, chunks that do not divide": {"recompute": True, "logprob_chunk": 7, "focus_chunk": 5},
    "micro-batches of one row": {"rows_per_micro_batch": 1, "logprob_chunk": 3},
    "micro-batches of two rows, recomputing": {"rows_per_micro_batch": 2, "recompute": True},
    "micro-batches of four rows": {"rows_per_micro_batch": 4, "focus_chunk": 4},
}


@pytest.fixture(scope="module", params=MODEL_TYPES)
def policy(request):
    return small_policy(request.param)


@pytest.fixture(scope="module")
def plain(policy):
    group = make_group(seen_by(policy.model_id, TWO_IMAGES), RAGGED)
    return group, plain_outcome(policy, group)


@pytest.mark.parametrize("way", WAYS)
def test_a_shared_prompt_gives_what_the_plain_model_gives(policy, plain, way):
    group, expected = plain
    assert_same(outcome(shared, policy, group, **WAYS[way]), expected)


@pytest.mark.parametrize("way", [{}, {"rows_per_micro_batch": 2, "recompute": True, "logprob_chunk": 7}])
def test_copies_give_what_the_plain_model_gives(policy, plain, way):
    group, expected = plain
    assert_same(outcome(batched, policy, group, **way), expected)


@pytest.mark.parametrize("prompt", [ONE_IMAGE, THREE_IMAGES, NO_IMAGE], ids=["one image", "three images", "no image"])
@pytest.mark.parametrize("lengths", [(4, 4), (3, 8, 1, 8, 2, 2, 6, 7, 5)], ids=["group of 2", "group of 9"])
def test_images_and_group_sizes_do_not_matter(prompt, lengths):
    policy = small_policy("qwen3_vl")
    group = make_group(prompt, lengths)
    expected = plain_outcome(policy, group)
    assert_same(outcome(shared, policy, group), expected)
    assert_same(outcome(shared, policy, group, rows_per_micro_batch=2, recompute=True), expected)


@pytest.mark.parametrize(
    "size",
    [(16, 45), (32, 17), (31, 32), (8, 8), (3, 16)],
    ids=["cut", "cut and shrunk", "shrunk", "as it is", "nothing left"],
)
def test_a_lone_image_of_joined_tiles_gives_what_the_plain_model_gives(size):
    policy = small_policy("llava_onevision", vision=True)
    group = make_group(seen_alone(ONE_IMAGE, size), RAGGED)
    expected = plain_outcome(policy, group)
    assert_same(outcome(shared, policy, group), expected)
    assert_same(outcome(shared, policy, group, rows_per_micro_batch=2, recompute=True), expected)
    assert_same(outcome(batched, policy, group), expected)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_four_bit_weights_change_nothing_about_it(model_type):
    policy = small_policy(model_type, quantized=True)
    group = make_group(seen_by(model_type, TWO_IMAGES), RAGGED)
    expected = outcome(batched, policy, group)
    assert_same(outcome(shared, policy, group, recompute=True), expected)
    assert_same(outcome(shared, policy, group, rows_per_micro_batch=2, recompute=True), expected)
    four_bit = plain_logprobs(policy, group).detach()
    torch.testing.assert_close(expected.logprobs, four_bit, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("recompute", [False, True])
def test_adapters_inside_the_vision_tower_get_their_gradients(model_type, recompute):
    policy = small_policy(model_type, vision=True)
    group = make_group(seen_by(model_type, TWO_IMAGES), RAGGED)
    expected = plain_outcome(policy, group)
    assert any(f".{policy.family.tower}." in name for name in expected.gradients)
    assert_same(outcome(shared, policy, group, recompute=recompute), expected)
    assert_same(outcome(shared, policy, group, recompute=recompute, rows_per_micro_batch=2), expected)


def test_an_untied_head_is_used():
    policy = small_policy("qwen2_vl", tied=False)
    group = make_group(ONE_IMAGE, (3, 4))
    assert_same(outcome(shared, policy, group), plain_outcome(policy, group))


@pytest.mark.parametrize("rows", [None, 2])
def test_a_second_update_with_a_reference_equals_the_batched_one(rows):
    policy = small_policy("qwen2_5_vl")
    group = make_group(TWO_IMAGES, RAGGED)
    objective = Objective(loss="gspo", max_completion_length=16, kl_coefficient=0.3)
    results = []
    for make in (batched, shared):
        engine = make(policy, rows_per_micro_batch=rows, temperature=0.7)
        look = engine.look(group, keep_graph=False, reference=True)
        noise = torch.randn(group.completion_ids.shape, generator=torch.Generator().manual_seed(1))
        assert look.signals.old_logprobs is not None
        moved = replace(look, signals=replace(look.signals, old_logprobs=look.signals.old_logprobs + 0.1 * noise))
        metrics = engine.update(moved, advantages_of(group), objective, denominator=5.0)
        results.append((look.signals, metrics, taken_gradients(policy)))
    (left, left_metrics, left_gradients), (right, right_metrics, right_gradients) = results
    torch.testing.assert_close(left.ref_logprobs, right.ref_logprobs, rtol=1e-5, atol=1e-5)
    assert float((left.ref_logprobs - left.old_logprobs).abs().max()) > 0.1
    assert left_metrics.keys() == right_metrics.keys()
    for name, value in left_metrics.items():
        assert right_metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert_same_gradients(left_gradients, right_gradients)


def test_log_probabilities_take_the_temperature():
    policy = small_policy("qwen2_vl")
    group = make_group(ONE_IMAGE, (3, 4))
    seen = shared(policy, temperature=0.5).look(group, keep_graph=False, reference=False).signals.old_logprobs
    torch.testing.assert_close(seen, plain_logprobs(policy, group, 0.5).detach(), rtol=1e-5, atol=1e-5)


def test_rollout_then_forward_equals_forward_alone_and_what_was_seen_while_sampling():
    policy = small_policy("qwen3_vl")
    engine = shared(policy)
    before = engine.look(make_group(TWO_IMAGES, RAGGED), keep_graph=False, reference=False).signals
    policy = replace(policy, processor=_NoText())
    engine = shared(policy)
    sampling = Sampling(num_generations=3, max_completion_length=10, seed=3)
    group = engine.sample([TWO_IMAGES], sampling, places=[0])[0]
    after = engine.look(make_group(TWO_IMAGES, RAGGED), keep_graph=False, reference=False).signals
    assert torch.equal(before.old_logprobs, after.old_logprobs)
    seen = engine.look(group, keep_graph=False, reference=False).signals.old_logprobs
    torch.testing.assert_close(seen, group.sampling_logprobs, rtol=0, atol=1e-4)


class _NoText:
    """A processor whose tokenizer writes ids."""

    @property
    def tokenizer(self):
        return self

    def decode(self, ids, **_options):
        return " ".join(map(str, ids.tolist()))


@pytest.mark.parametrize("signal", ["attention", "similarity"])
def test_focus_read_while_decoding_serves_micro_batches(signal):
    policy = replace(small_policy("qwen2_vl"), processor=_NoText())
    engine = shared(policy, rows_per_micro_batch=2, focus_signal=signal)
    group = engine.sample([TWO_IMAGES], Sampling(num_generations=5, max_completion_length=9, seed=1), places=[0])[0]
    observed = engine.look(group, keep_graph=False, reference=False).signals.focus
    torch.testing.assert_close(group.decode_focus, observed, rtol=0, atol=1e-5)
    assert engine.look(group, keep_graph=True, reference=False).signals.focus is not None


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    grids=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=0, max_size=3),
    text=st.lists(st.integers(2, 6), min_size=4, max_size=4),
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    rows=st.one_of(st.none(), st.integers(2, 5)),
    chunk=st.integers(1, 11),
    recompute=st.booleans(),
    model_type=st.sampled_from(MODEL_TYPES),
)
def test_any_layout_equals_the_batched_way(grids, text, lengths, rows, chunk, recompute, model_type):
    policy = POLICIES[model_type]
    group = make_group(seen_by(model_type, make_prompt(grids, text=text)), lengths)
    ways = {"logprob_chunk": chunk, "focus_chunk": chunk, "recompute": recompute, "rows_per_micro_batch": rows}
    assert_same(outcome(shared, policy, group, **ways), outcome(batched, policy, group), floor=0.05)


POLICIES = {model_type: small_policy(model_type) for model_type in MODEL_TYPES}


def test_an_update_only_adds_to_the_gradient():
    policy = small_policy("qwen2_vl")
    group, engine = make_group(ONE_IMAGE, (3, 4)), shared(policy)
    for _ in range(2):
        look = engine.look(group, keep_graph=True, reference=False)
        engine.update(look, advantages_of(group), PLAIN, denominator=7.0)
    twice = taken_gradients(policy)
    engine.update(engine.look(group, keep_graph=True, reference=False), advantages_of(group), PLAIN, denominator=3.5)
    assert_same_gradients(twice, taken_gradients(policy))
