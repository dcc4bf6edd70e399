"""The size an image is given before it is cut into patches or tiles, as the families' processors compute it."""

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


def tiles_per_side(tile: int, *, max_pixels: int) -> int:
    """Square tiles along a side of the largest square within the pixel budget, never fewer than one.

    From two on, the whole image is shown in one tile more, which counts too.

    Args:
        tile: Pixels of a tile's side.
        max_pixels: Of all tiles together.

    >>> [tiles_per_side(512, max_pixels=pixels) for pixels in (200_704, 1_310_719, 1_310_720, 5_000_000)]
    [1, 1, 2, 4]
    """
    return max(math.isqrt(max(max_pixels // tile**2 - 1, 0)), 1)


def split_tiles(size: tuple[int, int], *, tile: int, longest_edge: int) -> tuple[int, int]:
    """Rows and columns of tiles that SmolVLM splits an image into; none of either where one tile holds it.

    Args:
        size: Height and width in pixels.
        tile: Pixels of a tile's side.
        longest_edge: The image's longer side is scaled to it.

    >>> split_tiles((480, 640), tile=512, longest_edge=2048)
    (3, 4)
    >>> split_tiles((480, 640), tile=512, longest_edge=512)
    (0, 0)
    """
    height, width = size
    if width >= height:
        shorter = max(int(longest_edge / (width / height)), 1)
        height, width = shorter + shorter % 2, longest_edge
    else:
        shorter = max(int(longest_edge * (width / height)), 1)
        height, width = longest_edge, shorter + shorter % 2
    rows, columns = math.ceil(height / tile), math.ceil(width / tile)
    return (0, 0) if rows == columns == 1 else (rows, columns)


def split_tokens(size: tuple[int, int], *, tile: int, tile_tokens: int, max_pixels: int) -> int:
    """Image tokens of an image that SmolVLM splits, whose processors scale to at most four tiles a side.

    >>> split_tokens((480, 640), tile=512, tile_tokens=64, max_pixels=2_000_000)
    320
    """
    side = min(tiles_per_side(tile, max_pixels=max_pixels), 4)
    rows, columns = split_tiles(size, tile=tile, longest_edge=side * tile)
    return (rows * columns + 1) * tile_tokens


def most_tiles(tile: int, *, max_pixels: int) -> int:
    """Tiles within the pixel budget, one more with the whole image counted where there are two or more; at least one.

    >>> [most_tiles(448, max_pixels=pixels) for pixels in (100_000, 401_408, 602_112, 3_000_000)]
    [1, 1, 2, 13]
    """
    return max(max_pixels // tile**2 - 1, 1)


def cropped_tiles(size: tuple[int, int], *, tile: int, most: int) -> tuple[int, int]:
    """Rows and columns of tiles that InternVL crops an image into; none of either where one tile holds it.

    Of all arrangements the one whose form is nearest to the image's; of equally near ones the largest that is not
    twice as large as the image.

    Args:
        size: Height and width in pixels.
        tile: Pixels of a tile's side.
        most: Tiles there may be.

    >>> cropped_tiles((480, 640), tile=448, most=12)
    (3, 4)
    >>> cropped_tiles((480, 640), tile=448, most=1)
    (0, 0)
    """
    height, width = size
    best, least = (1, 1), math.inf
    arrangements = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    for columns, rows in sorted(arrangements, key=math.prod):
        distance = abs(width / height - columns / rows)
        if distance < least or (distance == least and 2 * height * width > tile**2 * rows * columns):
            best, least = (rows, columns), distance
    return (0, 0) if best == (1, 1) else best


def cropped_tokens(size: tuple[int, int], *, tile: int, tile_tokens: int, max_pixels: int) -> int:
    """Image tokens of an image that InternVL crops, whose processors take at most twelve tiles.

    >>> cropped_tokens((480, 640), tile=448, tile_tokens=256, max_pixels=401_408)
    256
    """
    rows, columns = cropped_tiles(size, tile=tile, most=min(most_tiles(tile, max_pixels=max_pixels), 12))
    return (rows * columns + 1) * tile_tokens


def pooled_tokens(size: tuple[int, int], *, tile: int, tile_tokens: int, max_pixels: int) -> int:
    """Image tokens of an image that Gemma 3 scales to one tile, whatever its size and the budget."""
    return tile_tokens
