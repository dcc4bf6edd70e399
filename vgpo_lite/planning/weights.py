"""Bytes that are held for the whole run: weights, adapters, gradients, the optimizer's states."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vgpo_lite.planning.architecture import Architecture, Linear

BLOCK = 64
"""Weights that share a scale (bitsandbytes' NF4)."""
SCALE_BLOCK = 256
"""Scales that share a scale, after double quantization (QLoRA, Sec. 3)."""
TABLES = 16 * 4 + 256 * 4
"""What every 4-bit layer brings: the 16 values of NF4 and the 256 of the scales' scales, in float32."""

STATE_BLOCK = 256
"""Numbers of an 8-bit optimizer state that share a scale (bitsandbytes)."""
SMALLEST_8BIT_STATE = 4096
"""Adapters with fewer numbers keep float32 states (bitsandbytes' min_8bit_size)."""


def nf4_bytes(weights: int) -> int:
    """A matrix in NF4 with double quantization: four bits a weight, a byte per 64, four bytes per 64 x 256, the tables.

    >>> nf4_bytes(1536 * 8960) - 1536 * 8960 // 2
    219488
    """
    scales = -(-weights // BLOCK)
    return -(-weights // 2) + scales + 4 * -(-scales // SCALE_BLOCK) + TABLES


def weight_bytes(model: Architecture, *, quantized: bool, itemsize: int) -> int:
    """The loaded model without adapters.

    Args:
        model: The model.
        quantized: Whether the decoder's linear layers are in NF4.
        itemsize: Bytes of every other number.
    """
    if not quantized:
        return model.parameters * itemsize
    matrices = [linear.weights for linear in model.layer_linears]
    plain = model.parameters - model.layers * sum(matrices)
    return plain * itemsize + model.layers * sum(map(nf4_bytes, matrices))


def copy_bytes(model: Architecture, *, itemsize: int) -> int:
    """The decoder's linear layers once more, as ordinary weights that sample.

    Args:
        model: The model.
        itemsize: Bytes of a number that is not quantized.
    """
    return itemsize * model.layers * sum(linear.weights for linear in model.layer_linears)


def adapted_linears(model: Architecture, *, vision: bool) -> list[Linear]:
    """The layers that get adapters."""
    linears = list(model.layer_linears) * model.layers
    return linears + list(model.vision.block_linears) * model.vision.depth if vision else linears


def adapter_matrices(linears: Iterable[Linear], *, rank: int) -> list[int]:
    """The numbers of each A and each B."""
    return [size * rank for linear in linears for size in (linear.inputs, linear.outputs)]


def state_bytes(matrices: Iterable[int], *, in_8_bits: bool) -> int:
    """Both of AdamW's moments.

    >>> state_bytes([4096], in_8_bits=True), state_bytes([4096, 100], in_8_bits=False)
    (8320, 33568)
    """
    plain = 2 * 4
    return sum(
        2 * (size + 4 * -(-size // STATE_BLOCK)) if in_8_bits and size >= SMALLEST_8BIT_STATE else plain * size
        for size in matrices
    )
