"""How often what is run: one image encoding per prompt, one prompt per phase, no pass for focus alone."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.engine.work import PLAIN, advantages_of, batched, plain_inputs, shared, taken_gradients
from tests.small_models import MODEL_TYPES, make_group, make_prompt, seen_by, small_policy
from vgpo_lite.data_types import Sampling

PROMPT = make_prompt([(2, 3), (4, 2)], seed=1)
LENGTHS = (5, 9, 9, 1, 12)
GROUP = make_group(PROMPT, LENGTHS)
P, ALL_C, LONGEST = PROMPT.input_ids.shape[0], sum(LENGTHS), max(LENGTHS)
# The prompt's last token is fed with each completion, in the place of the completion's own last one.
UNDIVIDED, IN_TWOS = [P - 1, ALL_C], [P - 1, 5 + 9, 9 + 1, 12]


class IdsAsText:
    """Stands in for a processor: text is ids."""

    @property
    def tokenizer(self):
        return self

    def decode(self, ids, **_options):
        return " ".join(map(str, ids.tolist()))


@contextmanager
def counting(policy):
    """Image encodings, and the tokens of each forward of the language model; recomputation does not begin so early."""
    images: list[int] = []
    tokens: list[int] = []
    hooks = [
        policy.family.vision_tower(policy.model).register_forward_hook(lambda *seen: images.append(1)),
        policy.family.language_model(policy.model).register_forward_pre_hook(
            lambda _module, _args, given: tokens.append(given["inputs_embeds"].shape[:2].numel()), with_kwargs=True
        ),
    ]
    yield images, tokens
    for hook in hooks:
        hook.remove()


def learn(engine, group):
    look = engine.look(group, keep_graph=True, reference=False)
    engine.update(look, advantages_of(group), PLAIN, denominator=1.0)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("rows", [None, 5])
def test_an_undivided_group_runs_p_plus_gc_tokens_once_for_look_and_update_together(model_type, rows):
    policy = small_policy(model_type)
    group = replace(GROUP, prompt=seen_by(model_type, GROUP.prompt))
    with counting(policy) as (images, tokens):
        learn(shared(policy, recompute=True, rows_per_micro_batch=rows), group)
    assert images == [1]
    assert tokens == [group.prompt.input_ids.shape[0] - 1, ALL_C]


def test_micro_batches_run_p_plus_gc_tokens_when_focus_was_read_while_decoding():
    policy = small_policy("qwen2_vl")
    group = replace(GROUP, decode_focus=GROUP.sampling_logprobs)
    with counting(policy) as (images, tokens):
        learn(shared(policy, rows_per_micro_batch=2), group)
    assert images == [1]
    assert tokens == IN_TWOS


def test_micro_batches_spend_one_pass_on_focus_where_decoding_did_not_read_it():
    policy = small_policy("qwen2_vl")
    with counting(policy) as (images, tokens):
        learn(shared(policy, rows_per_micro_batch=2), GROUP)
    assert images == [1]
    assert tokens == IN_TWOS * 2


def test_micro_batches_spend_no_pass_on_focus_that_is_only_reported():
    policy = small_policy("qwen2_vl")
    with counting(policy) as (_, tokens):
        learn(shared(policy, rows_per_micro_batch=2, needs_focus=False), GROUP)
    assert tokens == IN_TWOS


def test_similarity_feeds_the_last_token_of_every_completion_too():
    policy = small_policy("qwen2_vl")
    with counting(policy) as (_, tokens):
        learn(shared(policy, focus_signal="similarity"), GROUP)
    assert tokens == [P - 1, ALL_C + len(LENGTHS)]


def test_old_log_probabilities_and_focus_come_from_one_pass():
    policy = small_policy("qwen2_vl")
    with counting(policy) as (images, tokens):
        engine = shared(policy, rows_per_micro_batch=5)
        signals = engine.look(GROUP, keep_graph=False, reference=False).signals
    assert images == [1]
    assert tokens == UNDIVIDED
    assert signals.old_logprobs is not None
    assert signals.focus is not None


def test_the_reference_costs_one_pass_more():
    policy = small_policy("qwen2_vl")
    with counting(policy) as (images, tokens):
        shared(policy, rows_per_micro_batch=5).look(GROUP, keep_graph=True, reference=True)
    assert images == [1]
    assert tokens == UNDIVIDED * 2


def test_nothing_behind_the_prompts_last_keys_and_values_is_run():
    policy = small_policy("qwen2_vl")
    last, ran = policy.family.layers(policy.model)[-1], []
    hook = last.mlp.register_forward_hook(lambda *seen: ran.append(seen[2].shape[:2].numel()))
    learn(shared(policy, recompute=True), GROUP)
    hook.remove()
    assert ran == [ALL_C]


@pytest.mark.parametrize("rows", [None, 2])
def test_a_prompt_is_encoded_once_for_rollout_look_and_update_together(rows):
    policy = replace(small_policy("qwen2_vl"), processor=IdsAsText())
    engine = shared(policy, rows_per_micro_batch=rows)
    prompts = [PROMPT, make_prompt([(2, 2)], seed=3), make_prompt([], seed=4)]
    with counting(policy) as (images, _):
        groups = engine.sample(prompts, Sampling(num_generations=3, max_completion_length=4), places=[0, 1, 2])
        for group in groups:
            learn(engine, group)
        assert len(images) == 2
        engine.forget()
        learn(engine, groups[0])
        assert len(images) == 3


def test_a_tower_that_learns_runs_again_whenever_it_may_have_changed():
    policy = small_policy("qwen2_vl", vision=True)
    engine = shared(policy)
    with counting(policy) as (images, _):
        learn(engine, GROUP)
        learn(engine, GROUP)
    assert len(images) == 2
    assert any("visual" in name for name in taken_gradients(policy))


def test_copies_run_g_times_p_plus_c_tokens():
    policy = small_policy("qwen2_vl")
    with counting(policy) as (images, tokens):
        learn(batched(policy), GROUP)
    assert images == [1]
    assert tokens == [len(LENGTHS) * (P + LONGEST)]


def test_the_count_is_that_of_a_plain_forward():
    policy = small_policy("qwen2_vl")
    with counting(policy) as (images, tokens):
        policy.model(**plain_inputs(policy, GROUP, 0))
    assert (images, tokens) == ([1], [P + LENGTHS[0]])
