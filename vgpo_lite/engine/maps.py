"""Attention maps of a group, completion by completion: slower than focus, and only for people to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from vgpo_lite.algorithm.maps import attention_maps
from vgpo_lite.engine.capture import AttentionCapture
from vgpo_lite.engine.features import FeatureStore
from vgpo_lite.models.modes import evaluating

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from vgpo_lite.data_types import RolloutGroup
    from vgpo_lite.models.policy import Policy


class AttentionMap(NamedTuple):
    """Where one completion's tokens looked, on the CPU; the two add up to 1 for each token."""

    on_prompt: Float[Tensor, "token prompt"]
    on_itself: Float[Tensor, " token"]


@torch.no_grad()
def group_attention_maps(policy: Policy, group: RolloutGroup) -> list[AttentionMap]:
    """Attention of every completion of a group in the last layer that sees the whole prompt, without padding.

    One plain forward per completion, with the model's own attention.
    """
    family, model = policy.family, policy.model
    layer, maps = family.capture_layer(model), []
    with evaluating(model):
        inputs = family.prompt_inputs(model, group.prompt, FeatureStore(policy).of(group.prompt))
        start, device = inputs.length, inputs.inputs_embeds.device
        for row, kept in zip(group.completion_ids, group.completion_mask, strict=True):
            ids = row[kept][None].to(device)
            watch = AttentionCapture(layer)
            embeds = torch.cat([inputs.inputs_embeds, family.embed(model, ids)], dim=1)
            all_kept = torch.ones(embeds.shape[:2], dtype=torch.bool, device=device)
            family.language_model(model)(
                inputs_embeds=embeds,
                position_ids=inputs.row_positions(ids.shape[1]),
                attention_mask=family.row_masks(model, inputs, embeds, all_kept),
                use_cache=False,
                watch=watch,
                **inputs.extras(start + ids.shape[1], rows=1),
            )
            query, key, scale = watch.seen
            on_prompt, on_itself = attention_maps(
                query[0, :, start - 1 : -1], key[0, :, :start], key[0, :, start:], scale=scale
            )
            maps.append(AttentionMap(on_prompt.cpu(), on_itself.cpu()))
    return maps
