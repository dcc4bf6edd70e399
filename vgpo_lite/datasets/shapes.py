"""The built-in counting task: coloured shapes drawn on the fly from a seed, and questions only the image can answer."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from vgpo_lite.data_types import Outline, Sample
from vgpo_lite.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float, Int, UInt8
    from numpy import ndarray
    from numpy.random import Generator

IMAGE_SIDE = 112
"""Pixels along each side: 4 x 4 image tokens of 28 x 28 pixels in the Qwen2-VL family."""
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (210, 60, 60),
    "green": (70, 165, 80),
    "blue": (70, 95, 205),
    "yellow": (215, 185, 60),
}
SHAPES = ("circle", "square", "triangle", "cross")
SPLITS = {"train": 0, "eval": 1, "lessons": 2}
"""First number of every random stream: pictures of one split never come up in another."""
LENGTHS = {"train": 20_000, "eval": 1_000}
DRAWING_VERSION = 1
"""Raised whenever the same seed would draw another picture."""


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """How hard the pictures are to read.

    Attributes:
        side: Rows and columns of the grid, in 2..8.
        most: Largest count a question asks for, in 1..side * side; counts are uniform over 0..most, so that the best
            guess without the image is right once in most + 1 questions.
        empty: Share of the other cells that stay empty, in [0, 1].
        shift: Pixels by which a shape may stand off the middle of its cell, as a share of the cell.
        noise: Standard deviation of the grain, in steps of 256.
        tint: Standard deviation of each shape's colour around its name's colour, in steps of 256.
    """

    side: int = 4
    most: int = 7
    empty: float = 0.25
    shift: float = 0.12
    noise: float = 12.0
    tint: float = 14.0


DIFFICULTIES = {"normal": Difficulty(), "harder": Difficulty(side=5, most=9, empty=0.2)}


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """What stands where in several pictures; -1 marks an empty cell.

    Attributes:
        shape: Index into SHAPES.
        colour: Index into COLOURS.
        asked_shape: The shape that each picture's question asks for.
        asked_colour: The colour it asks for.
    """

    shape: Int[ndarray, "scene row column"]
    colour: Int[ndarray, "scene row column"]
    asked_shape: Int[ndarray, " scene"]
    asked_colour: Int[ndarray, " scene"]

    def row_counts(self) -> Int[ndarray, "scene row"]:
        """How many shapes of the asked kind stand in each row."""
        same_shape = self.shape == self.asked_shape[:, None, None]
        return (same_shape & (self.colour == self.asked_colour[:, None, None])).sum(-1)


def random_scenes(generator: Generator, count: int, difficulty: Difficulty) -> Scenes:
    """Scenes whose asked count is uniform over 0..most.

    Half of the other shapes share either the colour or the shape that is asked for.
    """
    cells = difficulty.side**2
    shape, colour = generator.integers(len(SHAPES), size=count), generator.integers(len(COLOURS), size=count)
    wanted = generator.integers(difficulty.most + 1, size=count)
    rank = generator.random((count, cells)).argsort(-1)
    asked = rank < wanted[:, None]

    other_shape = (shape[:, None] + generator.integers(1, len(SHAPES), size=(count, cells))) % len(SHAPES)
    other_colour = (colour[:, None] + generator.integers(1, len(COLOURS), size=(count, cells))) % len(COLOURS)
    kind = generator.random((count, cells))
    shapes = np.where(asked | (kind < 0.25), shape[:, None], other_shape)
    colours = np.where(asked | ((kind >= 0.25) & (kind < 0.5)), colour[:, None], other_colour)
    bare = ~asked & (generator.random((count, cells)) < difficulty.empty)
    grid = (count, difficulty.side, difficulty.side)
    return Scenes(
        shape=np.where(bare, -1, shapes).reshape(grid),
        colour=np.where(bare, -1, colours).reshape(grid),
        asked_shape=shape,
        asked_colour=colour,
    )


def _cover(
    kind: Int[ndarray, ...], x: Float[ndarray, ...], y: Float[ndarray, ...], size: Float[ndarray, ...]
) -> Float[ndarray, ...]:
    """How much of each pixel a shape covers, from the pixel's place relative to the shape's middle."""
    across, along = np.abs(x), np.abs(y)
    longer, shorter = np.maximum(across, along), np.minimum(across, along)
    distances = (
        np.hypot(x, y),
        longer / 0.9,
        np.maximum((across * 1.732 + y + 0.15) / 1.1, -y / 0.75),
        np.maximum(longer / 1.05, shorter / 0.4),
    )
    distance = np.full_like(x, np.inf)
    for shape, value in enumerate(distances):
        np.copyto(distance, value, where=kind == shape)
    return np.clip((1 - distance) * size + 0.5, 0, 1)


def draw(generator: Generator, scenes: Scenes, difficulty: Difficulty) -> UInt8[ndarray, "scene height width 3"]:
    """Paint the scenes; `generator` decides the sizes, shifts, tints, the background and the grain."""
    count, side = scenes.shape.shape[:2]
    cell = IMAGE_SIDE / side
    grid = (count, side, side)
    size = generator.uniform(0.26, 0.36, grid).astype(np.float32) * cell
    shift = generator.uniform(-difficulty.shift, difficulty.shift, (2, *grid)).astype(np.float32) * cell
    paint = np.array(list(COLOURS.values()), np.float32)[np.clip(scenes.colour, 0, None)]
    paint = paint + generator.normal(0, difficulty.tint, (*grid, 3)).astype(np.float32)

    pixel = np.arange(IMAGE_SIDE, dtype=np.float32) + 0.5
    of_cell = np.minimum((pixel / cell).astype(int), side - 1)
    offset = pixel - (of_cell + 0.5).astype(np.float32) * cell

    def spread(values: ndarray) -> ndarray:
        return values.take(of_cell, 1).take(of_cell, 2)

    x = (offset[None, None, :] - spread(shift[0])) / spread(size)
    y = (spread(shift[1]) - offset[None, :, None]) / spread(size)
    cover = _cover(spread(scenes.shape), x, y, spread(size))[..., None]

    ground = generator.uniform(150, 240, (count, 1, 1, 1)).astype(np.float32)
    grain = generator.standard_normal((count, IMAGE_SIDE, IMAGE_SIDE, 1), np.float32) * np.float32(difficulty.noise)
    picture = spread(paint) - ground
    picture *= cover
    picture += ground + grain
    return np.clip(picture, 0, 255, out=picture).astype(np.uint8)


def plural(shape: str) -> str:
    """The plural of a shape's name.

    >>> plural("circle"), plural("cross")
    ('circles', 'crosses')
    """
    return shape + ("es" if shape.endswith("s") else "s")


def counting_question(shape: int, colour: int) -> str:
    """The question that asks how many shapes of one kind there are.

    >>> counting_question(0, 0)
    'How many red circles are there?'
    """
    return f"How many {list(COLOURS)[colour]} {plural(SHAPES[shape])} are there?"


class ShapesRows:
    """Counting questions drawn from a seed: the same index is the same picture, on any machine.

    Rows of one split and seed never share a random stream with another split or seed, so what is held out was never
    seen in training.

    Attributes:
        name: `shapes/<difficulty>/<split>`.
        fingerprint: Changes whenever the rows would.
    """

    def __init__(
        self, split: Literal["train", "eval"], *, difficulty: str = "normal", length: int | None = None, seed: int = 0
    ) -> None:
        if difficulty not in DIFFICULTIES:
            raise ConfigError(f"shapes has no variant {difficulty!r}; choose from {', '.join(DIFFICULTIES)}")
        self._difficulty = DIFFICULTIES[difficulty]
        self._entropy = (SPLITS[split], seed)
        self._length = LENGTHS[split] if length is None else length
        self.name = f"shapes/{difficulty}/{split}"
        told = f"{DRAWING_VERSION} {self.name} {seed} {self._length} {self._difficulty}"
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        generator, scenes = self._scene(index)
        picture = draw(generator, scenes, self._difficulty)[0]
        counts = scenes.row_counts()[0].tolist()
        return Sample(
            sample_id=f"{self.name}/{index}",
            question=_question(scenes),
            images=(Image.fromarray(picture),),
            answer=str(sum(counts)),
            columns={"row_counts": counts},
        )

    def outline(self, index: int) -> Outline:
        """A row without its picture, which is then not drawn."""
        _, scenes = self._scene(index)
        return Outline(
            sample_id=f"{self.name}/{index}",
            question=_question(scenes),
            image_sizes=((IMAGE_SIDE, IMAGE_SIDE),),
            answer=str(int(scenes.row_counts().sum())),
        )

    def _scene(self, index: int) -> tuple[Generator, Scenes]:
        if not 0 <= index < self._length:
            raise IndexError(f"{self.name} has rows 0 to {self._length - 1}, asked for {index}")
        generator = np.random.default_rng((*self._entropy, index))
        return generator, random_scenes(generator, 1, self._difficulty)


def _question(scenes: Scenes) -> str:
    return "<image>" + counting_question(int(scenes.asked_shape[0]), int(scenes.asked_colour[0]))
