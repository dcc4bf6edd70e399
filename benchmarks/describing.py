"""The harder task of evidence.py: fuller, paler pictures of shapes, and an answer that names every one of the cells.

An answer is about 45 tokens long, against 18 of the counting task, and nearly all of them say what stands somewhere in
the image. It earns the share of the cells that it names right.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from vgpo_lite.datasets.shapes import COLOURS, DIFFICULTIES, SHAPES, SIDE, SPLITS, draw, random_scenes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vgpo_lite.datasets.shapes import Scenes

QUESTION = "Describe the image.<image>"
DATA_SEED = 1
"""Apart from the seed of the shapes set, whose pictures these are not."""
_ROW = re.compile(r"row \d: ")


def cells(completions: Sequence[str | Sequence[dict[str, str]]], scene: Sequence[str], **_: object) -> list[float]:
    """Reward: the share of the cells that each completion names right, in [0, 1]; 0 where it does not name them all."""
    texts = [completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions]
    return [share_named(text, truth) for text, truth in zip(texts, scene, strict=True)]


def share_named(text: str, truth: str) -> float:
    """Share of the cells of a description that are as in the true one.

    >>> share_named("row 1: nothing, row 2: blue cross", "row 1: red circle, row 2: blue cross")
    0.5
    >>> share_named("row 1: red circle", "row 1: red circle, red circle")
    0.0
    """
    said, true = named(text), named(truth)
    return sum(mine == its for mine, its in zip(said, true, strict=True)) / len(true) if len(said) == len(true) else 0.0


def named(text: str) -> list[str]:
    """The cells of a description in its order; none where it does not begin with a row.

    >>> named("row 1: red circle, nothing, row 2: nothing, blue cross")
    ['red circle', 'nothing', 'nothing', 'blue cross']
    """
    before, *rows = _ROW.split(text.strip())
    return [] if before else [cell for row in rows for cell in row.strip().removesuffix(",").split(", ")]


def described(scenes: Scenes) -> str:
    """What stands where in the first of some scenes, in the words of the lessons."""
    shape, colour = scenes.shape[0], scenes.colour[0]

    def cell(row: int, column: int) -> str:
        kind = shape[row, column]
        return "nothing" if kind < 0 else f"{list(COLOURS)[colour[row, column]]} {SHAPES[kind]}"

    return ", ".join(f"row {row + 1}: " + ", ".join(cell(row, column) for column in range(SIDE)) for row in range(SIDE))


def write_rows(folder: Path, *, train: int, held_out: int) -> None:
    """Draw the pictures and write `train.jsonl` and `eval.jsonl` beside them; a folder that has both is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("eval", held_out)):
        listed = folder / f"{split}.jsonl"
        if listed.exists():
            continue
        (folder / split).mkdir(exist_ok=True)
        lines = []
        for index in range(count):
            generator = np.random.default_rng((SPLITS[split], DATA_SEED, index))
            scenes = random_scenes(generator, 1, DIFFICULTIES["harder"])
            picture = f"{split}/{index:05d}.png"
            Image.fromarray(draw(generator, scenes, DIFFICULTIES["harder"])[0]).save(folder / picture)
            lines.append(json.dumps({"question": QUESTION, "images": [picture], "scene": described(scenes)}))
        listed.write_text("\n".join(lines) + "\n")
