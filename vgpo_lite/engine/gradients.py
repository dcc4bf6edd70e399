"""From the log-probabilities of some rows to gradients and metrics; the same for every engine."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vgpo_lite.algorithm.objective import policy_loss
from vgpo_lite.failpoints import failpoint, poisoned
from vgpo_lite.interruption import poll_stop

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from vgpo_lite.algorithm.objective import Objective
    from vgpo_lite.engine.protocol import Look

ALL_ROWS = slice(None)


@dataclass(frozen=True)
class GroupLoss:
    """The loss of one group, additive over its rows: going backward through slices adds up to the whole.

    Attributes:
        look: The group and what was seen of it.
        advantages: Weighted advantage of each token.
        objective: Which objective is minimised.
        denominator: Of the whole optimizer step.
    """

    look: Look
    advantages: Float[Tensor, "group token"]
    objective: Objective
    denominator: float

    def backward(self, logprobs: Float[Tensor, "row token"], rows: slice = ALL_ROWS) -> dict[str, tuple[float, float]]:
        """Go backward from the log-probabilities of these rows; returns their metrics as (sum, count)."""
        failpoint("update.micro_batch")
        poll_stop()
        signals, group, device = self.look.signals, self.look.group, logprobs.device
        old, reference, drawn = (
            None if values is None else values[rows].to(device)
            for values in (
                signals.old_logprobs,
                signals.ref_logprobs,
                None if self.objective.importance_cap is None else group.sampling_logprobs,
            )
        )
        part = policy_loss(
            logprobs,
            old,
            self.advantages[rows].to(device),
            group.completion_mask[rows].to(device),
            objective=self.objective,
            denominator=self.denominator,
            ref_logprobs=reference,
            sampling_logprobs=drawn,
        )
        poisoned("update.gradient", part.loss).backward()
        return {name: (float(total), float(count)) for name, (total, count) in part.sums.items()}


def added(parts: list[dict[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """Metrics of several slices as those of the whole.

    >>> added([{"policy/kl": (1.0, 2.0)}, {"policy/kl": (0.5, 1.0)}])
    {'policy/kl': (1.5, 3.0)}
    """
    sums: defaultdict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for part in parts:
        for name, (total, count) in part.items():
            sums[name] = (sums[name][0] + total, sums[name][1] + count)
    return dict(sums)
