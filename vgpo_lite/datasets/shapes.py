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
SIDE = 4
"""Rows and columns of the grid: one cell to an image token."""
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
DRAWING_VERSION = 2
"""Raised whenever the same seed would draw another picture."""


@dataclass(frozen=True, kw_only=True)
class Difficulty:
    """How hard the pictures are to read; the two variants are set by what the tiny model makes of them.

    Attributes:
        most: Largest count a question asks for, in 1..16; counts are uniform over 0..most, so that the best guess
            without the image is right once in most + 1 questions.
        empty: Share of the other cells that stay empty, in [0, 1].
        pale: Share of the shapes that have lost between 40 and 80 % of their colour to the background, in [0, 1].
        shift: How far a shape may stand off the middle of its cell, as a share of the cell, in [0, 0.15].
        noise: Standard deviation of the grain, in steps of 256.
        tint: Standard deviation of each shape's colour around its name's colour, in steps of 256.
    """

    most: int = 7
    empty: float = 0.25
    pale: float = 0.3
    shift: float = 0.12
    noise: float = 12.0
    tint: float = 14.0


DIFFICULTIES = {"normal": Difficulty(), "harder": Difficulty(most=9, empty=0.1, pale=0.5, shift=0.15, noise=16.0)}


@dataclass(frozen=True, kw_only=True)
class Scenes:
    """What stands where in several pictures.

    Attributes:
        shape: Index into SHAPES; -1 marks an empty cell.
        colour: Index into COLOURS; means nothing in an empty cell.
        fade: Share of its colour that each shape has lost to the background, in [0, 1].
        asked_shape: The shape that each picture's question asks for.
        asked_colour: The colour it asks for.
    """

    shape: Int[ndarray, "scene row column"]
    colour: Int[ndarray, "scene row column"]
    fade: Float[ndarray, "scene row column"]
    asked_shape: Int[ndarray, " scene"]
    asked_colour: Int[ndarray, " scene"]

    def row_counts(self) -> Int[ndarray, "scene row"]:
        """How many shapes of the asked kind stand in each row."""
        same_shape = self.shape == self.asked_shape[:, None, None]
        return (same_shape & (self.colour == self.asked_colour[:, None, None])).sum(-1)


def random_scenes(generator: Generator, count: int, difficulty: Difficulty) -> Scenes:
    """Scenes whose asked count is uniform over 0..most.

    Half of the other shapes share either the colour or the shape that is asked for, so that both must be seen.
    """
    grid = (count, SIDE, SIDE)
    shape = generator.integers(len(SHAPES), size=(count, 1, 1))
    colour = generator.integers(len(COLOURS), size=(count, 1, 1))
    wanted = generator.integers(difficulty.most + 1, size=(count, 1))
    asked = (generator.random((count, SIDE * SIDE)).argsort(-1) < wanted).reshape(grid)

    near = generator.random(grid)
    other_shape = (shape + generator.integers(1, len(SHAPES), size=grid)) % len(SHAPES)
    other_colour = (colour + generator.integers(1, len(COLOURS), size=grid)) % len(COLOURS)
    bare = ~asked & (generator.random(grid) < difficulty.empty)
    pale = generator.random(grid) < difficulty.pale
    return Scenes(
        shape=np.where(bare, -1, np.where(asked | (near < 0.25), shape, other_shape)),
        colour=np.where(asked | (near >= 0.75), colour, other_colour),
        fade=np.where(pale, generator.uniform(0.4, 0.8, grid), 0.0).astype(np.float32),
        asked_shape=shape[:, 0, 0],
        asked_colour=colour[:, 0, 0],
    )


def draw(generator: Generator, scenes: Scenes, difficulty: Difficulty) -> UInt8[ndarray, "scene height width 3"]:
    """Paint the scenes; `generator` decides the sizes, places, tints, the background and the grain."""
    cell = IMAGE_SIDE // SIDE
    grid = scenes.shape.shape
    size = generator.uniform(0.26, 0.36, grid).astype(np.float32) * cell
    shift = generator.uniform(-difficulty.shift, difficulty.shift, (2, *grid)).astype(np.float32) * cell
    paint = np.array(list(COLOURS.values()), np.float32)[scenes.colour]
    paint += generator.normal(0, difficulty.tint, paint.shape).astype(np.float32)

    def spread(values: ndarray) -> ndarray:
        return values.repeat(cell, 1).repeat(cell, 2)

    offset = np.tile(np.arange(cell, dtype=np.float32) - (cell - 1) / 2, SIDE)
    radius = spread(size)
    x = (offset[None, None, :] - spread(shift[0])) / radius
    y = (spread(shift[1]) - offset[None, :, None]) / radius
    cover = _cover(spread(scenes.shape), x, y, radius) * (1 - spread(scenes.fade))

    ground = generator.uniform(150, 240, (grid[0], 1, 1, 1)).astype(np.float32)
    grain = generator.standard_normal((grid[0], IMAGE_SIDE, IMAGE_SIDE, 1), np.float32) * np.float32(difficulty.noise)
    picture = spread(paint) - ground
    picture *= cover[..., None]
    picture += ground + grain
    return np.clip(picture, 0, 255, out=picture).astype(np.uint8)


def _cover(
    shape: Int[ndarray, "scene height width"],
    x: Float[ndarray, "scene height width"],
    y: Float[ndarray, "scene height width"],
    radius: Float[ndarray, "scene height width"],
) -> Float[ndarray, "scene height width"]:
    """How much of each pixel its cell's shape covers; `x` (right) and `y` (up) count radii from the shape's middle."""
    across, along = np.abs(x), np.abs(y)
    longer, shorter = np.maximum(across, along), np.minimum(across, along)
    borders = {  # 1 on the border of the shape, less inside
        "circle": np.hypot(x, y),
        "square": longer / 0.9,
        "triangle": np.maximum((across * 1.732 + y + 0.15) / 1.1, -y / 0.75),
        "cross": np.maximum(longer / 1.05, shorter / 0.4),
    }
    distance = np.full_like(x, np.inf)
    for number, name in enumerate(SHAPES):
        np.copyto(distance, borders[name], where=shape == number)
    return np.clip((1 - distance) * radius + 0.5, 0, 1)


def plural(shape: str) -> str:
    """The plural of a shape's name.

    >>> plural("circle"), plural("cross")
    ('circles', 'crosses')
    """
    return shape + ("es" if shape.endswith("s") else "s")


def counting_question(shape: int, colour: int) -> str:
    """The question that asks how many shapes of one kind there are, without the mark of its image.

    >>> counting_question(0, 0)
    'How many red circles are there?'
    """
    return f"How many {list(COLOURS)[colour]} {plural(SHAPES[shape])} are there?"


class ShapesRows:
    """Counting questions drawn from a seed: the same index is the same picture, on any machine.

    The image stands after the question, so that a causal model reads it knowing what is asked. Rows of one split and
    seed never share a random stream with another split or seed, so what is held out was never seen in training.

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
    return counting_question(int(scenes.asked_shape[0]), int(scenes.asked_colour[0])) + "<image>"
