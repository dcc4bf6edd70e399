"""The engine that sees each image and each prompt once per group: packed, or in two stages.

*Packed*: one forward and one backward of the whole row. *Two stages*: the prompt once, with a graph; its keys and
values are handed out as leaves; completions in micro-batches, each with its own backward into those leaves; then one
backward through the prompt. Both give the gradients of the ordinary way exactly. Two stages need the memory of the
prompt and one micro-batch, whatever the group's size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vgpo_lite.data_types import GroupSignals
from vgpo_lite.engine.features import FeatureStore
from vgpo_lite.engine.gradients import GroupLoss, added
from vgpo_lite.engine.passes import GroupPasses, RowsPass
from vgpo_lite.engine.protocol import Look
from vgpo_lite.engine.rollout import DecodePlan, sample_groups
from vgpo_lite.models.modes import evaluating

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from vgpo_lite.algorithm.objective import Objective
    from vgpo_lite.data_types import Prompt, RolloutGroup, Sampling
    from vgpo_lite.engine.protocol import EngineSettings
    from vgpo_lite.engine.rollout import DecodeProgress
    from vgpo_lite.models.policy import Policy


class SharedEngine:
    """An `Engine` on groups that share their prompt; see `protocol.Engine`.

    Attributes:
        settings: How it works.
    """

    def __init__(self, policy: Policy, settings: EngineSettings) -> None:
        self.settings = settings
        self._policy = policy
        self._features = FeatureStore(policy)
        self._passes = GroupPasses(policy, settings, self._features)

    def sample(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        places: Sequence[int],
        on_step: Callable[[DecodeProgress], None] | None = None,
    ) -> list[RolloutGroup]:
        """One prefill per prompt, its keys and values once per group. Two stages read focus here, packed does not."""
        staged = not self._fits_one_row(sampling.num_generations)
        plan = DecodePlan(
            prompts_per_decode=self.settings.prompts_per_decode,
            focus_signal=self.settings.focus_signal if staged else None,
            features=self._features.of,
        )
        return sample_groups(self._policy, prompts, sampling, places=places, plan=plan, on_step=on_step)

    def look(self, group: RolloutGroup, *, keep_graph: bool, reference: bool) -> Look:
        """Packed and with a graph, focus costs no pass; in two stages it comes from decoding, or from one pass."""
        logprobs, old_logprobs = None, None
        with evaluating(self._policy.model):
            if keep_graph and self._fits_one_row(len(group.texts)):
                with torch.enable_grad():
                    seen = self._passes.packed(group, with_focus=True)
                logprobs, focus = seen.logprobs, seen.focus
            elif keep_graph and (group.decode_focus is not None or not self.settings.needs_focus):
                focus = group.decode_focus
            else:
                seen = self._observe(group, with_focus=True)
                focus = seen.focus
                old_logprobs = None if keep_graph else seen.logprobs
            ref_logprobs = self._reference(group) if reference else None
        signals = GroupSignals(focus=_cpu(focus), old_logprobs=_cpu(old_logprobs), ref_logprobs=_cpu(ref_logprobs))
        return Look(group=group, signals=signals, logprobs=logprobs)

    def update(
        self, look: Look, advantages: Float[Tensor, "group token"], objective: Objective, denominator: float
    ) -> dict[str, tuple[float, float]]:
        """One backward of the whole row, or one per micro-batch and one through the prompt."""
        loss, group = GroupLoss(look, advantages, objective, denominator), look.group
        with evaluating(self._policy.model), torch.enable_grad():
            if look.logprobs is not None:
                return loss.backward(look.logprobs)
            if self._fits_one_row(len(group.texts)):
                return loss.backward(self._passes.packed(group, with_focus=False).logprobs)
            prompt = self._passes.prompt(group.prompt, with_focus=False)
            leaves = prompt.with_leaves()
            parts = [
                loss.backward(self._passes.completions(group, rows, leaves, with_focus=False).logprobs, rows)
                for rows in self._micro_batches(group)
            ]
            prompt.backward_from(leaves)
            return added(parts)

    def forget(self) -> None:
        """Let go of the image features."""
        self._features.forget()

    def _fits_one_row(self, rows: int) -> bool:
        limit = self.settings.rows_per_micro_batch
        return limit is None or rows <= limit

    def _micro_batches(self, group: RolloutGroup) -> Iterator[slice]:
        rows = self.settings.rows_per_micro_batch or len(group.texts)
        for start in range(0, len(group.texts), rows):
            yield slice(start, start + rows)

    @torch.no_grad()
    def _observe(self, group: RolloutGroup, *, with_focus: bool) -> RowsPass:
        """A pass without a graph, in as large parts as an update."""
        if self._fits_one_row(len(group.texts)):
            return self._passes.packed(group, with_focus=with_focus)
        prompt = self._passes.prompt(group.prompt, with_focus=with_focus)
        parts = [
            self._passes.completions(group, rows, prompt, with_focus=with_focus) for rows in self._micro_batches(group)
        ]
        focus = [part.focus for part in parts if part.focus is not None]
        return RowsPass(
            logprobs=torch.cat([part.logprobs for part in parts]), focus=torch.cat(focus) if focus else None
        )

    def _reference(self, group: RolloutGroup) -> Float[Tensor, "group token"]:
        with self._policy.reference():
            return self._observe(group, with_focus=False).logprobs


def _cpu(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.detach().cpu()
