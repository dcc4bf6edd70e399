"""The tiles and tokens of an image that LLaVA-OneVision shows: the whole image in a tile, then a canvas of more tiles.

The canvas is one of a list. What its tiles make of the image is joined into one map, cut to the image's form, shrunk
where it is large, and each of its rows is ended by a token of its own.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from vgpo_lite.planning.images import most_tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

Size = tuple[int, int]
"""Height and width."""

CANVAS_SIDE = 6
"""Tiles along a side of the largest canvas that the released processors list: all from 1 x 1 to 6 x 6."""

MAP_TILES = 9
"""Tiles whose tokens a map holds before it is shrunk, in the released models (`anyres_max_9`)."""

_SHRUNK_ABOVE = 1.1
"""How much wider and higher than that a map must be to be shrunk; both models and processors have this number."""


def best_canvas(size: Size, canvases: Sequence[Sequence[int]]) -> Size:
    """The canvas that keeps most of an image's pixels, and of those that keep as many the one with the least padding.

    The rule of transformers' `select_best_resolution`; the first of equal ones.

    Args:
        size: Height and width of the image in pixels.
        canvases: Those of each canvas, at least one.

    >>> best_canvas((480, 640), [(384, 384), (768, 768), (384, 768), (1152, 1152)])
    (768, 768)
    """
    height, width = size
    found, most, least = (0, 0), 0, math.inf
    for high, wide in canvases:
        scale = min(wide / width, high / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        padding = high * wide - kept
        if kept > most or (kept == most and padding < least):
            found, most, least = (high, wide), kept, padding
    return found


def canvas_budget(canvases: Sequence[Sequence[int]], *, tile: int, max_pixels: int) -> int:
    """Most pixels that the canvas of an image may have, so that the whole image beside it is in the budget as well.

    Args:
        canvases: Height and width of each in pixels.
        tile: Pixels of a tile's side.
        max_pixels: Of all tiles together. The smallest canvas is always allowed.

    >>> canvas_budget([(384, 384), (384, 768)], tile=384, max_pixels=442_368)
    294912
    """
    return max(most_tiles(tile, max_pixels=max_pixels) * tile**2, min(high * wide for high, wide in canvases))


def canvas_fit(size: Size, *, canvases: Sequence[Sequence[int]], tile: int, max_pixels: int) -> Size:
    """The size that an image is scaled down to so that its canvas is within the pixel budget, the whole image counted.

    An image that fits inside a canvas keeps all its pixels there, and so its `best_canvas` has no more tiles than that
    one: of canvases that keep all pixels the smallest is taken. An image whose canvas is within the budget stays as it
    is.

    Args:
        size: Height and width in pixels.
        canvases: Height and width of each in pixels.
        tile: Pixels of a tile's side.
        max_pixels: Of all tiles together. The smallest canvas is always allowed.

    >>> canvases = [(384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7)]
    >>> canvas_fit((480, 640), canvases=canvases, tile=384, max_pixels=401_408)
    (288, 384)
    >>> canvas_fit((480, 640), canvases=canvases, tile=384, max_pixels=737_280)
    (480, 640)
    """
    pixels = canvas_budget(canvases, tile=tile, max_pixels=max_pixels)
    if math.prod(best_canvas(size, canvases)) <= pixels:
        return size
    height, width = size
    high, wide = best_canvas(size, [(high, wide) for high, wide in canvases if high * wide <= pixels])
    scale = min(high / height, wide / width)
    return min(math.ceil(height * scale), high), min(math.ceil(width * scale), wide)


def joined_map(size: Size, canvas: Size, *, tile: int, side: int, most: int = MAP_TILES) -> Size:
    """Rows and columns of the tokens that a canvas's tiles make of an image, those that end rows left out.

    Either may be zero where an image is long and thin.

    Args:
        size: Height and width of the image in pixels.
        canvas: Those of its canvas.
        tile: Pixels of a tile's side.
        side: Tokens along it.
        most: Tiles whose tokens a map holds before it is shrunk.

    >>> joined_map((480, 640), (768, 768), tile=384, side=27)
    (40, 54)
    >>> joined_map((2000, 2000), (2304, 2304), tile=384, side=27)
    (81, 81)
    """
    (height, width), (rows, columns) = size, (length // tile * side for length in canvas)
    if width / height > columns / rows:
        rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
    else:
        columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
    ratio = math.sqrt(rows * columns / (most * side**2))
    return (int(rows // ratio), int(columns // ratio)) if ratio > _SHRUNK_ABOVE else (rows, columns)


def joined_tokens(size: Size, *, tile: int, tile_tokens: int, max_pixels: int) -> int:
    """Image tokens of the only image of a prompt that LLaVA-OneVision shows, by the canvases of the released models.

    Of several images in one prompt each is a tile and one token more.

    >>> joined_tokens((480, 640), tile=384, tile_tokens=729, max_pixels=401_408)
    1317
    """
    along = [tile * tiles for tiles in range(1, CANVAS_SIDE + 1)]
    canvases = [(high, wide) for high in along for wide in along]
    given = canvas_fit(size, canvases=canvases, tile=tile, max_pixels=max_pixels)
    rows, columns = joined_map(given, best_canvas(given, canvases), tile=tile, side=math.isqrt(tile_tokens))
    return tile_tokens + rows * (columns + 1)


def most_joined_tokens(tile_tokens: int, tiles: int) -> int:
    """No image has more tokens whose canvas has at most that many tiles: those of a column of tiles has as many.

    >>> most_joined_tokens(729, 1), most_joined_tokens(729, 36)
    (1485, 8829)
    """
    whole = int(min(tiles, _SHRUNK_ABOVE**2 * MAP_TILES) * tile_tokens)
    return tile_tokens + whole + math.isqrt(tile_tokens) * min(tiles, CANVAS_SIDE)
