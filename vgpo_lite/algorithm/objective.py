"""Policy objectives on per-token advantages: DAPO, GRPO, Dr. GRPO, GSPO and CISPO, with an optional KL term.

An objective is a sum over completions divided by one number that belongs to the whole optimizer step. So a micro-batch
is any slice of rows, and the losses and gradients of the slices add up to those of the step.

Values and gradients are those of TRL 1.15's GRPOTrainer with its defaults and the `loss_type` of the same name; `gspo`
is no loss_type there but `grpo` with ratios of whole sequences, and equal to it for one advantage per completion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import torch

from vgpo_lite.algorithm.masked import masked_mean, masked_sum, zero_padding
from vgpo_lite.algorithm.surrogate import (
    clipped_tokens,
    importance_ratio,
    importance_weight,
    kl_divergence,
    surrogate,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Bool, Float
    from torch import Tensor

    from vgpo_lite.algorithm.surrogate import Loss

ROW_SUMS = {"dapo": masked_sum, "cispo": masked_sum, "dr_grpo": masked_sum, "grpo": masked_mean, "gspo": masked_mean}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Which policy objective is minimised.

    Attributes:
        loss: `dapo` and `cispo` average over the tokens of a step, `grpo` and `gspo` over the tokens of a completion
            and then over completions, `dr_grpo` over completions times `max_completion_length`.
        max_completion_length: Tokens after which a completion is cut; read by `dr_grpo` alone.
        clip_low: The ratio is clipped below 1 - clip_low, in (0, 1); not read by `cispo`.
        clip_high: The ratio is clipped above 1 + clip_high, > 0; for `cispo` it is the cap itself, as TRL's
            `epsilon_high` is, and useful only above 1 (ScaleRL, arXiv 2510.13786, takes 5).
        kl_coefficient: Weight of the KL divergence to the reference, >= 0; 0 leaves the term out.
        importance_cap: The cap of `importance_weight`, > 0, where something else than the policy samples; None: the
            policy samples itself, and there is no such weight.
    """

    loss: Loss = "dapo"
    max_completion_length: int
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl_coefficient: float = 0.0
    importance_cap: float | None = None

    def __post_init__(self) -> None:
        if self.loss not in ROW_SUMS:
            raise ValueError(f"loss is {self.loss!r}; expected one of {', '.join(ROW_SUMS)}")
        if self.max_completion_length < 1:
            raise ValueError(f"max_completion_length is {self.max_completion_length}; expected at least 1")
        if not 0 < self.clip_low < 1:
            raise ValueError(f"clip_low is {self.clip_low}; expected a number between 0 and 1")
        if self.clip_high <= 0:
            raise ValueError(f"clip_high is {self.clip_high}; expected a number above 0")
        if self.kl_coefficient < 0:
            raise ValueError(f"kl_coefficient is {self.kl_coefficient}; expected a number >= 0")
        if self.importance_cap is not None and self.importance_cap <= 0:
            raise ValueError(f"importance_cap is {self.importance_cap}; expected a number above 0")


@dataclass(frozen=True, kw_only=True)
class PolicyLoss:
    """What a micro-batch adds to the step.

    Attributes:
        loss: Its part of the step's loss, with a gradient.
        sums: Metrics as (sum, count) without gradient, by `section/name`; add both over the micro-batches of a step,
            then divide. `policy/loss` counts what the objective divides by, so that it becomes the loss of the step;
            the others count tokens.
    """

    loss: Float[Tensor, ""]
    sums: Mapping[str, tuple[Tensor, Tensor]]


def step_denominator(objective: Objective, *, token_count: int, completion_count: int) -> float:
    """What the sum over a whole optimizer step is divided by, at least 1.

    Args:
        objective: Which objective is minimised.
        token_count: Sampled tokens that train in the step, over all micro-batches and groups.
        completion_count: Completions of the step.
    """
    return float(max(_divisor(objective, token_count, completion_count), 1))


