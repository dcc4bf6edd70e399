"""A copy that samples: the same model up to rounding, gone when sampling is over, and the first thing given up."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from tests.engine.test_backoff import faults, patient
from tests.engine.test_counts import IdsAsText
from tests.engine.work import PLAIN, advantages_of, shared, taken_gradients
from tests.small_models import make_group, make_prompt, small_model, small_policy
from vgpo_lite.algorithm.surrogate import importance_weight
from vgpo_lite.data_types import Sampling
from vgpo_lite.engine.backoff import DecodeSizes
from vgpo_lite.errors import ModelError
from vgpo_lite.models.decode_copy import DecodeCopy
from vgpo_lite.models.quantization import plain_weight

PROMPTS = [make_prompt([(2, 3), (4, 2)], seed=1), make_prompt([], seed=4)]
SAMPLING = Sampling(num_generations=3, max_completion_length=9, seed=3)
GREEDY = replace(SAMPLING, temperature=0.0)
PLACES = [11, 12]
ROUNDING = 2e-5
"""float32 log-probabilities of about 5, through three layers whose sums are taken in another order."""


@pytest.fixture
def policy():
    return replace(small_policy("qwen2_vl", quantized=True), processor=IdsAsText())


def linears(policy):
    """What stands where a linear layer of the language model does, by name."""
    layers = policy.family.language_model(policy.model).layers
    return {name: module for name, module in layers.named_modules() if name.endswith("_proj")}


def assert_as_it_was(policy, before):
    assert linears(policy) == before
    for module in before.values():
        assert isinstance(module, LoraLayer)
        assert isinstance(module.base_layer, Linear4bit)


def by_hand(module):
    """W + alpha/r B A in float64."""
    weight = plain_weight(module.base_layer).double()
    a, b = module.lora_A["default"].weight.double(), module.lora_B["default"].weight.double()
    return weight + module.scaling["default"] * b @ a


@pytest.mark.parametrize("name", ["shared", "batched"])
@pytest.mark.parametrize("sampling", [SAMPLING, GREEDY], ids=["sampled", "greedy"])
def test_a_copy_samples_the_same_tokens_with_the_same_values(policy, name, sampling):
    expected = patient(name, policy).sample(PROMPTS, sampling, places=PLACES)
    before = linears(policy)
    found = patient(name, policy, decode_weights="copy").sample(PROMPTS, sampling, places=PLACES)
    assert_as_it_was(policy, before)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.completion_ids, theirs.completion_ids)
        torch.testing.assert_close(ours.sampling_logprobs, theirs.sampling_logprobs, rtol=0, atol=ROUNDING)
        assert not torch.equal(ours.sampling_logprobs, theirs.sampling_logprobs)  # something else did sample
        if theirs.decode_focus is not None:
            torch.testing.assert_close(ours.decode_focus, theirs.decode_focus, rtol=0, atol=ROUNDING)


def test_every_layer_is_an_ordinary_one_with_base_and_adapter_rounded_once(policy):
    policy = replace(policy, dtype=torch.bfloat16)
    own = linears(policy)
    with DecodeCopy(policy).in_place():
        copies = linears(policy)
        assert copies.keys() == own.keys()
        for name, copy in copies.items():
            assert type(copy) is nn.Linear
            assert copy.bias is own[name].base_layer.bias
            base, exact = plain_weight(own[name].base_layer).to(torch.bfloat16).double(), by_hand(own[name])
            delta = exact - plain_weight(own[name].base_layer).double()
            off = (copy.weight.double() - (base + delta)).abs()
            assert bool((off <= (base + delta).abs() * 2**-8 + 1e-9).all())


@pytest.mark.parametrize("rows", [1, 7, 1024])
def test_a_copy_follows_the_adapters_without_moving(policy, monkeypatch, rows):
    monkeypatch.setattr("vgpo_lite.models.decode_copy.ROWS", rows)
    copy = DecodeCopy(policy)
    assert not copy.is_made
    with copy.in_place():
        first = {name: (module.weight.data_ptr(), module.weight.clone()) for name, module in linears(policy).items()}
    with torch.no_grad():
        for parameter in policy.adapters().values():
            parameter.mul_(1.5)
    with copy.in_place():
        for name, module in linears(policy).items():
            assert module.weight.data_ptr() == first[name][0]
            assert not torch.equal(module.weight, first[name][1])
    for (name, own), (place, _) in zip(linears(policy).items(), first.values(), strict=True):
        with copy.in_place():
            after = linears(policy)[name].weight
            assert after.data_ptr() == place
            torch.testing.assert_close(after.double(), by_hand(own), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, torch.OutOfMemoryError])
def test_the_layers_are_back_whatever_ends_the_sampling(policy, error):
    engine, before = patient("shared", policy, decode_weights="copy"), linears(policy)

    def stop(progress):
        assert linears(policy) != before
        raise error("stop")

    if error is torch.OutOfMemoryError:
        with pytest.raises(Exception, match="out of memory"):  # at every size
            engine.sample(PROMPTS, SAMPLING, places=PLACES, on_step=lambda _: stop_always(error))
    else:
        with pytest.raises(error, match="stop"):
            engine.sample(PROMPTS, SAMPLING, places=PLACES, on_step=stop)
    assert_as_it_was(policy, before)


def stop_always(error):
    raise error("out of memory")


def test_the_copy_is_what_is_given_up_first_when_decoding_runs_out_of_memory_and_its_memory_is_free(policy):
    expected = patient("shared", policy).sample(PROMPTS, SAMPLING, places=PLACES)
    told = []
    engine = patient("shared", policy, told, decode_weights="copy")
    with engine._copy.in_place():
        weights = [weakref.ref(module.weight) for module in linears(policy).values()]
    with faults(policy, forward=[3]):
        found = engine.sample(PROMPTS, SAMPLING, places=PLACES)
    assert [backoff.sizes for backoff in told] == [{"decode_weights": ("copy", "quantized")}]
    assert not any(weight() is not None for weight in weights)
    assert engine.settings.decode_weights == "quantized"
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.sampling_logprobs, theirs.sampling_logprobs)
    with faults(policy, forward=[3]):
        engine.sample(PROMPTS, SAMPLING, places=PLACES)
    assert told[-1].sizes == {"memory.prompts_per_decode": (2, 1)}
    assert engine._decode == {3: DecodeSizes(1, 3)}
    resumed = patient("shared", policy, decode_weights="copy")
    assert resumed.restore_sizes(engine.shrunk_sizes())[0] == "decode_weights is quantized"
    before = linears(policy)
    resumed.sample(PROMPTS, SAMPLING, places=PLACES, on_step=lambda _: assert_as_it_was(policy, before))


def test_an_update_that_runs_out_of_memory_gives_up_a_copy_that_is_there_before_its_own_sizes(policy):
    group, told = make_group(PROMPTS[0], (4, 2, 7)), []
    engine = patient("shared", policy, told, decode_weights="copy")

    def gradient(**faulty):
        look = engine.look(group, keep_graph=False, reference=False)
        with faults(policy, **faulty):
            engine.update(look, advantages_of(group), PLAIN, denominator=13.0)
        return taken_gradients(policy)

    expected = gradient()
    with engine._copy.in_place():
        pass
    found = gradient(backward=[0])
    assert [backoff.sizes for backoff in told] == [{"decode_weights": ("copy", "quantized")}]
    assert all(torch.equal(found[name], values) for name, values in expected.items())
    gradient(backward=[0])
    assert "memory.rows_per_micro_batch" in told[-1].sizes


def test_a_copy_that_takes_no_memory_yet_is_not_given_up_for_an_update(policy):
    told = []
    engine = patient("shared", policy, told, decode_weights="copy")
    with faults(policy, forward=[0]):
        engine.look(make_group(PROMPTS[0], (4, 2)), keep_graph=False, reference=False)
    assert all("decode_weights" not in backoff.sizes for backoff in told)
    assert told


def other_adapters(**form):
    model = small_model("qwen2_vl")
    plain = small_policy("qwen2_vl")
    settings = LoraConfig(
        r=4, lora_alpha=8, target_modules=plain.family.lora_targets(vision=False), init_lora_weights=False, **form
    )
    wrapped = get_peft_model(model, settings)
    assert isinstance(wrapped, PeftModel)
    return replace(plain, model=wrapped, processor=IdsAsText())


def test_rank_stabilized_adapters_are_scaled_as_their_layer_scales_them():
    policy = other_adapters(use_rslora=True)  # alpha / sqrt(r) = 4
    before = linears(policy)
    with DecodeCopy(policy).in_place():
        for name, copy in linears(policy).items():
            own = before[name]
            weight = own.base_layer.weight + 4 * own.lora_B["default"].weight @ own.lora_A["default"].weight
            torch.testing.assert_close(copy.weight, weight, rtol=1e-5, atol=1e-5)


def test_an_adapter_that_is_more_than_a_product_is_refused_by_name():
    policy = other_adapters(use_dora=True)
    before = linears(policy)
    refusal = pytest.raises(ModelError, match=r"self_attn.q_proj is no plain LoRA.*decode_weights=quantized")
    with refusal, DecodeCopy(policy).in_place():
        pass
    assert linears(policy) == before


@pytest.mark.parametrize("rows", [None, 2], ids=["undivided", "micro-batches"])
@pytest.mark.parametrize("keep_graph", [True, False])
def test_the_gradient_is_that_of_a_loss_that_weighs_each_token(policy, rows, keep_graph):
    group = make_group(PROMPTS[0], (4, 2, 7))
    engine = shared(policy, rows_per_micro_batch=rows)
    old = engine.look(group, keep_graph=False, reference=False).signals.old_logprobs
    apart = torch.linspace(-1.5, 1.5, old.numel()).view_as(old)
    group = replace(group, sampling_logprobs=old - apart)
    weight = importance_weight(old, group.sampling_logprobs, cap=2.0)
    kept = weight[group.completion_mask]
    assert bool((kept == 2.0).any())
    assert bool((kept < 2.0).any())

    def gradient(objective, advantages):
        look = engine.look(group, keep_graph=keep_graph, reference=False)
        engine.update(look, advantages, objective, denominator=13.0)
        return taken_gradients(policy)

    found = gradient(replace(PLAIN, importance_cap=2.0), advantages_of(group))
    expected = gradient(PLAIN, advantages_of(group) * weight)  # at a ratio of 1 the weight is one of the advantage
    unweighted = gradient(PLAIN, advantages_of(group))
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(found[name], values, rtol=0.05) for name, values in unweighted.items())
