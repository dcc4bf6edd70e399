"""One test per trap that was seen on the way to this engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model

from tests.engine.work import (
    PLAIN,
    advantages_of,
    assert_same,
    assert_same_gradients,
    batched,
    outcome,
    plain_inputs,
    plain_outcome,
    shared,
    taken_gradients,
)
from tests.small_models import (
    IMAGE_PAD,
    MODEL_TYPES,
    TEXT,
    VIDEO_PAD,
    VISION_END,
    VISION_PAD,
    VISION_START,
    WINDOW,
    make_group,
    make_prompt,
    seen_by,
    small_model,
    small_policy,
)
from vgpo_lite.config.schema import RunConfig
from vgpo_lite.engine import make_engine
from vgpo_lite.engine.capture import AttentionCapture
from vgpo_lite.engine.stages import PromptStage
from vgpo_lite.errors import ConfigError
from vgpo_lite.models.checkpointing import allow_recomputation

PROMPT = make_prompt([(2, 3), (4, 2)], seed=1)
GROUP = make_group(PROMPT, (5, 9, 9, 1, 12))
SIGNALS = ("attention", "similarity")


def looked(engine, group=GROUP):
    return engine.look(group, keep_graph=False, reference=False).signals


def learned(policy, engine, group=GROUP):
    look = engine.look(group, keep_graph=True, reference=False)
    engine.update(look, advantages_of(group), PLAIN, denominator=float(group.token_count))
    return taken_gradients(policy)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("make", [shared, batched])
def test_a_vision_id_in_a_completion_changes_nothing_but_its_own_row(model_type, make):
    policy = small_policy(model_type)
    group = replace(GROUP, prompt=seen_by(model_type, PROMPT))
    ids = group.completion_ids.clone()
    ids[1, :5] = torch.tensor([IMAGE_PAD, VISION_START, VIDEO_PAD, VISION_END, VISION_PAD])
    forced = replace(group, completion_ids=ids)
    others = torch.tensor([0, 2, 3, 4])
    for signal in SIGNALS:
        engine = make(policy, focus_signal=signal)
        before, after = looked(engine, group), looked(engine, forced)
        torch.testing.assert_close(after.old_logprobs[others], before.old_logprobs[others], rtol=0, atol=1e-5)
        torch.testing.assert_close(after.focus[others], before.focus[others], rtol=0, atol=1e-6)
        assert not torch.allclose(after.old_logprobs[1], before.old_logprobs[1], atol=0.1)
        assert torch.isfinite(after.old_logprobs).all()
    with pytest.raises((ValueError, IndexError), match=r"do not match|out of bounds"):  # the standard forward's answer
        policy.model(**plain_inputs(policy, forced, 1))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_padding_masks_are_kept_under_the_registered_name(model_type):
    policy = small_policy(model_type)
    bare = policy.family.bare(policy.model).eval()
    rows = torch.stack([PROMPT.input_ids, torch.cat([torch.zeros(4, dtype=torch.long), PROMPT.input_ids[:-4]])])
    mask = torch.ones_like(rows)
    mask[1, :4] = 0  # left padding: a causal mask alone would let it be seen
    logits = {}
    for name in ("sdpa", "vgpo_lite"):
        bare.set_attn_implementation({"text_config": name})
        with torch.no_grad():
            logits[name] = bare(input_ids=rows, attention_mask=mask).logits[1, 4:]
            unmasked = bare(input_ids=rows).logits[1, 4:]
    assert torch.equal(logits["vgpo_lite"], logits["sdpa"])
    assert (unmasked - logits["sdpa"]).abs().max() > 0.1


def test_the_vision_tower_keeps_its_own_attention():
    policy = small_policy("qwen2_5_vl")
    shared(policy)
    config = policy.family.bare(policy.model).config
    assert config.text_config._attn_implementation == "vgpo_lite"
    assert config.vision_config._attn_implementation == "sdpa"


def test_everything_checkpointed_in_train_mode_changes_nothing():
    policy = small_policy("qwen2_vl")
    engine = shared(policy, recompute=False)
    signals, gradients = looked(engine), learned(policy, engine)
    policy.family.bare(policy.model).gradient_checkpointing_enable({"use_reentrant": False})
    policy.model.train()
    assert torch.equal(looked(engine).old_logprobs, signals.old_logprobs)
    assert_same_gradients(learned(policy, engine), gradients)
    assert all(module.training for module in policy.model.modules())


def test_nothing_before_the_first_adapter_is_differentiated():
    policy = small_policy("qwen2_vl")
    policy.model.enable_input_require_grads()
    engine, inputs = shared(policy, recompute=True), []
    layer = policy.family.layers(policy.model)[0]
    hook = layer.register_forward_pre_hook(lambda _module, args: inputs.append(args[0].requires_grad))
    learned(policy, engine)
    hook.remove()
    assert inputs == [False] * 4  # prompt and completions, the forward and its second run
    features = policy.family.encode_images(policy.model, PROMPT)
    assert not features.image_embeds.requires_grad


def test_allowing_recomputation_leaves_no_hook_and_no_gradient_on_embeddings():
    language_model = small_policy("qwen2_vl").family.language_model(small_policy("qwen2_vl").model)
    language_model.gradient_checkpointing_enable({"use_reentrant": False})
    allow_recomputation(language_model)
    assert not language_model.embed_tokens._forward_hooks
    assert not language_model.embed_tokens(torch.tensor([1])).requires_grad


def test_positions_left_by_a_generation_are_not_used():
    policy = small_policy("qwen2_vl")
    engine = shared(policy)
    before = looked(engine)
    inner = policy.family.bare(policy.model).model
    inner.rope_deltas = torch.tensor([[-77]])
    after = looked(engine)
    assert torch.equal(before.old_logprobs, after.old_logprobs)
    assert inner.rope_deltas.item() == -77


@pytest.mark.parametrize("rows", [None, 2])
def test_dropout_in_a_loaded_adapter_does_not_separate_old_and_new_log_probabilities(rows):
    model = small_model("qwen2_vl")
    policy = small_policy("qwen2_vl")
    settings = LoraConfig(
        r=4, lora_dropout=0.3, target_modules=policy.family.lora_targets(vision=False), init_lora_weights=False
    )
    policy = replace(policy, model=get_peft_model(model, settings).train())
    engine = shared(policy, recompute=True, rows_per_micro_batch=rows)
    look = engine.look(GROUP, keep_graph=False, reference=False)
    metrics = engine.update(look, advantages_of(GROUP), PLAIN, denominator=1.0)
    ratio, tokens = metrics["policy/ratio"]
    assert ratio == pytest.approx(tokens, rel=1e-5)
    first = taken_gradients(policy)
    engine.update(look, advantages_of(GROUP), PLAIN, denominator=1.0)
    assert_same_gradients(taken_gradients(policy), first)


def test_the_second_run_of_a_checkpointed_layer_is_not_captured(monkeypatch):
    sights = []
    see = AttentionCapture.see

    def counted(self, layer, query, key, *, scale):
        see(self, layer, query, key, scale=scale)
        sights.append((layer, len(self._seen), any(seen.query.requires_grad for seen in self._seen)))

    monkeypatch.setattr(AttentionCapture, "see", counted)
    policy = small_policy("qwen2_vl")
    engine = batched(policy, recompute=True)  # every layer runs twice
    look = engine.look(GROUP, keep_graph=True, reference=False)
    focus = look.signals.focus.clone()
    engine.update(look, advantages_of(GROUP), PLAIN, denominator=1.0)
    assert sorted(layer for layer, _, _ in sights) == [0, 0, 1, 1, 2, 2]
    assert {(kept, with_graph) for _, kept, with_graph in sights} == {(0, False), (1, False)}
    assert torch.equal(look.signals.focus, focus)


def test_keys_and_values_of_a_second_run_are_not_the_graphs_and_not_kept():
    stage, runs = PromptStage([None]), [tuple(torch.randn(1, 2, 3, 8) for _ in range(3)) for _ in range(2)]
    for query, key, value in runs:
        stage.attend(0, query, key, value, scale=1.0)
    assert stage.keys_values[0][0] is runs[0][1]
    assert stage.keys_values[0][1] is runs[0][2]


@pytest.mark.parametrize("rows", [None, 2])
def test_the_last_token_of_every_completion_is_fed(rows):
    policy = small_policy("qwen2_vl")
    found = looked(shared(policy, focus_signal="similarity", rows_per_micro_batch=rows)).focus
    changed = GROUP.completion_ids.clone()
    last = GROUP.completion_mask.sum(dim=1) - 1
    changed[torch.arange(5), last] = (changed[torch.arange(5), last] + 1) % 140
    engine = shared(policy, focus_signal="similarity", rows_per_micro_batch=rows)
    moved = (looked(engine, replace(GROUP, completion_ids=changed)).focus - found).abs() > 1e-4
    assert moved.sum(dim=1).tolist() == [1] * 5
    assert moved[torch.arange(5), last].all()


@pytest.mark.parametrize("make", [shared, batched])
def test_what_lies_under_the_padding_may_be_anything(make):
    policy = small_policy("qwen2_vl")
    engine = make(policy)
    before = looked(engine)
    group = replace(GROUP, completion_ids=GROUP.completion_ids.masked_fill(~GROUP.completion_mask, -100))
    after = looked(engine, group)
    assert torch.equal(before.old_logprobs, after.old_logprobs)
    assert (after.old_logprobs[~GROUP.completion_mask] == 0).all()
    assert (after.focus[~GROUP.completion_mask] == 0).all()


def test_four_bit_weights_stay_as_they_are():
    policy = small_policy("qwen2_vl", quantized=True)
    layers = [module for module in policy.model.modules() if isinstance(module, Linear4bit)]
    before = [layer.weight.clone() for layer in layers]
    engine = shared(policy, recompute=True)
    looked(engine)
    gradients = learned(policy, engine)
    assert len(layers) == 21
    assert all(torch.equal(layer.weight, old) for layer, old in zip(layers, before, strict=True))
    assert all(layer.training for layer in layers)
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


def test_an_order_of_rows_and_a_slice_of_them_change_nothing():
    policy = small_policy("qwen2_vl")
    engine, order = shared(policy), torch.tensor([3, 0, 4, 2, 1])
    shuffled = replace(GROUP, completion_ids=GROUP.completion_ids[order], completion_mask=GROUP.completion_mask[order])
    torch.testing.assert_close(looked(engine, shuffled).focus, looked(engine).focus[order], rtol=0, atol=1e-6)
    few = replace(
        GROUP,
        completion_ids=GROUP.completion_ids[:2],
        completion_mask=GROUP.completion_mask[:2],
        texts=GROUP.texts[:2],
    )
    torch.testing.assert_close(looked(engine, few).focus, looked(engine).focus[:2], rtol=0, atol=1e-6)


def test_sixteen_bit_models_agree_to_their_own_rounding():
    policy = small_policy("qwen2_vl")
    exact = looked(batched(policy)).old_logprobs
    policy.model.to(torch.bfloat16)
    ways = [looked(engine).old_logprobs for engine in (batched(policy), shared(policy))]
    rounding = (ways[0] - exact).abs().max()
    assert (ways[1] - exact).abs().max() < 2 * rounding
    for gradient in learned(policy, shared(policy, recompute=True)).values():
        assert torch.isfinite(gradient).all()


def test_the_configuration_chooses_the_engine():
    policy = small_policy("qwen2_vl")
    config = RunConfig.model_validate({"memory": {"rows_per_micro_batch": 3}, "focus": {"signal": "similarity"}})
    engine = make_engine(policy, config)
    assert type(engine._engine).__name__ == "SharedEngine"  # inside the one that backs off
    assert engine.settings.rows_per_micro_batch == 3
    assert engine.settings.focus_signal == "similarity"
    assert engine.settings.recompute
    assert type(make_engine(policy, RunConfig(engine="batched"))._engine).__name__ == "BatchedEngine"


def test_windows_are_kept_in_any_family(monkeypatch):
    monkeypatch.setitem(TEXT, "use_sliding_window", True)
    monkeypatch.setitem(TEXT, "sliding_window", WINDOW)
    monkeypatch.setitem(TEXT, "layer_types", ["sliding_attention", "full_attention", "sliding_attention"])
    policy = small_policy("qwen2_5_vl")
    assert policy.family.windows(policy.model) == (WINDOW, None, WINDOW)
    assert policy.family.capture_layer(policy.model) == 1
    expected = plain_outcome(policy, GROUP)
    assert_same(outcome(shared, policy, GROUP), expected)
    assert_same(outcome(shared, policy, GROUP, rows_per_micro_batch=2, recompute=True), expected)
    assert_same(outcome(batched, policy, GROUP), expected)
    monkeypatch.setitem(TEXT, "layer_types", ["full_attention"] * 3)
    everywhere = plain_outcome(small_policy("qwen2_5_vl"), GROUP)
    assert float((everywhere.logprobs - expected.logprobs).abs().max()) > 0.1


def test_a_model_with_layers_of_an_unknown_kind_is_refused_by_the_shared_engine_alone():
    policy = small_policy("qwen2_vl")
    config = policy.family.language_model(policy.model).config
    config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    with pytest.raises(ConfigError, match="engine=batched"):
        make_engine(policy, RunConfig())
    assert policy.family.capture_layer(policy.model) == 2
