"""Rollouts on shared prompts: exactly what the plain model would have generated, and nothing left behind."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from bitsandbytes.nn import Linear4bit

from tests.engine.allocations import allocations
from tests.engine.work import KINDS_OF_TOKENS
from tests.small_models import (
    EOS,
    IMAGE_PAD,
    MODEL_TYPES,
    PAD,
    VIDEO_PAD,
    VISION_END,
    VISION_PAD,
    VISION_START,
    make_prompt,
    seen_by,
    small_policy,
)
from vgpo_lite.data_types import Prompt, RolloutGroup, Sampling
from vgpo_lite.engine import rollout
from vgpo_lite.engine.batched_rollout import sample_groups_from_copies
from vgpo_lite.engine.rollout import DecodePlan, DecodeProgress, sample_groups
from vgpo_lite.models.attention import use_shared_attention
from vgpo_lite.models.modes import evaluating
from vgpo_lite.models.policy import Policy

VISION_IDS = (VISION_START, VISION_END, VISION_PAD, IMAGE_PAD, VIDEO_PAD)
SAMPLING = Sampling(num_generations=4, max_completion_length=20, seed=1)
MANY_ENDS = tuple(range(120, EOS + 1))  # a random model ends after some tokens, each row after a number of its own

PROMPTS = (
    make_prompt([(2, 3)], seed=1),
    make_prompt([(4, 2), (1, 2), (2, 2)], text=(3, 1, 2, 9), seed=2),
    make_prompt([], text=(5,), seed=3),
    make_prompt([(3, 3), (2, 1)], text=(1, 4, 12), seed=4),
)


def prompts_of(model_type: str) -> tuple[Prompt, ...]:
    """The same prompts as the family shows them."""
    return tuple(seen_by(model_type, prompt) for prompt in PROMPTS)


class SpokenIds:
    """A tokenizer whose words are its ids."""

    def decode(self, token_ids: torch.Tensor, **options: bool) -> str:
        assert options["skip_special_tokens"]
        return " ".join(str(token) for token in token_ids.tolist())


def make_policy(model_type="qwen2_vl", *, eos_ids=(EOS,), quantized=False) -> Policy:
    """A small policy as a run has it: in training mode, ready to share prompts."""
    policy = small_policy(model_type, quantized=quantized)
    use_shared_attention(policy.family.bare(policy.model))
    return replace(policy, eos_ids=eos_ids, processor=SimpleNamespace(tokenizer=SpokenIds()))


def plain_inputs(policy, prompt: Prompt, completion: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """What a processor would hand to the model."""
    ids = prompt.input_ids if completion is None else torch.cat([prompt.input_ids, completion])
    kinds = torch.zeros_like(ids)
    kinds[: len(prompt.image_mask)] = prompt.image_mask.long()
    inputs = {"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None], **prompt.vision}
    name = KINDS_OF_TOKENS.get(policy.family.model_type) if prompt.has_image else None
    return inputs if name is None else inputs | {name: kinds[None].int()}


def generated(policy, prompt: Prompt, tokens: int) -> list[int]:
    """What transformers generates greedily."""
    with evaluating(policy.model):
        ids = policy.model.generate(
            **plain_inputs(policy, prompt),
            max_new_tokens=tokens,
            do_sample=False,
            suppress_tokens=list(VISION_IDS),
            eos_token_id=list(policy.eos_ids),
            pad_token_id=PAD,
        )
    return ids[0, prompt.input_ids.shape[0] :].tolist()


def rows_of(group: RolloutGroup) -> list[list[int]]:
    return [ids[kept].tolist() for ids, kept in zip(group.completion_ids, group.completion_mask, strict=True)]


@torch.no_grad()
def teacher_forced(policy, group: RolloutGroup, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities by one plain forward per completion."""
    policy.family.bare(policy.model).model.rope_deltas = None
    logprobs = torch.zeros(group.completion_mask.shape)
    for place, ids in enumerate(rows_of(group)):
        completion = torch.tensor(ids)
        logits = policy.model(**plain_inputs(policy, group.prompt, completion), use_cache=False).logits[
            0, -len(ids) - 1 : -1
        ]
        logprobs[place, : len(ids)] = (logits / temperature).log_softmax(-1).gather(1, completion[:, None])[:, 0]
    return logprobs


