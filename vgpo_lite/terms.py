"""The settings of a run in the mathematics' own terms: `algorithm` never sees the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgpo_lite.algorithm.objective import Objective
from vgpo_lite.algorithm.weigh import Weighting

if TYPE_CHECKING:
    from vgpo_lite.config.schema import RunConfig


IMPORTANCE_CAP = 2.0
"""Of the weights that make up for sampling from a copy: the cap of Yao et al. (2025), see `algorithm.surrogate`."""


def objective_of(config: RunConfig) -> Objective:
    """The policy objective that a run optimizes."""
    return Objective(
        loss=config.loss,
        clip_low=config.clip_low,
        clip_high=config.ratio_ceiling,
        kl_coefficient=config.kl_coefficient,
        max_completion_length=config.max_completion_length,
        importance_cap=IMPORTANCE_CAP if config.decodes_from_copy else None,
    )


def weighting_of(config: RunConfig) -> Weighting:
    """How a run turns focus into weights."""
    focus = config.focus
    return Weighting(
        advantage=config.advantage,
        beta=focus.beta,
        gamma=focus.gamma,
        kappa=focus.kappa,
        schedule=focus.schedule,
        weighting=focus.weighting,
        accumulation=focus.accumulation,
        sign=focus.sign,
        compensation=focus.compensation,
        token_reweighting=focus.token_reweighting,
        trajectory_reweighting=focus.trajectory_reweighting,
    )
