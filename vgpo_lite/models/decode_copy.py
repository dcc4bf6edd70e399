"""A copy of the language model's linear layers that samples: base and adapter in one matrix, in 16 bits.

A 4-bit layer dequantizes its weight in every forward, however few tokens it is asked about, and its adapter adds two
small products. While tokens are sampled one by one, that is most of the time. The copy is rounded once where the layer
rounds its weight and its adapter's output apart, so its log-probabilities differ a little from the policy's: the loss
makes up for it (`algorithm.surrogate.importance_weight`). The layers themselves are never changed.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from torch import nn

from vgpo_lite.errors import ModelError
from vgpo_lite.models.quantization import plain_weight

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float
    from torch import Tensor

    from vgpo_lite.models.policy import Policy

ROWS = 1024
"""Of a weight that are summed in float32 at one time: 15 MB at 3,584 columns."""


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a layer is, and what stands there while tokens are sampled.

    Attributes:
        parent: The module that calls it.
        name: What the parent calls it.
        own: The layer itself: in 4 bits or not, with adapters around it or not.
        copy: An ordinary layer of the same sizes.
    """

    parent: nn.Module
    name: str
    own: nn.Module
    copy: nn.Linear

    @torch.no_grad()
    def refresh(self) -> None:
        """Fill the copy: W + sum of scale B A over the active adapters, in float32, rounded once."""
        weight, updates = self.copy.weight, list(_updates(self.own))
        weight.copy_(plain_weight(_base(self.own)))
        for start in range(0, weight.shape[0] if updates else 0, ROWS):
            rows = weight[start : start + ROWS]
            total = rows.float()
            for scale, a, b in updates:
                total = total.addmm(b[start : start + ROWS].float(), a.float(), alpha=scale)
            rows.copy_(total)


class DecodeCopy:
    """The copy of one policy. It takes no memory before it is first used; then its place stays the same."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._places: list[_Place] = []

    @property
    def is_made(self) -> bool:
        """Whether it takes memory."""
        return bool(self._places)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the copy of the adapters as they stand take the layers' place; they are back whatever the body raises.

        Raises:
            ModelError: An adapter does more than add a product of two matrices to its layer.
        """
        if not self._places:
            self._places = _places(self._policy)
        for place in self._places:
            place.refresh()
        try:
            for place in self._places:
                setattr(place.parent, place.name, place.copy)
            yield
        finally:
            for place in self._places:
                setattr(place.parent, place.name, place.own)


def _base(own: Any) -> nn.Module:
    """The layer under its adapters."""
    return own.get_base_layer() if isinstance(own, LoraLayer) else own


def _updates(own: Any) -> Iterator[tuple[float, Float[Tensor, "rank in"], Float[Tensor, "out rank"]]]:
    """Scale, A and B of each adapter that counts."""
    if isinstance(own, LoraLayer) and not own.disable_adapters:
        halves: Any = own.lora_A, own.lora_B
        for adapter in own.active_adapters:
            a, b = (half[adapter].weight for half in halves)
            yield own.scaling[adapter], a, b


def _places(policy: Policy) -> list[_Place]:
    """Every layer that is in 4 bits or has adapters, with room for its copy."""
    places = []
    for layer in policy.family.layers(policy.model):
        for path, own in layer.named_modules():
            parent, _, name = path.rpartition(".")
            if isinstance(own, LoraLayer) or (isinstance(own, Linear4bit) and name != "base_layer"):
                copy = _empty_copy(path, own, policy)
                places.append(
                    _Place(parent=layer.get_submodule(parent), name=name, own=layer.get_submodule(path), copy=copy)
                )
    return places


def _empty_copy(path: str, own: Any, policy: Policy) -> nn.Linear:
    """An ordinary layer with an unfilled weight and the layer's own bias."""
    base = _base(own)
    strange = isinstance(own, LoraLayer) and (own.merged or own.lora_variant or any(own.lora_bias.values()))
    if strange or not isinstance(base, nn.Linear):
        raise ModelError(
            f"the adapter of {path} is no plain LoRA around a linear layer (DoRA, a bias of its own, or merged), so it "
            "cannot be added into a copy for sampling. Set decode_weights=quantized."
        )
    copy = nn.Linear(base.in_features, base.out_features, bias=False, device="meta")
    empty = torch.empty(base.out_features, base.in_features, dtype=policy.dtype, device=policy.device)
    copy.weight = nn.Parameter(empty, requires_grad=False)
    copy.bias = base.bias
    return copy.eval()
