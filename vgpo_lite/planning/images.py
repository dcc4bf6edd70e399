"""The size an image is given before it is cut into patches, as the families' processors compute it."""

from __future__ import annotations

import math


def resized(size: tuple[int, int], *, side: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width, whole tokens both, within the pixel budget where whole tokens allow it.

    Args:
        size: Height and width in pixels.
        side: Pixels of a token's side.
        min_pixels: Smaller images are scaled up to it.
        max_pixels: Larger ones are scaled down to it.

    >>> resized((480, 640), side=28, min_pixels=3136, max_pixels=401_408)
    (476, 644)
    >>> resized((3000, 4000), side=28, min_pixels=3136, max_pixels=401_408)
    (532, 728)
    """
    height, width = (round(length / side) * side for length in size)
    if height * width > max_pixels:
        factor = math.sqrt(size[0] * size[1] / max_pixels)
        height, width = (max(side, math.floor(length / factor / side) * side) for length in size)
    elif height * width < min_pixels:
        factor = math.sqrt(min_pixels / (size[0] * size[1]))
        height, width = (math.ceil(length * factor / side) * side for length in size)
    return height, width