def policy_loss(
    logprobs: Float[Tensor, "batch token"],
    old_logprobs: Float[Tensor, "batch token"] | None,
    advantages: Float[Tensor, "batch token"],
    completion_mask: Bool[Tensor, "batch token"],
    *,
    objective: Objective,
    denominator: float,
    ref_logprobs: Float[Tensor, "batch token"] | None = None,
    sampling_logprobs: Float[Tensor, "batch token"] | None = None,
) -> PolicyLoss:
    """A micro-batch's part of the policy loss of one optimizer step.

    With the ratio r, the advantage A and the terms of `surrogate` and `kl_divergence`, for each sampled token::

        l[i, t] = w surrogate(r, A) + kl_coefficient * kl
        loss    = sum_i (sum_t l[i, t] or mean_t l[i, t]) / denominator

    w is `importance_weight` of the old log-probabilities where the objective has a cap for it, else absent. It leaves
    the KL term alone, as TRL's correction for vLLM does.

    Args:
        logprobs: log p of each sampled token under the policy, with a gradient.
        old_logprobs: The same before the first update on this rollout; None where that is now: the ratio is exactly 1.
        advantages: Advantage of each token, constant.
        completion_mask: True on the tokens that train; anything may lie under the padding.
        objective: Which objective is minimised.
        denominator: `step_denominator` of the whole step.
        ref_logprobs: log p with the adapter switched off; needed where the KL coefficient is above 0.
        sampling_logprobs: log p under what sampled; needed where the objective has an importance cap.

    Returns:
        The loss and the sums of its metrics: `policy/loss`, `policy/ratio`, `policy/clip_low_share`,
        `policy/clip_high_share`, their sum `policy/clip_share`, and `policy/kl` where there is a KL term; with an
        importance cap the means of the weight (`policy/importance_weight`), of the tokens it was cut for
        (`policy/importance_cut_share`) and of the absolute difference of log-probabilities (`policy/sampling_gap`).

    Raises:
        ValueError: The KL coefficient is above 0 and there are no reference log-probabilities, or there is an
            importance cap and nobody says what sampled.
    """
    if objective.kl_coefficient > 0 and ref_logprobs is None:
        raise ValueError(f"kl_coefficient is {objective.kl_coefficient}, which needs ref_logprobs, got None")
    if objective.importance_cap is not None and sampling_logprobs is None:
        raise ValueError(f"importance_cap is {objective.importance_cap}, which needs sampling_logprobs, got None")
    logprobs, advantages = zero_padding(logprobs, completion_mask), zero_padding(advantages, completion_mask)
    old = logprobs.detach() if old_logprobs is None else zero_padding(old_logprobs, completion_mask)
    ratio = importance_ratio(logprobs, old, completion_mask, loss=objective.loss)
    token_loss = surrogate(ratio, logprobs, advantages, objective=objective)
    low, high = clipped_tokens(ratio, advantages, objective=objective)
    of_tokens = {"ratio": ratio, "clip_low_share": low, "clip_high_share": high, "clip_share": low | high}
    if objective.importance_cap is not None and sampling_logprobs is not None:
        drawn = zero_padding(sampling_logprobs, completion_mask)
        weight = importance_weight(old, drawn, cap=objective.importance_cap)
        token_loss = token_loss * weight
        of_tokens |= {
            "importance_weight": weight,
            "importance_cut_share": (old - drawn).exp() > objective.importance_cap,
            "sampling_gap": (old - drawn).abs(),
        }
    if objective.kl_coefficient > 0 and ref_logprobs is not None:
        kl = kl_divergence(logprobs, zero_padding(ref_logprobs, completion_mask), ratio)
        token_loss = token_loss + objective.kl_coefficient * kl
        of_tokens["kl"] = kl
    total = ROW_SUMS[objective.loss](token_loss, completion_mask).sum()
    tokens = completion_mask.sum()
    completions = torch.full_like(tokens, logprobs.shape[0])
    sums = {f"policy/{name}": (_detached_sum(values, completion_mask), tokens) for name, values in of_tokens.items()}
    sums["policy/loss"] = (total.detach(), _divisor(objective, tokens, completions))
    return PolicyLoss(loss=total / denominator, sums=sums)


def _detached_sum(values: Tensor, completion_mask: Bool[Tensor, "batch token"]) -> Float[Tensor, ""]:
    """Sum over the tokens of a micro-batch, of numbers or of truths."""
    return masked_sum(values.detach().to(torch.float64), completion_mask).sum()


@overload
def _divisor(objective: Objective, token_count: int, completion_count: int) -> int: ...
@overload
def _divisor(objective: Objective, token_count: Tensor, completion_count: Tensor) -> Tensor: ...
def _divisor(objective: Objective, token_count: int | Tensor, completion_count: int | Tensor) -> int | Tensor:
    """What the objective averages over: tokens, completions, or the tokens completions could have had."""
    if objective.loss in ("dapo", "cispo"):
        return token_count
    if objective.loss == "dr_grpo":
        return completion_count * objective.max_completion_length
    return completion_count
