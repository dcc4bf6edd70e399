"""Which part of an image each of its tokens shows."""

from __future__ import annotations

from typing import NamedTuple


class Grid(NamedTuple):
    """Which part of an image each of its tokens shows, on a grid of whole tokens.

    Attributes:
        rows: Rows of cells.
        columns: Columns of them.
        areas: Of each image token the cells it shows: top, bottom (not included), left, right (not included). `NOWHERE`
            for a token that shows no part of the image.
    """

    rows: int
    columns: int
    areas: tuple[tuple[int, int, int, int], ...]


NOWHERE = (0, 0, 0, 0)
"""No cells."""


def cells(rows: int, columns: int) -> tuple[tuple[int, int, int, int], ...]:
    """The areas of a grid's cells, row by row."""
    return tuple((row, row + 1, column, column + 1) for row in range(rows) for column in range(columns))


def tiled_grid(rows: int, columns: int, side: int) -> Grid:
    """Tiles of `side` x `side` tokens row by row, then the whole image as one more; that one alone where rows are none.

    >>> tiled_grid(1, 2, 1)
    Grid(rows=1, columns=2, areas=((0, 1, 0, 1), (0, 1, 1, 2), (0, 1, 0, 2)))
    >>> tiled_grid(0, 0, 1)
    Grid(rows=1, columns=1, areas=((0, 1, 0, 1),))
    """
    height, width = max(rows, 1), max(columns, 1)
    tiles = [
        (top + row * side, bottom + row * side, left + column * side, right + column * side)
        for row in range(rows)
        for column in range(columns)
        for top, bottom, left, right in cells(side, side)
    ]
    whole = [
        (top * height, bottom * height, left * width, right * width) for top, bottom, left, right in cells(side, side)
    ]
    return Grid(height * side, width * side, (*tiles, *whole))


def joined_grid(rows: int, columns: int, side: int) -> Grid:
    """The whole image in `side` x `side` tokens, then row by row, each row ended by a token that shows nothing.

    A token of the whole image shows every cell that it touches.

    >>> joined_grid(1, 2, 1)
    Grid(rows=1, columns=2, areas=((0, 1, 0, 2), (0, 1, 0, 1), (0, 1, 1, 2), (0, 0, 0, 0)))
    >>> joined_grid(3, 1, 2).areas[:4]
    ((0, 2, 0, 1), (0, 2, 0, 1), (1, 3, 0, 1), (1, 3, 0, 1))
    """
    height, width = max(rows, 1), max(columns, 1)
    whole = [
        (top * height // side, -(-bottom * height // side), left * width // side, -(-right * width // side))
        for top, bottom, left, right in cells(side, side)
    ]
    lines = ((*((row, row + 1, column, column + 1) for column in range(columns)), NOWHERE) for row in range(rows))
    return Grid(height, width, (*whole, *(area for line in lines for area in line)))


def squared_grid(size: tuple[int, int], side: int) -> Grid:
    """An image in the middle of a square of `side` x `side` tokens, then a token that shows nothing.

    Tokens that show the square beside the image alone show nothing of it.

    Args:
        size: Height and width of the image.
        side: Tokens along the square.

    >>> grid = squared_grid((10, 30), 3)
    >>> grid.rows, grid.columns, grid.areas[3:6]
    (1, 3, ((0, 1, 0, 1), (0, 1, 1, 2), (0, 1, 2, 3)))
    >>> {*grid.areas[:3], *grid.areas[6:]}
    {(0, 0, 0, 0)}
    """
    spans = []
    for length in size:
        start = (max(size) - length) // 2
        spans.append((start * side // max(size), -(-(start + length) * side // max(size))))
    (top, bottom), (left, right) = spans
    areas = (
        (row - top, row + 1 - top, column - left, column + 1 - left)
        if top <= row < bottom and left <= column < right
        else NOWHERE
        for row in range(side)
        for column in range(side)
    )
    return Grid(bottom - top, right - left, (*areas, NOWHERE))
