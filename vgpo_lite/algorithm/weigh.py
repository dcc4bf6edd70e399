"""Advantages times weights: the one place where the options of visual guidance come together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from vgpo_lite.algorithm.masked import zero_padding
from vgpo_lite.algorithm.released import released_compensate, released_token_weights, released_trajectory_weights
from vgpo_lite.algorithm.weighting import (
    ACCUMULATIONS,
    SCHEDULES,
    compensate,
    reweight,
    token_weights,
    trajectory_weights,
)

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from vgpo_lite.algorithm.weighting import Accumulation, Schedule

EQUATIONS = {
    "paper": (compensate, token_weights, trajectory_weights),
    "released": (released_compensate, released_token_weights, released_trajectory_weights),
}
SIGNS = ("both", "positive")
ADVANTAGES = ("vgpo", "grpo")


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """How focus becomes weights. The defaults are the paper's.

    Attributes:
        advantage: `vgpo`, or `grpo`: weights of exactly one.
        beta: Strength of the compensation, >= 0.
        gamma: Share of the tokens, from the end, that may be compensated, in [0, 1].
        kappa: Share of that tail that is compensated, in [0, 1].
        schedule: How compensation grows with the position: `linear`, `exponential` or `step`.
        weighting: The `paper`'s equations, or what the authors' `released` program makes of them.
        accumulation: How a completion's focus is gathered: `sum` or `mean`.
        sign: Which advantages are weighted: `both`, or only the `positive` ones.
        compensation: Whether focus is compensated; off, the focus itself is weighed.
        token_reweighting: Whether tokens are weighted inside a completion; off, psi is 0.
        trajectory_reweighting: Whether completions are weighted inside a group; off, phi is 0.
    """

    advantage: Literal["vgpo", "grpo"] = "vgpo"
    beta: float = 0.3
    gamma: float = 0.5
    kappa: float = 0.2
    schedule: Schedule = "linear"
    weighting: Literal["paper", "released"] = "paper"
    accumulation: Accumulation = "sum"
    sign: Literal["both", "positive"] = "both"
    compensation: bool = True
    token_reweighting: bool = True
    trajectory_reweighting: bool = True

    def __post_init__(self) -> None:
        choices = (
            ("advantage", self.advantage, ADVANTAGES),
            ("schedule", self.schedule, SCHEDULES),
            ("weighting", self.weighting, EQUATIONS),
            ("accumulation", self.accumulation, ACCUMULATIONS),
            ("sign", self.sign, SIGNS),
        )
        for name, value, expected in choices:
            if value not in expected:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(expected)}")
        if not self.beta >= 0:
            raise ValueError(f"beta is {self.beta}; expected a number >= 0")
        for name, share in {"gamma": self.gamma, "kappa": self.kappa}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is {share}; expected a share in [0, 1]")


class VisualWeights(NamedTuple):
    """A group's focus and what it weighs.

    Attributes:
        compensated: w, [group, token]; the focus itself where compensation is off; 0 under the padding.
        psi: Weight of each token, [group, token].
        phi: Weight of each completion, [group].
    """

    compensated: Float[Tensor, "group token"]
    psi: Float[Tensor, "group token"]
    phi: Float[Tensor, " group"]


def weigh(
    advantages: Float[Tensor, " group"],
    focus: Float[Tensor, "group token"] | None,
    completion_mask: Bool[Tensor, "group token"],
    *,
    weighting: Weighting,
) -> Float[Tensor, "group token"]:
    """The advantage of each token of one group: A (1 + psi) (1 + phi), or plain A where nothing guides.

    Weights are exactly one where the prompt has no image, with `advantage="grpo"`, with both re-weightings off, and,
    with `sign="positive"`, for completions whose advantage is not above zero. A group of one completion has nothing to
    be compared with, so its phi is 0.

    Args:
        advantages: Group-relative advantage A of each completion.
        focus: How much each token looks at the image, in [0, 1]; None for a prompt without an image.
        completion_mask: True on sampled tokens, the end-of-sequence token included.
        weighting: The options.

    Returns:
        Advantages per token, zeros under the padding.

    Raises:
        ValueError: The shapes differ.
    """
    plain = zero_padding(advantages.unsqueeze(-1), completion_mask)
    if focus is None or weighting.advantage == "grpo":
        return plain
    weights = visual_weights(focus, completion_mask, weighting)
    guided = zero_padding(reweight(advantages, weights.psi, weights.phi), completion_mask)
    return guided if weighting.sign == "both" else torch.where(plain > 0, guided, plain)


def visual_weights(
    focus: Float[Tensor, "group token"], completion_mask: Bool[Tensor, "group token"], weighting: Weighting
) -> VisualWeights:
    """What the options make of a group's focus; psi and phi are exactly 0 where their re-weighting is off."""
    compensated_focus, token_weights_of, trajectory_weights_of = EQUATIONS[weighting.weighting]
    w = zero_padding(focus, completion_mask)
    if weighting.compensation:
        w = compensated_focus(
            focus,
            completion_mask,
            beta=weighting.beta,
            gamma=weighting.gamma,
            kappa=weighting.kappa,
            schedule=weighting.schedule,
        )
    psi, phi = torch.zeros_like(w), w.new_zeros(w.shape[0])
    if weighting.token_reweighting:
        psi = token_weights_of(w, completion_mask)
    if weighting.trajectory_reweighting and w.shape[0] > 1:
        phi = trajectory_weights_of(w, completion_mask, accumulation=weighting.accumulation)
    return VisualWeights(w, psi, phi)
