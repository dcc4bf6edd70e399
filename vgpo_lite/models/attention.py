"""The project's one registration with transformers: attention that a caller can lead by the hand.

The language model runs under the name `SHARED_ATTENTION`. Whoever calls it may pass one keyword, `stage`, an object
that answers every layer's attention itself: the packed row of a group, a prompt whose keys and values are wanted,
completions on top of a prompt, a step of decoding. Without the keyword the model is an ordinary one (`sdpa`), padding
masks included. A second keyword, `watch`, shows every layer's queries and keys to an onlooker; it goes with or without
a stage.

A mask function is registered beside the attention function: transformers builds no mask for a name that has none, and
would drop padding masks in silence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor, nn
    from transformers import PreTrainedModel

SHARED_ATTENTION = "vgpo_lite"
"""The name in `config.text_config._attn_implementation`; the vision tower keeps its own."""


NO_MASK = torch.empty(1, 1, 0, 0)
"""The `attention_mask` beside a stage, which looks at none: transformers takes four axes for a mask already made. Of
none at all it would make one whose size is the square of the row, where positions begin anew."""


class AttentionStage(Protocol):
    """What answers attention in place of the model's own, one call per layer and forward.

    Under gradient checkpointing a layer is run a second time during the backward pass: whatever a stage writes down, it
    writes down the first time only.
    """

    def attend(
        self,
        layer: int,
        query: Float[Tensor, "batch head token dim"],
        key: Float[Tensor, "batch kv_head token dim"],
        value: Float[Tensor, "batch kv_head token dim"],
        *,
        scale: float,
    ) -> Float[Tensor, "batch token head dim"]:
        """Attention of one layer.

        Args:
            layer: The layer's place in the language model, from 0.
            query: Queries of the tokens of this forward, rotated.
            key: Their keys, rotated; `head` is a multiple of `kv_head`.
            value: Their values.
            scale: What the products of queries and keys are multiplied by.

        Returns:
            What each token gathered, tokens before heads, in the dtype of `query`.
        """
        ...


class AttentionWatch(Protocol):
    """An onlooker of attention: how focus falls out of a forward that is made anyway."""

    def see(
        self,
        layer: int,
        query: Float[Tensor, "batch head token dim"],
        key: Float[Tensor, "batch kv_head token dim"],
        *,
        scale: float,
    ) -> None:
        """Called once per layer and forward, before the layer's attention; the arguments are those of `attend`."""
        ...


class _AttentionModule(Protocol):
    layer_idx: int


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    stage: AttentionStage | None = None,
    watch: AttentionWatch | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    layer = cast("_AttentionModule", module).layer_idx
    if watch is not None:
        watch.see(layer, query, key, scale=scaling)
    if stage is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    return stage.attend(layer, query, key, value, scale=scaling), None


AttentionInterface.register(SHARED_ATTENTION, _attention)
AttentionMaskInterface.register(SHARED_ATTENTION, sdpa_mask)


def use_shared_attention(model: PreTrainedModel) -> None:
    """Let the language model of `model` take a `stage`; the vision tower keeps its attention. Harmless when repeated.

    Args:
        model: The bare conditional-generation model (`Family.bare` unwraps PEFT's).
    """
    model.set_attn_implementation({"text_config": SHARED_ATTENTION})
