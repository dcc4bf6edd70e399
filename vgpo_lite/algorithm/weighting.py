"""From focus to weights: visual attention compensation (Eq. 5-6) and the two re-weightings (Eq. 7-11)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from vgpo_lite.algorithm.masked import masked_mean, masked_sum, min_max_scale, zero_padding

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

Schedule = Literal["linear", "exponential", "step"]
Accumulation = Literal["sum", "mean"]

SCHEDULES = {
    "linear": lambda position: position,
    "exponential": torch.square,
    "step": lambda position: (position >= 0.5).to(position.dtype),
}
ACCUMULATIONS = {"sum": masked_sum, "mean": masked_mean}


def compensate(
    focus: Float[Tensor, "group token"],
    completion_mask: Bool[Tensor, "group token"],
    *,
    beta: float,
    gamma: float,
    kappa: float,
    schedule: Schedule = "linear",
) -> Float[Tensor, "group token"]:
    """Strengthen the focus of late tokens that still look at the image.

    With t = 1..T the place of a token in its completion and rho its focus::

        gate[t] = 1 in the last gamma share of the tokens, if rho[t] is among its top kappa share    (Eq. 5)
        w[t]    = rho[t] (1 + gate[t] beta f(t / T))                                                   (Eq. 6)

    The tail starts at the token with index floor((1 - gamma) T), counted from 0.

    Args:
        focus: How much each token looks at the image, in [0, 1]; anything under the padding.
        completion_mask: True on sampled tokens, the end-of-sequence token included.
        beta: Strength, >= 0; 0 leaves the focus as it is.
        gamma: Share of the tokens, from the end, that may be compensated, in [0, 1]; 0 compensates none.
        kappa: Share of that tail that is compensated, in [0, 1]; never fewer than one token, ties included.
        schedule: f: `linear` u, `exponential` u^2, or `step` (1 from the middle on, else 0).

    Returns:
        w, in [0, 1 + beta]; zeros under the padding.

    Raises:
        ValueError: The shapes differ, or the schedule is unknown.
    """
    check_same_shape(focus, completion_mask)
    index = completion_mask.cumsum(dim=-1) - 1
    length = completion_mask.sum(dim=-1, keepdim=True)
    tail = completion_mask & (index >= whole((1 - gamma) * length.double()))
    position = (index + 1).to(focus.dtype) / length.clamp(min=1)
    compensated = strengthened(focus, tail, position, beta=beta, kappa=kappa, schedule=schedule)
    return zero_padding(compensated, completion_mask)


def token_weights(
    compensated: Float[Tensor, "group token"], completion_mask: Bool[Tensor, "group token"]
) -> Float[Tensor, "group token"]:
    """Weight each token by how much it looks at the image, relative to its completion.

    ::

        what[t] = (w[t] - min w) / (max w - min w + 1e-8)      (Eq. 7)
        psi[t]  = what[t] - mean what                            (Eq. 8)

    Args:
        compensated: Compensated focus w of each token, dimensionless, >= 0.
        completion_mask: True on sampled tokens, the end-of-sequence token included.

    Returns:
        psi, in (-1, 1), zero mean over each completion; zeros under the padding and for a completion whose tokens all
        look alike.

    Raises:
        ValueError: The shapes differ.
    """
    check_same_shape(compensated, completion_mask)
    scaled = min_max_scale(compensated, completion_mask)
    return zero_padding(scaled - masked_mean(scaled, completion_mask).unsqueeze(-1), completion_mask)


def trajectory_weights(
    compensated: Float[Tensor, "group token"],
    completion_mask: Bool[Tensor, "group token"],
    *,
    accumulation: Accumulation = "sum",
) -> Float[Tensor, " group"]:
    """Weight each completion by how much it looked at the image, relative to its group.

    The visual accumulation is scaled over the group and centred::

        s[i]   = sum_t w[i, t]                                       (Eq. 9)
        z[i]   = (s[i] - min s) / (max s - min s + 1e-8)            (Eq. 10)
        phi[i] = z[i] - mean z                                       (Eq. 11)

    Args:
        compensated: Compensated focus w of each token, dimensionless, >= 0; one whole group.
        completion_mask: True on sampled tokens, the end-of-sequence token included.
        accumulation: `sum` (the paper; favours long completions) or `mean`, a departure that does not.

    Returns:
        phi, in (-1, 1), zero mean over the group; all zeros when every completion gathered the same focus.

    Raises:
        ValueError: The shapes differ, the group holds fewer than two completions, or the accumulation is unknown.
    """
    check_same_shape(compensated, completion_mask)
    if compensated.shape[0] < 2:
        raise ValueError(f"a group needs at least 2 completions, got {compensated.shape[0]}")
    if accumulation not in ACCUMULATIONS:
        raise ValueError(f"accumulation is {accumulation!r}; expected one of {', '.join(ACCUMULATIONS)}")
    scaled = min_max_scale(ACCUMULATIONS[accumulation](compensated, completion_mask))
    return scaled - scaled.mean()


def reweight(
    advantages: Float[Tensor, " group"], psi: Float[Tensor, "group token"], phi: Float[Tensor, " group"]
) -> Float[Tensor, "group token"]:
    """The visually-guided advantage A (1 + psi) (1 + phi) of each token.

    Args:
        advantages: Group-relative advantage A of each completion.
        psi: Token weights, zeros under the padding.
        phi: Trajectory weights.

    Returns:
        One advantage per token. Where psi and phi are 0 it is exactly A. It knows no mask: under the padding, where psi
        is 0, it is A (1 + phi), and callers mask it.
    """
    return advantages.unsqueeze(-1) * (1 + psi) * (1 + phi.unsqueeze(-1))


def strengthened(
    focus: Float[Tensor, "group token"],
    tail: Bool[Tensor, "group token"],
    position: Float[Tensor, "group token"],
    *,
    beta: float,
    kappa: float,
    schedule: Schedule,
) -> Float[Tensor, "group token"]:
    """rho (1 + gate beta f(position)), where the gate opens for the top kappa share of the tail (Eq. 5-6).

    Callers mask it: under the padding it is what lay there.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule is {schedule!r}; expected one of {', '.join(SCHEDULES)}")
    gate = among_the_top(focus, tail, share=kappa)
    return focus * (1 + gate.to(focus.dtype) * beta * SCHEDULES[schedule](position))


