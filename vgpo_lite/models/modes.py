"""Evaluation mode for a while, without what bitsandbytes does in it on some processors."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from bitsandbytes.nn import Linear4bit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the body in evaluation mode; every module gets its own mode back, whatever the body raises.

    4-bit layers keep their mode, which changes nothing they compute. In evaluation mode on a CPU with bfloat16
    instructions, the first forward of such a layer rounds its weights for good and cuts the gradient through it.
    """
    before = [(module, module.training) for module in model.modules() if not isinstance(module, Linear4bit)]
    try:
        for module, _ in before:
            module.training = False
        yield
    finally:
        for module, training in before:
            module.training = training
