"""What `vgpo-lite plan` plans for: a model known by its numbers, and the largest prompt of its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vgpo_lite.errors import ModelError
from vgpo_lite.planning import TILED_TOKENS, PromptSize, architecture_of, preset_architectures, resized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vgpo_lite.config.schema import RunConfig
    from vgpo_lite.data_types import Outline
    from vgpo_lite.planning import Architecture

FRAME_TOKENS = 40
"""Of the chat template around a question: 20 to 30 in the Qwen families; fewer in the others."""

BYTES_PER_TOKEN = 3
"""Of a question's text. English runs to 4 and more, formulas to 2 and 3."""


def known_model(config: RunConfig) -> Architecture:
    """The numbers of the configuration's model: from its folder, the presets, or its config.json on the hub.

    Raises:
        ModelError: There is no such model, or it is no model this project trains.
    """
    presets, name = preset_architectures(), config.model_id or config.model
    if config.model in presets:
        return presets[config.model]
    from vgpo_lite.models import model_files

    files = model_files(name, revision=config.revision, weights=False)
    return architecture_of(files.config, files.model_id)


def described_size(model: Architecture, *, pixels: int, text_tokens: int | None) -> PromptSize:
    """The prompt of a data set of which only sizes are known; without its text, that of a long question."""
    return PromptSize(text_tokens=text_tokens or 256, images=(model.vision.tokens_within(pixels),))


def size_in_data(config: RunConfig, model: Architecture) -> tuple[PromptSize, tuple[str, ...]]:
    """The largest prompt of a data set, and notes: counted as `train` counts it where the model's processor is to be
    had, otherwise its images' grids exactly and its text by its bytes.

    Raises:
        DataError: The data set cannot be had, or too many of its rows cannot be used.
    """
    from vgpo_lite.datasets import open_rows
    from vgpo_lite.models import processor_alone
    from vgpo_lite.prompts import largest_prompt

    split = open_rows(config)
    outlines = [outline for rows in (split.train, split.held_out) for outline in rows.outlines()]
    try:
        return largest_prompt(outlines, processor_alone(config), config.data), split.notes
    except ModelError as error:
        note = f"text estimated at {BYTES_PER_TOKEN} bytes a token, as the model's tokenizer is not to be had: {error}"
        return _estimated(outlines, config, model), (note, *split.notes)


def _estimated(outlines: Sequence[Outline], config: RunConfig, model: Architecture) -> PromptSize:
    from vgpo_lite.prompts import user_text

    text = max((len(user_text(outline.question, config.data).encode()) for outline in outlines), default=0)
    images = max((_image_tokens(outline, config, model) for outline in outlines), key=sum, default=())
    tokens = FRAME_TOKENS + -(-text // BYTES_PER_TOKEN)
    return PromptSize(text_tokens=min(tokens, max(config.data.max_prompt_length - sum(images), 0)), images=images)


def _image_tokens(outline: Outline, config: RunConfig, model: Architecture) -> tuple[int, ...]:
    vision, data, images = model.vision, config.data, len(outline.image_sizes)
    if vision.joins_tiles and images > 1:
        return (vision.tile_tokens + 1,) * images
    if model.model_type in TILED_TOKENS:
        count = TILED_TOKENS[model.model_type]
        return tuple(
            count(size, tile=vision.tile, tile_tokens=vision.tile_tokens, max_pixels=data.pixel_budget)
            for size in outline.image_sizes
        )
    side = vision.token_side
    sizes = (
        resized(size, side=side, min_pixels=data.min_pixels, max_pixels=data.pixel_budget)
        for size in outline.image_sizes
    )
    return tuple(height * width // side**2 for height, width in sizes)
