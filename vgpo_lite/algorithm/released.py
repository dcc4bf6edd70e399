"""The weights as the authors' released program makes them, where that differs from the paper.

Rows stay the completions of one prompt and focus stays in [0, 1]. What differs: positions run from 0 to 1 over a
completion, gamma says where the tail starts, trajectories gather the scaled focus of Eq. 7 in place of w, and both
factors are clamped. Written from the description and the numbers of its results, not from its text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgpo_lite.algorithm.masked import min_max_scale, zero_padding
from vgpo_lite.algorithm.weighting import check_same_shape, strengthened, token_weights, trajectory_weights, whole

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from vgpo_lite.algorithm.weighting import Accumulation, Schedule

TOKEN_FACTOR_RANGE = (0.1, 2.0)  # the released program's clamp of 1 + psi
TRAJECTORY_FACTOR_RANGE = (0.9, 2.0)  # the released program's clamp of 1 + phi


def released_compensate(
    focus: Float[Tensor, "group token"],
    completion_mask: Bool[Tensor, "group token"],
    *,
    beta: float,
    gamma: float,
    kappa: float,
    schedule: Schedule = "linear",
) -> Float[Tensor, "group token"]:
    """Compensated focus with the released program's positions.

    With t = 1..T::

        gate[t] = 1 from index floor(gamma T) on, if rho[t] is among the top kappa share of that tail
        w[t]    = rho[t] (1 + gate[t] beta f((t - 1) / (T - 1)))

    Args:
        focus: How much each token looks at the image, in [0, 1]; anything under the padding.
        completion_mask: True on sampled tokens, the end-of-sequence token included.
        beta: Strength, >= 0.
        gamma: Where the tail starts, as a share of the completion, in [0, 1]; the paper's meaning only at 0.5.
        kappa: Share of the tail that is compensated, in [0, 1]; never fewer than one token, ties included.
        schedule: f: `linear`, `exponential` or `step`, as in `compensate`.

    Returns:
        w, in [0, 1 + beta]; zeros under the padding. A completion of a single token is at position 0.

    Raises:
        ValueError: The shapes differ, or the schedule is unknown.
    """
    check_same_shape(focus, completion_mask)
    index = completion_mask.cumsum(dim=-1) - 1
    length = completion_mask.sum(dim=-1, keepdim=True)
    tail = completion_mask & (index >= whole(gamma * length.double()))
    position = index.to(focus.dtype) / (length - 1).clamp(min=1)
    compensated = strengthened(focus, tail, position, beta=beta, kappa=kappa, schedule=schedule)
    return zero_padding(compensated, completion_mask)


def released_token_weights(
    compensated: Float[Tensor, "group token"], completion_mask: Bool[Tensor, "group token"]
) -> Float[Tensor, "group token"]:
    """psi of Eq. 8, cut so that the factor 1 + psi lies in [0.1, 2]; zeros under the padding."""
    low, high = TOKEN_FACTOR_RANGE
    return token_weights(compensated, completion_mask).clamp(low - 1, high - 1)


def released_trajectory_weights(
    compensated: Float[Tensor, "group token"],
    completion_mask: Bool[Tensor, "group token"],
    *,
    accumulation: Accumulation = "sum",
) -> Float[Tensor, " group"]:
    """phi from the scaled focus of Eq. 7, cut so that the factor 1 + phi lies in [0.9, 2].

    Its mean over the group is above zero wherever the cut takes effect.

    Args:
        compensated: Compensated focus w of each token; one whole group.
        completion_mask: True on sampled tokens, the end-of-sequence token included.
        accumulation: Whether the scaled focus is summed, as the released program does, or averaged.

    Raises:
        ValueError: As `trajectory_weights`.
    """
    low, high = TRAJECTORY_FACTOR_RANGE
    scaled = min_max_scale(compensated, completion_mask)
    return trajectory_weights(scaled, completion_mask, accumulation=accumulation).clamp(low - 1, high - 1)
