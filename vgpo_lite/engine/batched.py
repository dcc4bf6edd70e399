"""The ordinary way, as the reference and for models that cannot share: as many copies of the prompt as completions.

Rows are right-padded and masked, and the model's own attention runs over all of them. Image features are computed once:
a policy may sample ids that stand for images, and the model's own placing of features counts ids.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vgpo_lite.algorithm.focus import attention_focus, similarity_focus
from vgpo_lite.data_types import GroupSignals
from vgpo_lite.engine.batched_rollout import sample_groups_from_copies
from vgpo_lite.engine.capture import AttentionCapture
from vgpo_lite.engine.features import FeatureStore
from vgpo_lite.engine.gradients import GroupLoss, added
from vgpo_lite.engine.logprobs import token_logprobs
from vgpo_lite.engine.passes import RowsPass
from vgpo_lite.engine.protocol import Look
from vgpo_lite.failpoints import failpoint
from vgpo_lite.interruption import poll_stop
from vgpo_lite.models.checkpointing import recomputing
from vgpo_lite.models.modes import evaluating

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from vgpo_lite.algorithm.objective import Objective
    from vgpo_lite.data_types import Prompt, RolloutGroup, Sampling
    from vgpo_lite.engine.protocol import EngineSettings
    from vgpo_lite.engine.rollout import DecodeProgress
    from vgpo_lite.models.policy import Policy


class BatchedEngine:
    """An `Engine` on copies; see `protocol.Engine`.

    Attributes:
        settings: How it works.
    """

    def __init__(self, policy: Policy, settings: EngineSettings) -> None:
        self.settings = settings
        self._policy = policy
        self._features = FeatureStore(policy)
        self._layers = policy.family.layers(policy.model)

    def rows_at_once(self, group: RolloutGroup) -> int:
        """All of them, unless the settings say less."""
        return min(self.settings.rows_per_micro_batch or len(group.texts), len(group.texts))

    def sample(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        places: Sequence[int],
        on_step: Callable[[DecodeProgress], None] | None = None,
    ) -> list[RolloutGroup]:
        """Copies of image and prompt decode with the model's own cache."""
        return sample_groups_from_copies(self._policy, prompts, sampling, places=places, on_step=on_step)

    def look(self, group: RolloutGroup, *, keep_graph: bool, reference: bool) -> Look:
        """One forward where a micro-batch holds the group, otherwise one pass of micro-batches."""
        micro_batches, ref_logprobs = self._micro_batches(group), None
        keeps = keep_graph and len(micro_batches) == 1
        with evaluating(self._policy.model):
            with torch.set_grad_enabled(keeps):
                parts: list[RowsPass] = []
                for rows in micro_batches:
                    failpoint("look.micro_batch")
                    poll_stop()
                    parts.append(self._rows(group, rows, with_focus=True))
            if reference:
                with torch.no_grad(), self._policy.reference():
                    ref_logprobs = torch.cat([self._rows(group, r, with_focus=False).logprobs for r in micro_batches])
        focus = [part.focus for part in parts if part.focus is not None]
        logprobs = torch.cat([part.logprobs for part in parts])
        signals = GroupSignals(
            focus=torch.cat(focus).cpu() if focus else None,
            old_logprobs=None if keep_graph else logprobs.cpu(),
            ref_logprobs=None if ref_logprobs is None else ref_logprobs.cpu(),
        )
        return Look(group=group, signals=signals, logprobs=logprobs if keeps else None)

    def update(
        self, look: Look, advantages: Float[Tensor, "group token"], objective: Objective, denominator: float
    ) -> dict[str, tuple[float, float]]:
        """One backward per micro-batch."""
        loss = GroupLoss(look, advantages, objective, denominator)
        with evaluating(self._policy.model), torch.enable_grad():
            if look.logprobs is not None:
                return loss.backward(look.logprobs)
            return added(
                [
                    loss.backward(self._rows(look.group, rows, with_focus=False).logprobs, rows)
                    for rows in self._micro_batches(look.group)
                ]
            )

    def forget(self) -> None:
        """Let go of the image features."""
        self._features.forget()

    def _micro_batches(self, group: RolloutGroup) -> list[slice]:
        count, rows = len(group.texts), self.rows_at_once(group)
        return [slice(start, start + rows) for start in range(0, count, rows)]

    def _rows(self, group: RolloutGroup, rows: slice, *, with_focus: bool) -> RowsPass:
        """A forward over copies of the prompt, each with its completion behind it."""
        policy, settings = self._policy, self.settings
        inputs = policy.family.prompt_inputs(policy.model, group.prompt, self._features.of(group.prompt))
        device, start = inputs.inputs_embeds.device, inputs.length
        mask = group.completion_mask[rows].to(device)
        token_ids = group.completion_ids[rows].to(device).masked_fill(~mask, 0)  # anything may lie under the padding
        copies, width = token_ids.shape
        watches = with_focus and group.prompt.has_image and settings.focus_signal == "attention"
        watch = AttentionCapture(policy.family.capture_layer(policy.model), first_query=start - 1) if watches else None
        embeds = torch.cat(
            [inputs.inputs_embeds.expand(copies, -1, -1), policy.family.embed(policy.model, token_ids)], dim=1
        )
        kept = torch.cat([mask.new_ones(copies, start), mask], dim=1)
        with recomputing(self._layers if settings.recompute and torch.is_grad_enabled() else ()):
            hidden = policy.family.language_model(policy.model)(
                inputs_embeds=embeds,
                position_ids=inputs.row_positions(width, rows=copies),
                attention_mask=policy.family.row_masks(policy.model, inputs, embeds, kept),
                use_cache=False,
                watch=watch,
                **inputs.extras(start + width, rows=copies),
            ).last_hidden_state
        flat = token_logprobs(
            hidden[:, start - 1 : -1][mask],
            policy.family.lm_head(policy.model).weight,
            token_ids[mask],
            temperature=settings.temperature,
            chunk_size=settings.logprob_chunk,
        )
        focus = None
        if watch is not None:
            query, key, scale = watch.seen
            focus = attention_focus(
                query[:, :, :-1],
                key[0, :, :start],
                key[:, :, start:],
                inputs.image_mask,
                scale=scale,
                chunk_size=settings.focus_chunk,
            )
        elif with_focus and group.prompt.has_image:
            detached = hidden.detach()
            focus = similarity_focus(detached[:, start:], detached[0, :start][inputs.image_mask])
        return RowsPass(
            logprobs=torch.zeros(mask.shape, device=device).masked_scatter(mask, flat),
            focus=None if focus is None else focus.masked_fill(~mask, 0.0),
        )
