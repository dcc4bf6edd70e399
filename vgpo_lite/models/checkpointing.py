"""Gradient checkpointing of chosen layers, without train mode and without touching the vision tower."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn
    from transformers import PreTrainedModel


def allow_recomputation(part: PreTrainedModel) -> None:
    """Prepare the layers of a model part for `recomputing`; harmless when repeated.

    transformers also makes the embeddings' output require a gradient, for the sake of reentrant checkpointing. That is
    undone: nothing here needs it, and it would differentiate whatever stands before the first adapter for nothing.
    """
    part.disable_input_require_grads()
    # Nothing random happens inside a layer (dropout is 0), so no generator's state is kept for the second run.
    part.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": False})
    part.disable_input_require_grads()


@contextmanager
def recomputing(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Within the body, these layers keep only their inputs and run again during the backward pass.

    transformers checkpoints a layer whose own `training` flag is set. Only that flag is: what lies inside the layer
    stays in evaluation mode, so no dropout can make two forwards differ. No cache may be used in the body: under
    checkpointing it would be dropped in silence.
    """
    before = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.training = True
        yield
    finally:
        for layer, training in zip(layers, before, strict=True):
            layer.training = training
