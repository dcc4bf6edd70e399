"""From gradients to moved adapters: the optimizer, the learning rate of a step, loss scaling and clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vgpo_lite.failpoints import failpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.nn import Parameter

    from vgpo_lite.config.schema import RunConfig

_FIRST_SCALE = 2.0**16  # Micikevicius et al., Mixed Precision Training; the start value of torch.amp.GradScaler
_GROWTH_INTERVAL = 2000  # steps without overflow before the scale doubles, as in torch.amp.GradScaler


def make_optimizer(parameters: Sequence[Parameter], config: RunConfig) -> torch.optim.Optimizer:
    """AdamW over the adapters: 8-bit states on a GPU (bitsandbytes), plain ones on a CPU, unless `optim` says which."""
    on_gpu = bool(parameters) and parameters[0].is_cuda
    choice = config.optim if config.optim != "auto" else ("adamw_8bit" if on_gpu else "adamw")
    if choice == "adamw_8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def learning_rate(step: int, config: RunConfig) -> float:
    """Learning rate of optimizer step `step`, from 1: a linear warm-up, then the schedule, 0 past the last step.

    It depends on nothing but its arguments, so a resumed run needs no scheduler state.

    >>> from vgpo_lite.config.schema import RunConfig
    >>> config = RunConfig(max_steps=10, warmup_ratio=0.2, learning_rate=1.0, lr_scheduler_type="linear")
    >>> [round(learning_rate(step, config), 3) for step in (1, 2, 3, 10)]
    [0.5, 1.0, 1.0, 0.125]
    """
    warmup = math.ceil(config.warmup_ratio * config.max_steps)
    if step <= warmup:
        return config.learning_rate * step / warmup
    if config.lr_scheduler_type == "constant":
        return config.learning_rate
    passed = (step - warmup - 1) / max(1, config.max_steps - warmup)
    if config.lr_scheduler_type == "linear":
        return config.learning_rate * (1 - passed)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * passed))


class LossScale:
    """Dynamic loss scaling for float16 (Micikevicius et al. 2018); a constant 1 for every other format.

    A step that overflows halves the scale and is tried again with the next batch: that is no failure until the scale is
    down to 1.
    """

    def __init__(self, *, enabled: bool) -> None:
        self.value = _FIRST_SCALE if enabled else 1.0
        self._enabled = enabled
        self._good_steps = 0

    def after_step(self, *, finite: bool) -> bool:
        """Adapt to the outcome of a step; returns whether a non-finite step is explained by the scale alone."""
        if not self._enabled:
            return False
        if finite:
            self._good_steps += 1
            if self._good_steps >= _GROWTH_INTERVAL:
                self.value, self._good_steps = self.value * 2, 0
            return False
        could_back_off = self.value > 1.0
        self.value, self._good_steps = max(1.0, self.value / 2), 0
        return could_back_off

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"value": self.value, "good_steps": float(self._good_steps)}

    def restore(self, state: dict[str, float]) -> None:
        """Take up where `state()` was written."""
        self.value, self._good_steps = state["value"], int(state["good_steps"])


@dataclass(frozen=True, kw_only=True)
class GradientStep:
    """What became of one step's gradient.

    Attributes:
        norm: Euclidean norm over all adapters before clipping; nan or infinite where a gradient was, 0 where there was
            none.
        applied: Whether the optimizer used it.
    """

    norm: float
    applied: bool


def unscaled_norm(gradients: list[Tensor], *, loss_scale: float) -> Tensor:
    """Take the loss scale out of gradients, in place; returns their Euclidean norm."""
    if loss_scale != 1.0:
        torch._foreach_div_(gradients, loss_scale)
    return torch.nn.utils.get_total_norm(gradients)


def apply_gradients(
    optimizer: torch.optim.Optimizer, *, step: int, config: RunConfig, loss_scale: float = 1.0
) -> GradientStep:
    """Unscale, clip and apply the accumulated gradients, unless one is not finite; gradients are cleared either way."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return GradientStep(norm=0.0, applied=False)
    total = unscaled_norm(gradients, loss_scale=loss_scale)
    norm = float(total)
    applied = math.isfinite(norm)
    if applied:
        torch.nn.utils.clip_grads_with_norm_(parameters, config.max_grad_norm, total)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        failpoint("optimizer.before_step")
        optimizer.step()
        failpoint("optimizer.after_step")
    optimizer.zero_grad(set_to_none=True)
    return GradientStep(norm=norm, applied=applied)
