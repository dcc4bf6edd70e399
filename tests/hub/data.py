"""Small data sets with the columns and forms of the real ones, in parquet files as the hub keeps them.

Each row draws red squares on white and asks for their number, so that the answer needs the picture. What differs is
what differs on the hub: one image or a list, marks in the question or none, and how the answer is wrapped.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PillowImage
from PIL import ImageDraw

if TYPE_CHECKING:
    from pathlib import Path

GEOMETRY3K = "hiyouga/geometry3k"
VIRL39K = "PAPOGalaxy/PAPO_ViRL39K_train"
MMK12 = "PAPOGalaxy/PAPO_MMK12_test"
CLEVR_COUNT = "leonardPKU/clevr_cogen_a_train"
GEOQA = "leonardPKU/GEOQA_R1V_Train_8K"
MATHVISTA = "AI4Math/MathVista"

_QUESTION = "How many red squares are there?"
_CARD = """---
configs:
- config_name: default
  data_files:
{files}---
"""


def picture(squares: int, *, size: int = 56, seed: int = 0) -> PillowImage.Image:
    """A white square picture with this many red squares, at most nine, at places that the seed draws."""
    places = random.Random(f"{seed}/{squares}").sample(range(9), squares)
    image = PillowImage.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    cell = size // 3
    for place in places:
        left, top = place % 3 * cell, place // 3 * cell
        draw.rectangle((left + 2, top + 2, left + cell - 4, top + cell - 4), fill="red")
    return image


def _listed(squares: int, seed: int) -> dict[str, object]:
    return {"images": [picture(squares, seed=seed)], "problem": f"<image>{_QUESTION}", "answer": str(squares)}


def _wrapped(squares: int, seed: int) -> dict[str, object]:
    solution = f"<answer> {squares} </answer>"
    return {"image": picture(squares, seed=seed), "problem": _QUESTION, "solution": solution}


def _mathvista(squares: int, seed: int) -> dict[str, object]:
    return {
        "pid": str(seed),
        "question": _QUESTION,
        "image": f"images/{seed}.jpg",
        "decoded_image": picture(squares, seed=seed),
        "choices": None,
        "unit": None,
        "precision": None,
        "answer": str(squares),
        "question_type": "free_form",
        "answer_type": "integer",
        "query": f"Hint: answer with an integer.\nQuestion: {_QUESTION}",
    }


_TEXT = Value("string")
_LISTED = Features({"images": List(Image()), "problem": _TEXT, "answer": _TEXT})
_WRAPPED = Features({"image": Image(), "problem": _TEXT, "solution": _TEXT})
_MATHVISTA = Features(
    {
        "pid": _TEXT, "question": _TEXT, "image": _TEXT, "decoded_image": Image(), "choices": List(_TEXT),
        "unit": _TEXT, "precision": Value("float64"), "answer": _TEXT, "question_type": _TEXT, "answer_type": _TEXT,
        "query": _TEXT,
    }
)  # fmt: skip

_KINDS = {
    GEOMETRY3K: (_listed, _LISTED, ("train", "validation", "test")),
    VIRL39K: (_listed, _LISTED, ("train",)),
    MMK12: (_listed, _LISTED, ("test",)),
    CLEVR_COUNT: (_wrapped, _WRAPPED, ("train",)),
    GEOQA: (_wrapped, _WRAPPED, ("train",)),
    MATHVISTA: (_mathvista, _MATHVISTA, ("testmini",)),
}


def write_dataset(folder: Path, name: str, *, rows: int = 24, largest: int = 4, seed: int = 0) -> Path:
    """Write a small data set with the schema and splits of the real one of that name.

    Args:
        folder: Where the repository's files go.
        name: One of the names above.
        rows: Rows of each split.
        largest: Answers run from 1 to this.
        seed: Decides where the squares lie.
    """
    make, features, splits = _KINDS[name]
    (folder / "data").mkdir(parents=True)
    files = ""
    for split_index, split in enumerate(splits):
        first = seed + 1000 * split_index
        content = [make(1 + row % largest, first + row) for row in range(rows)]
        dataset = Dataset.from_list(content, features=features)
        dataset.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
        files += f"  - split: {split}\n    path: data/{split}-*\n"
    (folder / "README.md").write_text(_CARD.format(files=files))
    return folder
