"""What the tests of prompts share: rows made by hand, questions, and the names of small processors."""

from __future__ import annotations

from typing import Any

from PIL import Image

from tests.hub.models import QWEN2_5_VL, QWEN2_VL, QWEN3_VL
from vgpo_lite.config.schema import DataConfig
from vgpo_lite.data_types import Outline, Sample
from vgpo_lite.prompts import user_text

FACTOR = {QWEN2_VL: 28, QWEN2_5_VL: 28, QWEN3_VL: 32}
"""Pixels along one side of an image token: patch size times merge size."""


def picture(width: int = 60, height: int = 40, colour: str = "red") -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def sample(question: str, *images: Image.Image) -> Sample:
    return Sample(sample_id="set/train/7", question=question, images=images, answer="3")


def outline_of(row: Sample) -> Outline:
    sizes = tuple((image.height, image.width) for image in row.images)
    return Outline(sample_id=row.sample_id, question=row.question, image_sizes=sizes, answer=row.answer)


DIRECT = DataConfig(prompt_style="direct")


def turn_of(row: Sample) -> list[dict[str, Any]]:
    """The row as the conversation that a processor renders itself."""
    content: list[dict[str, Any]] = []
    shown = iter(row.images)
    for place, piece in enumerate(user_text(row.question, DIRECT).split("<image>")):
        content += [{"type": "image", "image": next(shown)}] if place else []
        content += [{"type": "text", "text": piece}] if piece else []
    return [{"role": "user", "content": content}]


QUESTIONS = {
    "no image": ("Find the angle x.", 0),
    "image first": ("<image>How many red circles are there?", 1),
    "image last": ("How many are in <image>", 1),
    "two images": ("Is <image> like <image>?", 2),
    "images side by side": ("<image><image>Compare. é ½ 数 \U0001f600", 2),
    "white space": (" <image>\n\nFind   x.\t", 1),
}
