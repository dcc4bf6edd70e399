"""A random optimizer step: log-probabilities, advantages and masks of several completions."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tests.algorithm.groups import mask_of, with_nan_padding
from vgpo_lite.algorithm.objective import Objective, PolicyLoss, policy_loss, step_denominator

LOSSES = ("dapo", "grpo", "dr_grpo", "gspo", "cispo")


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a loss reads; nan under the padding of each tensor."""

    logprobs: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    advantages: Tensor
    mask: Tensor
    sampling_logprobs: Tensor

    @classmethod
    def random(cls, lengths: list[int], *, seed: int, apart: float = 0.4, per_token: bool = True) -> Step:
        """Old and reference log-probabilities differ from the policy's by about `apart`; float64."""
        generator = torch.Generator().manual_seed(seed)
        mask = mask_of(lengths)

        def noise(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        logprobs = -noise(*mask.shape).abs() - 0.1
        advantages = noise(*mask.shape) if per_token else noise(len(lengths), 1).expand(mask.shape)
        return cls(
            logprobs=with_nan_padding(logprobs, mask).requires_grad_(),
            old_logprobs=with_nan_padding(logprobs + apart * noise(*mask.shape), mask),
            ref_logprobs=with_nan_padding(logprobs + apart * noise(*mask.shape), mask),
            advantages=with_nan_padding(advantages, mask),
            mask=mask,
            sampling_logprobs=with_nan_padding(logprobs + 2 * apart * noise(*mask.shape), mask),
        )

    def rows(self, rows: slice | Tensor) -> Step:
        """Some of its completions; gradients still reach `logprobs` of the whole."""
        return Step(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def denominator(self, objective: Objective) -> float:
        tokens, completions = int(self.mask.sum()), self.mask.shape[0]
        return step_denominator(objective, token_count=tokens, completion_count=completions)

    def loss(self, objective: Objective, *, denominator: float | None = None) -> PolicyLoss:
        return policy_loss(
            self.logprobs,
            self.old_logprobs,
            self.advantages,
            self.mask,
            objective=objective,
            denominator=denominator or self.denominator(objective),
            ref_logprobs=self.ref_logprobs if objective.kl_coefficient > 0 else None,
            sampling_logprobs=None if objective.importance_cap is None else self.sampling_logprobs,
        )


def objective_of(loss: str, *, kl_coefficient: float = 0.0, importance_cap: float | None = None) -> Objective:
    """Clip bounds that random ratios pass on both sides; CISPO's cap lies above 1."""
    return Objective(
        loss=loss,
        max_completion_length=16,
        clip_low=0.2,
        clip_high=1.3 if loss == "cispo" else 0.28,
        kl_coefficient=kl_coefficient,
        importance_cap=importance_cap,
    )


def gradient(loss: Tensor, step: Step) -> Tensor:
    (values,) = torch.autograd.grad(loss, step.logprobs)
    return values
