"""The engine that sees each image and each prompt once per group: undivided, or in micro-batches.

*Undivided*: the prompt, then all completions on its keys and values, one graph, one backward pass. *In micro-batches*:
the prompt's keys and values are handed out as leaves; each micro-batch of completions goes backward into them on its
own; then one backward pass through the prompt. Both give the gradients of the ordinary way exactly. Micro-batches need
the memory of the prompt and one of them, whatever the group's size.
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
from vgpo_lite.failpoints import failpoint
from vgpo_lite.interruption import poll_stop
from vgpo_lite.models.modes import evaluating
from vgpo_lite.planning.update import WEIGHT_TOKENS, Sizes, UpdatePlan, undivided, update_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
        self._layer_count = len(policy.family.layers(policy.model))
        self._layer_bytes = policy.family.kept_numbers(policy.model) * policy.dtype.itemsize

    def rows_at_once(self, group: RolloutGroup) -> int:
        """As the plan says."""
        return min(self._plan(group).rows, len(group.texts))

    def sample(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        places: Sequence[int],
        on_step: Callable[[DecodeProgress], None] | None = None,
    ) -> list[RolloutGroup]:
        """One prefill per prompt, its keys and values once per group. Focus is read for updates in micro-batches."""
        divides = sampling.num_generations > (self.settings.rows_per_micro_batch or 1)
        plan = DecodePlan(
            prompts_per_decode=self.settings.prompts_per_decode,
            focus_signal=self.settings.focus_signal if divides else None,
            features=self._features.of,
            fixed=self.settings.decode_graph,
        )
        return sample_groups(self._policy, prompts, sampling, places=places, plan=plan, on_step=on_step)

    def look(self, group: RolloutGroup, *, keep_graph: bool, reference: bool) -> Look:
        """Undivided with a graph, focus costs no pass; in micro-batches it comes from decoding, or from one pass."""
        plan, logprobs, old_logprobs = self._plan(group), None, None
        with evaluating(self._policy.model):
            if keep_graph and plan.rows < len(group.texts) and self._knows_focus(group):
                focus = group.decode_focus
            elif keep_graph and (plan.rows >= len(group.texts) or self.settings.rows_per_micro_batch is None):
                failpoint("look.micro_batch")
                with torch.enable_grad():
                    seen = self._undivided(group, plan, with_focus=True)
                logprobs, focus = seen.logprobs, seen.focus
            else:
                seen = self._observe(group, plan, with_focus=True)
                focus, old_logprobs = seen.focus, None if keep_graph else seen.logprobs
            ref_logprobs = self._reference(group, plan) if reference else None
        signals = GroupSignals(focus=_cpu(focus), old_logprobs=_cpu(old_logprobs), ref_logprobs=_cpu(ref_logprobs))
        return Look(group=group, signals=signals, logprobs=logprobs)

    def update(
        self, look: Look, advantages: Float[Tensor, "group token"], objective: Objective, denominator: float
    ) -> dict[str, tuple[float, float]]:
        """One backward pass, or one per micro-batch and one through the prompt."""
        loss, group = GroupLoss(look, advantages, objective, denominator), look.group
        with evaluating(self._policy.model), torch.enable_grad():
            if look.logprobs is not None:
                return loss.backward(look.logprobs)
            plan, parts = self._plan(group), []
            if plan.rows >= len(group.texts):
                return loss.backward(self._undivided(group, plan, with_focus=False).logprobs)
            prompt = self._passes.prompt(group.prompt, with_focus=False, kept_layers=plan.kept_prompt_layers)
            leaves = prompt.with_leaves()
            for rows in _micro_batches(group, plan):
                part = self._passes.completions(group, rows, leaves, with_focus=False, kept_layers=plan.kept_layers)
                parts.append(loss.backward(part.logprobs, rows))
                del part  # its graph, before the next one is built
            prompt.backward_from(leaves)
            return added(parts)

    def forget(self) -> None:
        """Let go of the image features."""
        self._features.forget()

    def _plan(self, group: RolloutGroup) -> UpdatePlan:
        longest, rows = int(group.completion_mask.sum(dim=1).max()), len(group.texts)
        sizes = Sizes(group.prompt.input_ids.shape[0], longest, rows, self._layer_count, self._layer_bytes)
        recompute, wanted = self.settings.recompute, self.settings.rows_per_micro_batch
        if wanted is not None:
            return undivided(sizes, recompute=recompute)._replace(rows=wanted)
        return update_plan(sizes, recompute=recompute, weight_tokens=WEIGHT_TOKENS[self._policy.device.type])

    def _knows_focus(self, group: RolloutGroup) -> bool:
        return group.decode_focus is not None or not group.prompt.has_image or not self.settings.needs_focus

    def _undivided(self, group: RolloutGroup, plan: UpdatePlan, *, with_focus: bool) -> RowsPass:
        if plan.rows < len(group.texts):  # made for less at one time
            plan = plan._replace(kept_layers=1 if self.settings.recompute else self._layer_count)
        prompt = self._passes.prompt(group.prompt, with_focus=with_focus, kept_layers=plan.kept_prompt_layers)
        return self._passes.completions(group, slice(None), prompt, with_focus=with_focus, kept_layers=plan.kept_layers)

    @torch.no_grad()
    def _observe(self, group: RolloutGroup, plan: UpdatePlan, *, with_focus: bool) -> RowsPass:
        """A pass without a graph, in parts as large as an update's."""
        prompt = self._passes.prompt(group.prompt, with_focus=with_focus, kept_layers=self._layer_count)
        parts: list[RowsPass] = []
        for rows in _micro_batches(group, plan):
            failpoint("look.micro_batch")
            poll_stop()
            kept = self._layer_count
            parts.append(self._passes.completions(group, rows, prompt, with_focus=with_focus, kept_layers=kept))
        focus = [part.focus for part in parts if part.focus is not None]
        return RowsPass(
            logprobs=torch.cat([part.logprobs for part in parts]), focus=torch.cat(focus) if focus else None
        )

    def _reference(self, group: RolloutGroup, plan: UpdatePlan) -> Float[Tensor, "group token"]:
        with self._policy.reference():
            return self._observe(group, plan, with_focus=False).logprobs


def _micro_batches(group: RolloutGroup, plan: UpdatePlan) -> list[slice]:
    return [slice(start, start + plan.rows) for start in range(0, len(group.texts), plan.rows)]


def _cpu(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.detach().cpu()