def among_the_top(
    values: Float[Tensor, "*row token"], candidates: Bool[Tensor, "*row token"], *, share: float
) -> Bool[Tensor, "*row token"]:
    """Which candidates of a row are among its largest `share`: at least one where there is any, ties included."""
    count = whole(share * candidates.sum(dim=-1, keepdim=True).double()).long().clamp(min=1)
    ranked = torch.where(candidates, values, -torch.inf).sort(dim=-1, descending=True).values
    return candidates & (values >= ranked.gather(-1, count - 1))


def whole(product: Float[Tensor, "*row"]) -> Float[Tensor, "*row"]:
    """The product of a share and a count, rounded down to a whole number of tokens.

    A share such as 1 - 0.9 is a hair too small in binary; rounding to 9 decimals first makes (1 - 0.9) * 10 count as 1.

    >>> whole(torch.tensor([(1 - 0.9) * 10, 1.5], dtype=torch.float64))
    tensor([1., 1.], dtype=torch.float64)
    """
    return torch.round(product, decimals=9).floor()


def check_same_shape(values: Float[Tensor, "group token"], completion_mask: Bool[Tensor, "group token"]) -> None:
    """Raise a ValueError unless a mask fits the values it masks."""
    if values.shape != completion_mask.shape:
        shapes = f"{tuple(values.shape)} and {tuple(completion_mask.shape)}"
        raise ValueError(f"values and completion_mask must have the same shape [group, token], got {shapes}")
