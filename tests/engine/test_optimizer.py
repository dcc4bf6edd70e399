from __future__ import annotations

import math

import pytest
import torch

from vgpo_lite.config.schema import RunConfig
from vgpo_lite.engine.optimizer import LossScale, apply_gradients, learning_rate, make_optimizer


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_is_that_of_transformers_schedules(schedule: str) -> None:
    from transformers import get_scheduler

    config = RunConfig(max_steps=20, warmup_ratio=0.25, learning_rate=0.5, lr_scheduler_type=schedule)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=5, num_training_steps=20)
    for step in range(1, 21):
        ours = learning_rate(step, config)
        if step <= 5:  # ours rises to the full rate at the last warm-up step, and never spends a step at 0
            assert ours == pytest.approx(0.5 * step / 5)
        else:
            assert ours == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_every_step_of_a_run_has_a_learning_rate_above_zero() -> None:
    for steps in (1, 2, 7):
        config = RunConfig(max_steps=steps)
        assert all(learning_rate(step, config) > 0 for step in range(1, steps + 1))


def test_a_gradient_is_clipped_to_the_norm_and_cleared() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    parameter.grad = torch.tensor([3.0, 4.0])
    config = RunConfig(max_grad_norm=0.1, learning_rate=1.0, max_steps=1, warmup_ratio=0.0)
    outcome = apply_gradients(optimizer, step=1, config=config)
    assert (outcome.norm, outcome.applied) == (pytest.approx(5.0), True)
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.06, -0.08]), rtol=1e-4, atol=0)
    assert parameter.grad is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_moves_nothing(bad: float) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer([parameter], RunConfig())
    parameter.grad = torch.tensor([1.0, bad])
    outcome = apply_gradients(optimizer, step=1, config=RunConfig())
    assert not outcome.applied
    assert torch.equal(parameter.detach(), torch.ones(2))
    assert optimizer.state_dict()["state"] == {}
    assert parameter.grad is None


def test_a_step_without_gradients_is_not_applied() -> None:
    optimizer = make_optimizer([torch.nn.Parameter(torch.ones(2))], RunConfig())
    outcome = apply_gradients(optimizer, step=1, config=RunConfig())
    assert (outcome.norm, outcome.applied) == (0.0, False)


def test_a_scaled_gradient_moves_the_weights_as_the_plain_one_does() -> None:
    moved = []
    for scale in (1.0, 1024.0):
        parameter = torch.nn.Parameter(torch.ones(2))
        optimizer = make_optimizer([parameter], RunConfig())
        parameter.grad = torch.tensor([1.0, -2.0]) * scale
        moved.append(
            (apply_gradients(optimizer, step=1, config=RunConfig(), loss_scale=scale).norm, parameter.detach())
        )
    assert moved[0][0] == pytest.approx(moved[1][0])
    torch.testing.assert_close(moved[0][1], moved[1][1])


def test_the_loss_scale_backs_off_until_it_is_one_and_only_then_a_step_failed() -> None:
    scale = LossScale(enabled=True)
    scale.restore({"value": 4.0, "good_steps": 3.0})
    assert [scale.after_step(finite=False) for _ in range(3)] == [True, True, False]
    assert scale.value == 1.0


def test_the_loss_scale_doubles_after_two_thousand_good_steps_and_its_state_survives() -> None:
    scale = LossScale(enabled=True)
    for _ in range(1999):
        scale.after_step(finite=True)
    restored = LossScale(enabled=True)
    restored.restore(scale.state())
    assert restored.value == 2.0**16
    restored.after_step(finite=True)
    assert restored.value == 2.0**17


def test_without_float16_the_scale_is_one_and_explains_nothing() -> None:
    scale = LossScale(enabled=False)
    assert not scale.after_step(finite=False)
    assert scale.value == 1.0
