"""An inspection as one HTML file that needs no network: all is embedded, and all text of models and data escaped."""

from __future__ import annotations

import base64
import html
import io
import json
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from PIL import Image
    from torch import Tensor

    from vgpo_lite.microscope.looking import Inspection, SeenCompletion, SeenImage, SeenPrompt

MAP_BYTES = 7_000_000
"""Most that all heat maps may take before they are written in base64: a page stays under 15 MB."""
PICTURE_SIDE = 640
"""Pixels of an embedded picture's longer side, at most."""
DECIMALS = 4


def inspection_page(inspection: Inspection) -> str:
    """The page, UTF-8. Heat maps are made coarser where they would take too much room."""
    template = resources.files("vgpo_lite.microscope").joinpath("page.html").read_text(encoding="utf-8")
    coarse = _coarseness(inspection.prompts)
    data = {
        "title": inspection.title,
        "facts": dict(inspection.facts),
        "focus_layer": inspection.focus_layer,
        "hidden_from": inspection.hidden_from,
        "prompts": [_prompt(prompt, coarse) for prompt in inspection.prompts],
    }
    # Inside a script element only `</` and `<!--` end anything; JSON may write any character as an escape.
    embedded = json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
    return template.replace("__TITLE__", html.escape(inspection.title)).replace("__DATA__", embedded)


def _coarseness(prompts: Sequence[SeenPrompt]) -> int:
    """Image tokens along each side that share one cell of the heat map."""
    coarse = 1
    while (
        sum(
            len(completion.tokens) * sum(-(-i.rows // coarse) * -(-i.columns // coarse) for i in prompt.images)
            for prompt in prompts
            for group in prompt.groups.values()
            for completion in group
        )
        > MAP_BYTES
    ):
        coarse += 1
    return coarse


def _prompt(prompt: SeenPrompt, coarse: int) -> dict[str, Any]:
    return {
        "id": prompt.sample_id,
        "question": prompt.question,
        "answer": prompt.answer,
        "images": [
            {
                "src": _picture(seen.image),
                "rows": -(-seen.rows // coarse),
                "columns": -(-seen.columns // coarse),
                "width": seen.image.width,
                "height": seen.image.height,
            }
            for seen in prompt.images
        ],
        "groups": [
            {"name": name, "completions": [_completion(each, prompt.images, coarse) for each in group]}
            for name, group in prompt.groups.items()
        ],
    }


def _completion(seen: SeenCompletion, images: Sequence[SeenImage], coarse: int) -> dict[str, Any]:
    maps = np.concatenate([_pooled(part, image, coarse) for part, image in _by_image(seen.maps, images)], axis=1)
    brightest = maps.max(axis=1, initial=0.0)
    scaled = np.rint(255 * maps / np.maximum(brightest, 1e-12)[:, None]).astype(np.uint8)
    return {
        "tokens": seen.tokens,
        "reward": seen.reward,
        "right": seen.is_right,
        "phi": round(seen.phi, DECIMALS),
        "ratio": None if seen.late_over_early is None else round(seen.late_over_early, DECIMALS),
        "focus": _numbers(seen.focus),
        "gate": _numbers(seen.gate),
        "psi": _numbers(seen.psi),
        "advantage": _numbers(seen.advantage),
        "image": _numbers(seen.on_image),
        "question": _numbers(seen.on_question),
        "itself": _numbers(seen.on_itself),
        **{name: _numbers(values) for name, values in seen.reliance.items()},
        "agreement": {name: None if value is None else round(value, 2) for name, value in seen.agreement.items()},
        "brightest": [round(float(value), DECIMALS + 2) for value in brightest],
        "maps": base64.b64encode(scaled.tobytes()).decode("ascii"),
    }


def _by_image(maps: np.ndarray, images: Sequence[SeenImage]) -> list[tuple[np.ndarray, SeenImage]]:
    ends = np.cumsum([image.rows * image.columns for image in images])[:-1]
    return list(zip(np.split(maps, ends, axis=1), images, strict=True))


def _pooled(maps: np.ndarray, image: SeenImage, coarse: int) -> np.ndarray:
    """Sums over squares of `coarse` by `coarse` image tokens, [token, cell]."""
    grid = maps.reshape(len(maps), image.rows, image.columns)
    down, right = (-image.rows) % coarse, (-image.columns) % coarse
    grid = np.pad(grid, ((0, 0), (0, down), (0, right)))
    rows, columns = grid.shape[1] // coarse, grid.shape[2] // coarse
    return grid.reshape(len(maps), rows, coarse, columns, coarse).sum(axis=(2, 4)).reshape(len(maps), -1)


def _numbers(values: Float[Tensor, " token"]) -> list[float]:
    return [round(value, DECIMALS) for value in values.tolist()]


def _picture(image: Image.Image) -> str:
    """The image as a data address: PNG where that is small, else JPEG."""
    shown = image.copy()
    shown.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    best: tuple[str, bytes] | None = None
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        file = io.BytesIO()
        shown.save(file, kind, **options)
        if best is None or len(file.getvalue()) < len(best[1]):
            best = (kind, file.getvalue())
    assert best is not None
    return f"data:image/{best[0]};base64,{base64.b64encode(best[1]).decode('ascii')}"
