"""What must hold at the first step, or the run would train on something else than it sampled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vgpo_lite.errors import InvariantError
from vgpo_lite.models.lora import adapter_snapshot, unmoved_adapters

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from vgpo_lite.data_types import RolloutGroup
    from vgpo_lite.engine import Engine
    from vgpo_lite.engine.optimizer import GradientStep
    from vgpo_lite.models import Policy

# Mean absolute difference of log-probabilities between decoding and the update's forward, same weights, nats. float32
# differs by the order of summation: 1e-6. 16-bit formats round in every layer (bfloat16 by 2**-9): hundredths. A wrong
# position, mask or image is above 1.
_SAMPLING_TOLERANCE = {torch.float32: 1e-4, torch.float16: 0.1, torch.bfloat16: 0.1}


def check_first_group(
    engine: Engine, policy: Policy, group: RolloutGroup, *, fresh_adapter: bool, samples_itself: bool = True
) -> dict[str, tuple[float, float]]:
    """Compare what was seen while sampling with the update's own forward, and the policy with its reference.

    Args:
        engine: At whose work to look.
        policy: What it works with.
        group: Completions it has sampled.
        fresh_adapter: Whether the adapter is what it was born as.
        samples_itself: Whether the policy itself has sampled; where a copy has, its gap is only reported.

    Returns:
        `invariants/sampling_gap` and `invariants/reference_gap`: mean absolute differences of log-probabilities,
        nats, and `invariants/sampling_gap_max`, the largest of the first kind; each as (sum, count).

    Raises:
        InvariantError: The gap is beyond what rounding explains or not a number, or a fresh adapter already changes the
            model.
    """
    signals = engine.look(group, keep_graph=False, reference=True).signals
    if signals.old_logprobs is None or signals.ref_logprobs is None:
        raise InvariantError("the engine looked at a group without giving its log-probabilities")
    mask, limit = group.completion_mask, _SAMPLING_TOLERANCE[policy.dtype]
    gaps = _gaps(signals.old_logprobs, group.sampling_logprobs, mask)
    sampling_gap = float(gaps.mean())
    reference_gap = float(_gaps(signals.old_logprobs, signals.ref_logprobs, mask).mean())
    if not sampling_gap <= (limit if samples_itself else torch.inf):
        raise InvariantError(
            f"log-probabilities seen while sampling and those of the update differ by {sampling_gap:.3g} in the mean, "
            f"expected at most {limit:g}: the run would not train on what it samples. Try engine=batched and report it."
        )
    if fresh_adapter and not reference_gap <= limit:
        raise InvariantError(
            f"a fresh adapter changes log-probabilities by {reference_gap:.3g} in the mean, expected 0: its B matrices "
            "are not zero, or the adapter cannot be switched off."
        )
    return {
        "invariants/sampling_gap": (sampling_gap, 1.0),
        "invariants/sampling_gap_max": (float(gaps.max()), 1.0),
        "invariants/reference_gap": (reference_gap, 1.0),
    }


def _gaps(
    left: Float[Tensor, "group token"], right: Float[Tensor, "group token"], mask: Tensor
) -> Float[Tensor, " token"]:
    return (left.float() - right.float())[mask].abs()


class AdaptersMoved:
    """Checks once that the first update with a gradient and a learning rate above 0 moved every adapter's B."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._before: dict[str, Tensor] | None = adapter_snapshot(policy)

    def after(self, gradient: GradientStep, *, learning_rate: float) -> None:
        """Look after a step; does nothing once the check has been made.

        Raises:
            InvariantError: Some adapter's B is what it was; the message names which.
        """
        if self._before is None or not gradient.applied or gradient.norm == 0.0 or learning_rate == 0.0:
            return
        unmoved = unmoved_adapters(self._policy, self._before)
        self._before = None
        if unmoved:
            shown = ", ".join(unmoved[:5]) + (f" and {len(unmoved) - 5} more" if len(unmoved) > 5 else "")
            raise InvariantError(
                f"the first update did not move {len(unmoved)} adapters: {shown}. No gradient reaches them: check "
                "lora settings and the model family."
            )
