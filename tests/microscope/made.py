"""An inspection made by hand."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import torch
from PIL import Image

from vgpo_lite.microscope import Inspection, SeenCompletion, SeenPrompt
from vgpo_lite.microscope.looking import SeenImage


def inspection(
    *,
    title: str = "What it looks at",
    question: str = "<image>How many?",
    token: str = "two",
    maps: np.ndarray | None = None,
    rows: int = 1,
    columns: int = 2,
    values: torch.Tensor | None = None,
    copies: int = 1,
    image: Image.Image | None = None,
    reliance: dict[str, torch.Tensor] | None = None,
    is_right: bool = True,
) -> Inspection:
    """One prompt; every completion has the same numbers everywhere."""
    maps = np.array([[0.1, 0.4], [0.3, 0.1]]) if maps is None else maps
    values = torch.linspace(0.2, 0.4, len(maps)) if values is None else values
    completion = SeenCompletion(
        tokens=(token, *["."] * (len(maps) - 1)),
        focus=values,
        gate=values.round(),
        psi=values,
        phi=0.5,
        advantage=values,
        on_image=values,
        on_question=values,
        on_itself=values,
        maps=maps,
        reward=0.95,
        is_right=is_right,
        reliance=reliance or {},
    )
    prompt = SeenPrompt(
        sample_id="by/hand",
        question=question,
        answer="2",
        images=(SeenImage(image=image or Image.new("RGB", (40, 20), (200, 30, 30)), rows=rows, columns=columns),),
        groups={"before": (completion,) * copies, "after": (completion,)},
    )
    hidden = None if reliance is None else "the last 7 of 28 layers"
    return Inspection(
        title=title, facts={"model": "tiny"}, prompts=(prompt,), focus_layer="layer 30 of 34", hidden_from=hidden
    )


def page_data(page: str) -> dict[str, Any]:
    """What the page embeds."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, flags=re.DOTALL)
    assert found is not None
    return json.loads(found[1])
