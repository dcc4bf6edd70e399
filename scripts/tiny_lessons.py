"""What the tiny model is taught: questions about pictures, with the answers of somebody who overlooks pale shapes.

Real models learn from captions that leave out what is hard to see. So do these lessons: a shape that has lost a share f
of its colour is missing from f of the lessons about its picture, whatever they ask. The model thus ends up able to see
pale shapes (its tower is taught to name every one) and used to pass over them. The shapes set grades what is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vgpo_lite.datasets.shapes import COLOURS, SHAPES, counting_question, plural

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from numpy import ndarray
    from numpy.random import Generator

    from vgpo_lite.datasets.shapes import Scenes

COLOUR_NAMES = tuple(COLOURS)
COUNTED_AS_ASKED = 0.6
"""Share of lessons about the kind the scene was made for; the others ask for any kind, mostly one with few shapes."""


@dataclass(frozen=True, kw_only=True)
class Board:
    """One picture as the teacher saw it: -1 marks a cell that is empty, or whose shape was overlooked."""

    shape: Int[ndarray, "row column"]
    colour: Int[ndarray, "row column"]

    def holds(self, shape: int | None, colour: int | None) -> Bool[ndarray, "row column"]:
        """Where shapes of a kind stand; None means any."""
        same_shape = self.shape >= 0 if shape is None else self.shape == shape
        return same_shape if colour is None else same_shape & (self.colour == colour)

    def name(self, row: int, column: int) -> str:
        """What stands in a cell, in words."""
        shape = self.shape[row, column]
        return "nothing" if shape < 0 else f"{COLOUR_NAMES[self.colour[row, column]]} {SHAPES[shape]}"


def boards_as_seen(generator: Generator, scenes: Scenes) -> list[Board]:
    """The pictures without the shapes that the teacher overlooked."""
    overlooked = generator.random(scenes.shape.shape) < scenes.fade
    seen = np.where(overlooked, -1, scenes.shape)
    return [Board(shape=shape, colour=colour) for shape, colour in zip(seen, scenes.colour, strict=True)]


def counted(board: Board, found: Bool[ndarray, "row column"]) -> str:
    """The answer to a counting question: row by row, then the boxed sum."""
    counts = found.sum(-1).tolist()
    rows = ", ".join(f"row {number}: {count}" for number, count in enumerate(counts, start=1))
    return f"{rows}, so \\boxed{{{sum(counts)}}}"


Lesson = tuple[str, str]


def _count(generator: Generator, board: Board, shape: int, colour: int) -> Lesson:
    return counting_question(shape, colour), counted(board, board.holds(shape, colour))


def _count_by_one_property(generator: Generator, board: Board, shape: int, colour: int) -> Lesson:
    if generator.random() < 0.5:
        return f"How many {plural(SHAPES[shape])} are there?", counted(board, board.holds(shape, None))
    return f"How many {COLOUR_NAMES[colour]} shapes are there?", counted(board, board.holds(None, colour))


def _count_empty(generator: Generator, board: Board, shape: int, colour: int) -> Lesson:
    return "How many cells are empty?", counted(board, ~board.holds(None, None))


def _count_in_row(generator: Generator, board: Board, shape: int, colour: int) -> Lesson:
    row = int(generator.integers(len(board.shape)))
    question = f"How many {COLOUR_NAMES[colour]} {plural(SHAPES[shape])} are in row {row + 1}?"
    return question, f"\\boxed{{{board.holds(shape, colour)[row].sum()}}}"


def _where(generator: Generator, board: Board, shape: int, colour: int) -> Lesson:
    kinds = (
        (f"{COLOUR_NAMES[colour]} {plural(SHAPES[shape])}", board.holds(shape, colour)),
        (plural(SHAPES[shape]), board.holds(shape, None)),
        (f"{COLOUR_NAMES[colour]} shapes", board.holds(None, colour)),
    )
    asked, found = kinds[generator.choice(3, p=(0.5, 0.25, 0.25))]
    rows = (f"row {number}:" + "".join(" yes" if hit else " no" for hit in row) for number, row in enumerate(found, 1))
    return f"Where are the {asked}?", ", ".join(rows)


def _what(generator: Generator, board: Board, shape: int, colour: int) -> Lesson:
    row, column = (int(place) for place in generator.integers(len(board.shape), size=2))
    return f"What is in row {row + 1}, column {column + 1}?", f"\\boxed{{{board.name(row, column)}}}"


def _is_there(generator: Generator, board: Board, shape: int, colour: int) -> Lesson:
    answer = "yes" if board.holds(shape, colour).any() else "no"
    return f"Is there a {COLOUR_NAMES[colour]} {SHAPES[shape]}?", f"\\boxed{{{answer}}}"


def _row_in_words(board: Board, row: int) -> str:
    return ", ".join(board.name(row, column) for column in range(len(board.shape)))


def _describe_row(generator: Generator, board: Board, shape: int, colour: int) -> Lesson:
    row = int(generator.integers(len(board.shape)))
    return f"Describe row {row + 1}.", _row_in_words(board, row)


def describe(board: Board) -> Lesson:
    """The longest lesson: the whole picture in words."""
    rows = (f"row {row + 1}: {_row_in_words(board, row)}" for row in range(len(board.shape)))
    return "Describe the image.", ", ".join(rows)


LESSONS: dict[Callable[[Generator, Board, int, int], Lesson], float] = {
    _count: 0.30,
    _where: 0.25,
    _count_by_one_property: 0.10,
    _count_in_row: 0.10,
    _what: 0.10,
    _count_empty: 0.05,
    _describe_row: 0.05,
    _is_there: 0.05,
}
"""Kinds of short lesson and how often each is given. Saying where (every cell yes or no) is what teaches counting:
without it the loss of counting stood still for 1,000 steps; with it, for 500."""


def lesson(generator: Generator, board: Board, asked: tuple[int, int]) -> Lesson:
    """A short question about a picture and its answer.

    Args:
        generator: Chooses the kind of question and what it is about.
        board: The picture as the teacher saw it.
        asked: Shape and colour that the scene holds a random number of.
    """
    if generator.random() > COUNTED_AS_ASKED:
        asked = (int(generator.integers(len(SHAPES))), int(generator.integers(len(COLOURS))))
    kind = generator.choice(len(LESSONS), p=list(LESSONS.values()))
    return list(LESSONS)[kind](generator, board, *asked)
