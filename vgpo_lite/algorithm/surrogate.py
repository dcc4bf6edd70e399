"""The terms of a policy objective at one token: importance ratio, clipped surrogate, KL divergence.

Sources: GRPO arXiv 2402.03300, DAPO's two clip bounds 2503.14476, GSPO 2507.18071, CISPO 2506.13585. The KL
term is Schulman's k3 ("Approximating KL divergence", 2020) times the ratio, which makes its gradient unbiased
(DeepSeek-V3.2, 2512.02556). Weights for what another sampler drew: Ionides, "Truncated Importance Sampling" (2008);
token by token with a cap of 2, Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"
(2025).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from vgpo_lite.algorithm.masked import masked_mean

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from vgpo_lite.algorithm.objective import Objective

Loss = Literal["dapo", "grpo", "dr_grpo", "gspo", "cispo"]


def importance_ratio(
    logprobs: Float[Tensor, "batch token"],
    old_logprobs: Float[Tensor, "batch token"],
    completion_mask: Bool[Tensor, "batch token"],
    *,
    loss: Loss,
) -> Float[Tensor, "batch token"]:
    """How much more likely each token has become since it was sampled.

    ::

        r[i, t] = p(token) / p_old(token)
        r[i, t] = s[i] p(token) / constant(p(token)),   log s[i] = mean_t log(p(token) / p_old(token))        (gspo)

    GSPO is in its token form: each token has the value of its completion's ratio s[i] and a gradient of its own, so
    that a token's advantage reaches that token. With one advantage per completion it is GSPO itself.

    Args:
        logprobs: log p under the policy, finite under the padding too.
        old_logprobs: The same when the token was sampled.
        completion_mask: True on the tokens that train.
        loss: Which objective asks.
    """
    log_ratio = logprobs - old_logprobs
    if loss == "gspo":
        of_completion = masked_mean(log_ratio, completion_mask).unsqueeze(-1).detach()
        log_ratio = of_completion + (logprobs - logprobs.detach())
    return log_ratio.exp()


def surrogate(
    ratio: Float[Tensor, "batch token"],
    logprobs: Float[Tensor, "batch token"],
    advantages: Float[Tensor, "batch token"],
    *,
    objective: Objective,
) -> Float[Tensor, "batch token"]:
    """What is minimised in place of the reward, for each token.

    ::

        l = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)
        l = -constant(min(r, clip_high)) A log p                      (cispo)
    """
    if objective.loss == "cispo":
        return -ratio.clamp(max=objective.clip_high).detach() * advantages * logprobs
    clipped = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    return -torch.min(ratio * advantages, clipped * advantages)


def kl_divergence(
    logprobs: Float[Tensor, "batch token"],
    ref_logprobs: Float[Tensor, "batch token"],
    ratio: Float[Tensor, "batch token"],
) -> Float[Tensor, "batch token"]:
    """Estimate of the KL divergence from the reference at each token, >= 0; 0 where both agree.

    With d = log p_ref - log p, k3 corrected for the policy having moved since sampling::

        kl = r (exp(d) - d - 1)

    The ratio carries its gradient, as in TRL 1.15; so the gradient is that of the reverse KL divergence.
    """
    gap = ref_logprobs - logprobs
    return ratio * (gap.exp() - gap - 1)


def importance_weight(
    policy_logprobs: Float[Tensor, "batch token"],
    sampling_logprobs: Float[Tensor, "batch token"],
    *,
    cap: float,
) -> Float[Tensor, "batch token"]:
    """What makes up for tokens that were drawn by something else than the policy, constant.

    ::

        w[i, t] = min(p_policy(token) / p_sampler(token), cap)

    The cap bounds the variance, for a bias on the tokens that it cuts.

    Args:
        policy_logprobs: log p under the policy as it was when the token was sampled.
        sampling_logprobs: log p under what the token was drawn from.
        cap: The largest weight, > 0.
    """
    return (policy_logprobs - sampling_logprobs).detach().exp().clamp(max=cap)


def clipped_tokens(
    ratio: Float[Tensor, "batch token"],
    advantages: Float[Tensor, "batch token"],
    *,
    objective: Objective,
) -> tuple[Bool[Tensor, "batch token"], Bool[Tensor, "batch token"]]:
    """Where the clip takes the gradient (for `cispo`: the weight) of a token away: below, and above.

    Below matters where the advantage is negative, above where it is positive; `cispo` has no lower bound.
    """
    low, high = 1 - objective.clip_low, 1 + objective.clip_high
    if objective.loss == "cispo":
        low, high = 0.0, objective.clip_high
    return (ratio < low) & (advantages < 0), (ratio > high) & (advantages > 0)
