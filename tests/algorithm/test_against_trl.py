"""Losses and advantages against TRL's own code, called on tensors through a stand-in for its trainer."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from trl import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import nanstd

from tests.algorithm.batches import LOSSES, Step, gradient, objective_of
from tests.algorithm.groups import assert_close
from tests.tolerances import FLOAT64
from vgpo_lite.algorithm.advantages import group_advantages
from vgpo_lite.algorithm.objective import Objective

LENGTHS = [7, 2, 11, 5, 1]


def trl_loss(step: Step, objective: Objective) -> tuple[torch.Tensor, dict[str, list[float]]]:
    """TRL's loss of one step in one micro-batch, with the defaults of its configuration, and the metrics it logs."""
    padded = [torch.where(step.mask, tensor, 0) for tensor in (step.logprobs, step.old_logprobs, step.ref_logprobs)]
    logprobs, old_logprobs, ref_logprobs = padded
    is_gspo = objective.loss == "gspo"
    args = SimpleNamespace(
        use_bias_correction_kl=GRPOConfig.use_bias_correction_kl,
        delta=GRPOConfig.delta,
        steps_per_generation=1,
    )
    trainer = SimpleNamespace(
        args=args,
        loss_type="grpo" if is_gspo else objective.loss,
        importance_sampling_level="sequence" if is_gspo else "token",
        beta=objective.kl_coefficient,
        epsilon_low=objective.clip_low,
        epsilon_high=objective.clip_high,
        max_completion_length=objective.max_completion_length,
        current_gradient_accumulation_steps=1,
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda values: values, reduce=lambda values, reduction: values
        ),
        model=SimpleNamespace(training=True),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None),
        _metrics={"train": defaultdict(list)},
        _entropy_bonus_enabled=False,
        aux_loss_enabled=False,
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
    )
    ids = torch.zeros(step.mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": torch.ones_like(ids[:, :1]),
        "completion_ids": ids,
        "completion_mask": step.mask.long(),
        "advantages": torch.where(step.mask, step.advantages, 0),
        "old_per_token_logps": old_logprobs,
        "ref_per_token_logps": ref_logprobs,
        "num_items_in_batch": step.mask.sum(),
    }
    return GRPOTrainer._compute_loss(trainer, None, inputs), trainer._metrics["train"]


@pytest.mark.parametrize("kl_coefficient", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", ["dapo", "grpo", "dr_grpo", "cispo"])
def test_values_and_gradients_on_per_token_advantages_are_trl_s(loss, seed, kl_coefficient):
    step, objective = Step.random(LENGTHS, seed=seed), objective_of(loss, kl_coefficient=kl_coefficient)
    expected, _ = trl_loss(step, objective)
    actual = step.loss(objective).loss
    assert_close(actual, expected, FLOAT64)
    assert_close(gradient(actual, step), gradient(expected, step), FLOAT64)


@pytest.mark.parametrize("seed", range(3))
def test_gspo_has_trl_s_values_and_for_one_advantage_per_completion_its_gradients(seed):
    objective = objective_of("gspo")
    step = Step.random(LENGTHS, seed=seed)
    assert_close(step.loss(objective).loss, trl_loss(step, objective)[0], FLOAT64)
    step = Step.random(LENGTHS, seed=seed, per_token=False)
    expected, actual = trl_loss(step, objective)[0], step.loss(objective).loss
    assert_close(actual, expected, FLOAT64)
    assert_close(gradient(actual, step), gradient(expected, step), FLOAT64)


@pytest.mark.parametrize("loss", LOSSES)
def test_metrics_are_trl_s(loss):
    step, objective = Step.random(LENGTHS, seed=4), objective_of(loss, kl_coefficient=0.3)
    logged = trl_loss(step, objective)[1]
    sums = step.loss(objective).sums
    shares = {
        "kl": "kl",
        "clip_ratio/low_mean": "clip_low_share",
        "clip_ratio/high_mean": "clip_high_share",
        "clip_ratio/region_mean": "clip_share",
        "cispo_clip_ratio": "clip_high_share",
    }
    compared = {name: own for name, own in shares.items() if name in logged}
    assert len(compared) == (2 if loss == "cispo" else 4)
    if loss == "gspo":  # TRL counts completions there, and we count tokens
        compared = {"kl": "kl"}
    for name, own in compared.items():
        total, count = sums[f"policy/{own}"]
        assert float(total / count) == pytest.approx(logged[name][0], abs=1e-6)
        assert total > 0


def test_advantages_are_trl_s():
    rewards = torch.tensor([0.3, 1.0, 0.0, 1.5, 1.0], dtype=torch.float64)
    expected = (rewards - rewards.mean()) / (nanstd(rewards.view(1, -1), dim=1) + 1e-4)
    assert_close(group_advantages(rewards), expected, FLOAT64)