def assert_same(groups, expected, tolerance: float = 2e-5) -> None:
    assert len(groups) == len(expected)
    for group, other in zip(groups, expected, strict=True):
        assert rows_of(group) == rows_of(other)
        assert torch.equal(group.finished, other.finished)
        assert group.texts == other.texts
        torch.testing.assert_close(group.sampling_logprobs, other.sampling_logprobs, atol=tolerance, rtol=0)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_greedy_decoding_equals_generate(model_type):
    policy, prompts = make_policy(model_type), prompts_of(model_type)
    free = [generated(policy, prompt, 24) for prompt in prompts]
    # Ends chosen so that the prompts' completions stop at different times, one of them never.
    first = next(token for token in free[0][4:] if token not in free[1])
    policy = replace(policy, eos_ids=(first, free[1][11], EOS))
    expected = [generated(policy, prompt, 24) for prompt in prompts]
    assert len({len(ids) for ids in expected}) >= 3
    greedy = Sampling(num_generations=2, max_completion_length=24, temperature=0.0)
    groups = sample_groups(policy, prompts, greedy, places=range(4))
    for group, ids in zip(groups, expected, strict=True):
        assert rows_of(group) == [ids, ids]
        assert group.finished.tolist() == [ids[-1] in policy.eos_ids] * 2


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_seen_while_sampling_equal_those_of_the_plain_model(model_type, temperature):
    policy = make_policy(model_type, eos_ids=MANY_ENDS)
    sampling = replace(SAMPLING, temperature=temperature, top_p=0.95, top_k=100)
    for group in sample_groups(policy, prompts_of(model_type), sampling, places=range(4)):
        expected = teacher_forced(policy, group, temperature)
        torch.testing.assert_close(group.sampling_logprobs, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_shared_prompts_draw_what_copies_draw(model_type):
    policy, prompts = make_policy(model_type, eos_ids=MANY_ENDS), prompts_of(model_type)
    shared = sample_groups(policy, prompts, SAMPLING, places=[5, 6, 7, 8])
    assert_same(shared, sample_groups_from_copies(policy, prompts, SAMPLING, places=[5, 6, 7, 8]))
    lengths = torch.cat([group.completion_mask.sum(1) for group in shared])
    assert lengths.min() < 4
    assert lengths.max() > 8


def test_a_completion_does_not_depend_on_what_decodes_beside_it():
    policy = make_policy(eos_ids=MANY_ENDS)
    together = sample_groups(policy, PROMPTS, SAMPLING, places=range(4))
    alone = [sample_groups(policy, [p], SAMPLING, places=[i])[0] for i, p in enumerate(PROMPTS)]
    assert_same(together, alone)
    halves = sample_groups(policy, PROMPTS, SAMPLING, places=range(4), plan=DecodePlan(prompts_per_decode=3))
    assert_same(together, halves)
    backwards = sample_groups(policy, PROMPTS[::-1], SAMPLING, places=[3, 2, 1, 0])
    assert_same(together, backwards[::-1])
    fewer = sample_groups(policy, PROMPTS, replace(SAMPLING, num_generations=2), places=range(4))
    assert [rows_of(group) for group in fewer] == [rows_of(group)[:2] for group in together]
    shorter = sample_groups(policy, PROMPTS, replace(SAMPLING, max_completion_length=5), places=range(4))
    assert [rows_of(group) for group in shorter] == [[ids[:5] for ids in rows_of(group)] for group in together]


def test_a_model_that_nobody_prepared_is_made_ready():
    fresh = replace(small_policy("qwen2_vl"), processor=SimpleNamespace(tokenizer=SpokenIds()))
    expected = sample_groups(make_policy(), PROMPTS, SAMPLING, places=range(4))
    assert_same(sample_groups(fresh, PROMPTS, SAMPLING, places=range(4)), expected, tolerance=0)


def test_no_prompts_give_no_groups():
    assert sample_groups(make_policy(), [], SAMPLING, places=[]) == []


def test_another_place_or_seed_draws_other_completions():
    policy = make_policy()
    first = rows_of(sample_groups(policy, PROMPTS[:1], SAMPLING, places=[0])[0])
    assert first != rows_of(sample_groups(policy, PROMPTS[:1], SAMPLING, places=[1])[0])
    assert first != rows_of(sample_groups(policy, PROMPTS[:1], replace(SAMPLING, seed=2), places=[0])[0])
    assert len({tuple(ids) for ids in first}) == 4


@pytest.mark.parametrize("retire_at", [0.0, 0.75, 1.0])
@pytest.mark.parametrize("first_room", [1, 3, 64])
def test_retiring_rows_and_making_room_change_nothing(monkeypatch, retire_at, first_room):
    policy = make_policy(eos_ids=MANY_ENDS)
    expected = sample_groups(policy, PROMPTS, SAMPLING, places=range(4))
    monkeypatch.setattr(rollout, "RETIRE_AT", retire_at)
    monkeypatch.setattr("vgpo_lite.engine.decode.FIRST_ROOM", first_room)
    assert_same(sample_groups(policy, PROMPTS, SAMPLING, places=range(4)), expected)


def test_rows_that_ended_leave_the_batch():
    policy = make_policy(eos_ids=MANY_ENDS)
    fed: list[int] = []
    hook = policy.family.final_norm(policy.model).register_forward_hook(lambda *seen: fed.append(seen[2].shape[0]))
    groups = sample_groups(policy, PROMPTS, SAMPLING, places=range(4))
    hook.remove()
    steps = fed[len(PROMPTS) :]
    alive = [sum(int(group.completion_mask.sum(1).gt(t + 1).sum()) for group in groups) for t in range(len(steps))]
    assert steps[0] == 16
    assert steps[-1] < 8
    # Slots are a rectangle, [prompt, slot], and leave when a quarter of them can.
    assert all(rows <= 16 and rows >= needed for rows, needed in zip(steps, alive, strict=True))
    assert sorted(steps, reverse=True) == steps


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_attention_seen_while_decoding_is_that_of_the_emitting_query(model_type):
    policy, prompts = make_policy(model_type, eos_ids=MANY_ENDS), prompts_of(model_type)
    groups = sample_groups(policy, prompts, SAMPLING, places=range(4), plan=DecodePlan(focus_signal="attention"))
    assert_same(groups, sample_groups(policy, prompts, SAMPLING, places=range(4)))
    bare = policy.family.bare(policy.model)
    bare.set_attn_implementation({"text_config": "eager"})
    for group in groups:
        if not group.prompt.has_image:
            assert group.decode_focus is None
            continue
        expected = torch.zeros(group.completion_mask.shape)
        for place, ids in enumerate(rows_of(group)):
            with torch.no_grad():
                inputs = plain_inputs(policy, group.prompt, torch.tensor(ids))
                attentions = policy.model(**inputs, output_attentions=True, use_cache=False).attentions
                weights = attentions[policy.family.capture_layer(policy.model)][0]
            first = group.prompt.input_ids.shape[0] - 1
            on_image = weights[:, first : first + len(ids), : first + 1][:, :, group.prompt.image_mask].sum(-1)
            expected[place, : len(ids)] = on_image.mean(0)
        torch.testing.assert_close(group.decode_focus, expected, atol=1e-6, rtol=0)
        assert group.decode_focus[group.completion_mask].std() > 0.01


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("tokens", [1, 20])
def test_similarity_seen_while_decoding_is_that_of_the_token_itself_the_last_one_too(model_type, tokens):
    policy = make_policy(model_type, eos_ids=MANY_ENDS)
    sampling = replace(SAMPLING, max_completion_length=tokens)
    prompts = prompts_of(model_type)
    groups = sample_groups(policy, prompts, sampling, places=range(4), plan=DecodePlan(focus_signal="similarity"))
    assert_same(groups, sample_groups(policy, prompts, sampling, places=range(4)))
    for group in groups:
        if not group.prompt.has_image:
            assert group.decode_focus is None
            continue
        expected = torch.zeros(group.completion_mask.shape)
        for place, ids in enumerate(rows_of(group)):
            with torch.no_grad():
                inputs = plain_inputs(policy, group.prompt, torch.tensor(ids))
                states = policy.family.bare(policy.model).model(**inputs, use_cache=False).last_hidden_state[0]
            mean = states[: group.prompt.input_ids.shape[0]][group.prompt.image_mask].mean(0)
            cosine = torch.cosine_similarity(states[-len(ids) :], mean, dim=-1)
            expected[place, : len(ids)] = (cosine + 1) / 2
        torch.testing.assert_close(group.decode_focus, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rows", [1, 3])
def test_one_token_and_one_row_are_enough(rows):
    policy = make_policy()
    sampling = Sampling(num_generations=rows, max_completion_length=1)
    for signal in (None, "attention", "similarity"):
        group = sample_groups(policy, PROMPTS[:1], sampling, places=[0], plan=DecodePlan(focus_signal=signal))[0]
        assert group.completion_ids.shape == (rows, 1)
        assert group.completion_mask.all()
        assert not group.finished.any()
        torch.testing.assert_close(group.sampling_logprobs, teacher_forced(policy, group), atol=2e-5, rtol=0)


def test_every_end_id_ends_a_completion_and_is_its_last_token():
    policy = make_policy(eos_ids=(30, 31, EOS))
    free = sample_groups(make_policy(), PROMPTS, replace(SAMPLING, max_completion_length=200), places=range(4))
    groups = sample_groups(policy, PROMPTS, replace(SAMPLING, max_completion_length=200), places=range(4))
    ends = []
    for group, other in zip(groups, free, strict=True):
        for ids, ended, long in zip(rows_of(group), group.finished.tolist(), rows_of(other), strict=True):
            assert ids == long[: len(ids)]
            assert not set(ids[:-1]) & {30, 31, EOS}
            assert ended == (ids[-1] in (30, 31, EOS))
            ends.append(ids[-1])
    assert {30, 31} <= set(ends)


def test_vision_ids_are_never_sampled():
    policy = make_policy()
    with torch.no_grad():
        policy.family.lm_head(policy.model).weight[list(VISION_IDS)] *= 30  # they would be drawn nearly always
    groups = sample_groups(policy, PROMPTS, SAMPLING, places=range(4))
    assert not any(set(ids) & set(VISION_IDS) for group in groups for ids in rows_of(group))


def test_what_lies_under_the_padding_is_clean():
    policy = make_policy(eos_ids=MANY_ENDS)
    plan = DecodePlan(focus_signal="similarity")
    for group in sample_groups(policy, PROMPTS, SAMPLING, places=range(4), plan=plan):
        assert group.completion_mask.sum(1).max() == group.completion_mask.shape[1]
        assert (group.completion_ids[~group.completion_mask] == PAD).all()
        assert (group.sampling_logprobs[~group.completion_mask] == 0).all()
        for tensor in (group.completion_ids, group.sampling_logprobs, group.completion_mask, group.finished):
            assert not tensor.is_inference()
            assert not tensor.requires_grad
            assert tensor.device.type == "cpu"


def test_a_training_model_under_gradient_checkpointing_decodes_the_same_and_goes_on_training():
    policy = make_policy(eos_ids=MANY_ENDS)
    policy.model.eval()
    expected = sample_groups(policy, PROMPTS, SAMPLING, places=range(4))
    policy.model.train()
    policy.model.base_model.model.model.visual.eval()
    policy.model.enable_input_require_grads()
    policy.family.bare(policy.model).gradient_checkpointing_enable({"use_reentrant": False})
    before = {name: module.training for name, module in policy.model.named_modules()}
    assert_same(sample_groups(policy, PROMPTS, SAMPLING, places=range(4)), expected, tolerance=0)
    assert_same(sample_groups_from_copies(policy, PROMPTS, SAMPLING, places=range(4)), expected)
    assert before == {name: module.training for name, module in policy.model.named_modules()}
    loss = policy.model(**plain_inputs(policy, PROMPTS[0]), use_cache=False).logits.sum()
    loss.backward()
    assert all(p.grad is not None for p in policy.model.parameters() if p.requires_grad)


def count_hooks(model: torch.nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in model.modules()
    )


@pytest.mark.parametrize("sample", [sample_groups, sample_groups_from_copies])
def test_a_stop_between_two_tokens_leaves_the_model_as_it_was(sample):
    policy = make_policy(eos_ids=MANY_ENDS)
    expected = sample(policy, PROMPTS, SAMPLING, places=range(4))
    bare = policy.family.bare(policy.model)
    attention = (bare.config.text_config._attn_implementation, bare.config.vision_config._attn_implementation)
    hooks, rope_deltas = count_hooks(policy.model), bare.model.rope_deltas

    def stop(progress: DecodeProgress) -> None:
        if progress.rows_alive < 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(policy, PROMPTS, SAMPLING, places=range(4), on_step=stop)
    assert all(module.training for module in policy.model.modules())
    assert torch.is_grad_enabled()
    assert count_hooks(policy.model) == hooks
    assert bare.model.rope_deltas is rope_deltas
    now = (bare.config.text_config._attn_implementation, bare.config.vision_config._attn_implementation)
    assert now == attention
    assert_same(sample(policy, PROMPTS, SAMPLING, places=range(4)), expected, tolerance=0)


@pytest.mark.parametrize("sample", [sample_groups, sample_groups_from_copies])
def test_progress_rises_to_its_limit(sample):
    policy = make_policy(eos_ids=MANY_ENDS)
    seen: list[DecodeProgress] = []
    options = {"plan": DecodePlan(prompts_per_decode=3)} if sample is sample_groups else {}
    sample(policy, PROMPTS, SAMPLING, places=range(4), on_step=seen.append, **options)
    done = [progress.done_tokens for progress in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1].limit_tokens == 4 * 4 * 20
    assert seen[-1].rows_alive == 0


def test_the_tower_and_the_prompt_run_once_per_prompt():
    policy = make_policy(eos_ids=MANY_ENDS)
    images, tokens = [], []
    hooks = [
        policy.family.vision_tower(policy.model).register_forward_hook(lambda *seen: images.append(1)),
        policy.family.final_norm(policy.model).register_forward_hook(lambda *seen: tokens.append(seen[2].shape[:2])),
    ]
    sample_groups(policy, PROMPTS, SAMPLING, places=range(4))
    for hook in hooks:
        hook.remove()
    assert len(images) == sum(prompt.has_image for prompt in PROMPTS)
    assert tokens[:4] == [(1, prompt.input_ids.shape[0]) for prompt in PROMPTS]
    assert {shape[1] for shape in tokens[4:]} == {1}


KEYS_AND_VALUES_OF_A_TOKEN = 3 * 2 * 2 * 16 * 4  # layers, keys and values, key heads, head size, bytes


def peak_bytes(policy, sampling: Sampling, sample=sample_groups) -> int:
    prompt = [make_prompt([(12, 16)], text=(20, 20))]
    sample(policy, prompt, sampling, places=[0])
    return allocations(lambda: sample(policy, prompt, sampling, places=[0])).peak


def test_a_prompt_is_held_once_whatever_the_size_of_the_group():
    policy, prompt_tokens = make_policy(), 12 * 16 + 42
    few, many = (Sampling(num_generations=rows, max_completion_length=4) for rows in (4, 24))
    expanded = 20 * prompt_tokens * KEYS_AND_VALUES_OF_A_TOKEN
    assert peak_bytes(policy, many) - peak_bytes(policy, few) < expanded / 4
    copies = [peak_bytes(policy, sampling, sample_groups_from_copies) for sampling in (few, many)]
    assert copies[1] - copies[0] > expanded  # what the measure sees where prompts are copied


def test_memory_follows_the_completions_and_not_their_limit():
    policy = make_policy(eos_ids=tuple(range(VISION_START)))  # every token ends its completion
    short, long = (Sampling(num_generations=4, max_completion_length=tokens) for tokens in (64, 4096))
    whole = 4 * 4096 * KEYS_AND_VALUES_OF_A_TOKEN
    assert peak_bytes(policy, long) - peak_bytes(policy, short) < whole / 10


def test_kept_features_spare_the_tower():
    policy = make_policy("qwen3_vl", eos_ids=MANY_ENDS)
    expected = sample_groups(policy, PROMPTS, SAMPLING, places=range(4))
    kept = {id(prompt): policy.family.encode_images(policy.model, prompt) for prompt in PROMPTS}
    images: list[int] = []
    hook = policy.family.vision_tower(policy.model).register_forward_hook(lambda *seen: images.append(1))
    plan = DecodePlan(features=lambda prompt: kept[id(prompt)])
    assert_same(sample_groups(policy, PROMPTS, SAMPLING, places=range(4), plan=plan), expected, tolerance=0)
    hook.remove()
    assert images == []


def test_four_bit_weights_decode_as_they_train_and_stay_as_they_are():
    policy = make_policy(eos_ids=MANY_ENDS, quantized=True)
    model = policy.model
    four_bit = [module for module in model.modules() if isinstance(module, Linear4bit)]
    before = [module.weight.clone() for module in four_bit]
    groups = sample_groups(policy, PROMPTS, SAMPLING, places=range(4))
    for group in groups:
        torch.testing.assert_close(group.sampling_logprobs, teacher_forced(policy, group), atol=2e-5, rtol=0)
    assert_same(sample_groups_from_copies(policy, PROMPTS, SAMPLING, places=range(4)), groups)
    # On processors with bfloat16 instructions bitsandbytes repacks the weights of an evaluating layer for good.
    assert len(four_bit) == 3 * 7
    assert all(torch.equal(module.weight, old) for module, old in zip(four_bit, before, strict=True))
    model(**plain_inputs(policy, PROMPTS[0]), use_cache=False).logits.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)
