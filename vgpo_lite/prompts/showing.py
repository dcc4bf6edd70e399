"""How each kind of processor shows images: under which pixel budget, and with which tokens in place of their marks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vgpo_lite.planning import (
    best_canvas,
    canvas_budget,
    canvas_fit,
    cropped_tiles,
    joined_map,
    most_tiles,
    resized,
    split_tiles,
    tiles_per_side,
)
from vgpo_lite.prompts.grids import Grid, cells, joined_grid, squared_grid, tiled_grid

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vgpo_lite.config.schema import DataConfig
    from vgpo_lite.prompts.processor import Processor

Size = tuple[int, int]
"""Height and width in pixels."""


class Shown(NamedTuple):
    """What stands in a prompt for one image.

    Attributes:
        frame: The text, with one image token wherever image tokens stand together.
        run: How many stand there.
    """

    frame: str
    run: int

    def text(self, image_token: str) -> str:
        """What the tokenizer reads."""
        return self.frame.replace(image_token, image_token * self.run)

    def features(self, image_token: str) -> int:
        """Image tokens in all."""
        return self.frame.count(image_token) * self.run


class Showing(Protocol):
    """The way of one kind of processor."""

    def mark(self, processor: Processor) -> str:
        """What the chat template writes in an image's place."""
        ...

    def token(self, processor: Processor) -> tuple[str, int]:
        """What stands for one feature of an image, as text and as an id."""
        ...

    def given(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Size]:
        """The sizes that the images of one prompt are given before the processor sees them; most stay as they are."""
        ...

    def bounds(self, images: int) -> bool:
        """Whether the pixel budget has a say in how prompts with so many images show them."""
        ...

    def scaled_down(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> int:
        """How many images of one prompt are shown smaller than they are, because of the pixel budget."""
        ...

    def options(self, processor: Processor, data: DataConfig) -> Mapping[str, Any]:
        """The processor's `images_kwargs` that keep images within the pixel budget."""
        ...

    def canvas_pixels(self, processor: Processor, data: DataConfig) -> int | None:
        """Most pixels of the canvas of a lone image, which is scaled down to that; None where the options say all."""
        ...

    def shown(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Shown]:
        """What stands for the images of one prompt, without decoding them."""
        ...

    def grids(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Grid]:
        """Where the tokens of one prompt's images are."""
        ...


class _Usual:
    """One token that the template writes once, and that is repeated for each feature; images as they are."""

    def mark(self, processor: Processor) -> str:
        return processor.image_token

    def token(self, processor: Processor) -> tuple[str, int]:
        return processor.image_token, processor.image_token_id

    def given(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Size]:
        return list(sizes)

    def bounds(self, images: int) -> bool:
        return images > 0

    def scaled_down(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> int:
        return sum(height * width > data.pixel_budget for height, width in sizes)

    def canvas_pixels(self, processor: Processor, data: DataConfig) -> int | None:
        return None


class Whole(_Usual):
    """Qwen: the whole image in patches, as many as it is large."""

    def options(self, processor: Processor, data: DataConfig) -> Mapping[str, Any]:
        return {"min_pixels": data.min_pixels, "max_pixels": data.pixel_budget}

    def shown(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Shown]:
        options, images = dict(self.options(processor, data)), processor.image_processor
        patches = (images.get_number_of_image_patches(*size, options) for size in sizes)
        return [Shown(processor.image_token, count // images.merge_size**2) for count in patches]

    def grids(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Grid]:
        side = processor.image_processor.patch_size * processor.image_processor.merge_size
        budget = {"min_pixels": data.min_pixels, "max_pixels": data.pixel_budget}
        grids = []
        for size in sizes:
            rows, columns = (length // side for length in resized(size, side=side, **budget))
            grids.append(Grid(rows, columns, cells(rows, columns)))
        return grids


class Split(_Usual):
    """SmolVLM: square tiles row by row, each named, and the whole image as one more tile behind them."""

    def options(self, processor: Processor, data: DataConfig) -> Mapping[str, Any]:
        images = processor.image_processor
        tile, most = images.max_image_size["longest_edge"], images.size["longest_edge"]
        return {"size": {"longest_edge": min(tiles_per_side(tile, max_pixels=data.pixel_budget) * tile, most)}}

    def shown(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Shown]:
        fake, image = "<fake_token_around_image>", processor.image_token
        images = []
        for rows, columns in self._tiles(sizes, processor, data):
            lines = [
                "".join(f"{fake}<row_{row}_col_{column}>{image}" for column in range(1, columns + 1)) + "\n"
                for row in range(1, rows + 1)
            ]
            last = "\n" if lines else ""
            images.append(Shown(f"{''.join(lines)}{last}{fake}<global-img>{image}{fake}", processor.image_seq_len))
        return images

    def grids(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Grid]:
        side = math.isqrt(processor.image_seq_len)
        return [tiled_grid(rows, columns, side) for rows, columns in self._tiles(sizes, processor, data)]

    def _tiles(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[tuple[int, int]]:
        tile = processor.image_processor.max_image_size["longest_edge"]
        longest_edge = self.options(processor, data)["size"]["longest_edge"]
        return [split_tiles(size, tile=tile, longest_edge=longest_edge) for size in sizes]


class Cropped(_Usual):
    """InternVL: tiles in the arrangement nearest to the image's form, and the whole image as one more behind them."""

    def options(self, processor: Processor, data: DataConfig) -> Mapping[str, Any]:
        images = processor.image_processor
        most = most_tiles(images.size["height"], max_pixels=data.pixel_budget)
        return {"min_patches": 1, "max_patches": min(most, images.max_patches)}

    def shown(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Shown]:
        frame = f"{processor.start_image_token}{processor.image_token}{processor.end_image_token}"
        tiles = self._tiles(sizes, processor, data)
        return [Shown(frame, (rows * columns + 1) * processor.image_seq_length) for rows, columns in tiles]

    def grids(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Grid]:
        side = math.isqrt(processor.image_seq_length)
        return [tiled_grid(rows, columns, side) for rows, columns in self._tiles(sizes, processor, data)]

    def _tiles(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[tuple[int, int]]:
        tile, most = processor.image_processor.size["height"], self.options(processor, data)["max_patches"]
        return [cropped_tiles(size, tile=tile, most=most) for size in sizes]


class Pooled(_Usual):
    """Gemma 3: the whole image, whatever its form, as one square of as many tokens as every other."""

    def mark(self, processor: Processor) -> str:
        return processor.boi_token

    def token(self, processor: Processor) -> tuple[str, int]:
        return processor.tokenizer.image_token, processor.tokenizer.image_token_id

    def bounds(self, images: int) -> bool:
        return False

    def scaled_down(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> int:
        return 0

    def options(self, processor: Processor, data: DataConfig) -> Mapping[str, Any]:
        return {"do_pan_and_scan": False}

    def shown(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Shown]:
        count = processor.image_seq_length
        frame, image = processor.full_image_sequence, self.token(processor)[0]
        return [Shown(frame.replace(image * count, image), count)] * len(sizes)

    def grids(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Grid]:
        return [tiled_grid(0, 0, math.isqrt(processor.image_seq_length))] * len(sizes)


class Joined(_Usual):
    """LLaVA-OneVision: a lone image whole, then as one map, each row of which ends with a token of its own.

    Each of several images is whole, squared, and ends with such a token. Model and processor both choose an image's
    canvas by the image's size, from a list of their own: so the image itself is made to fit the pixel budget.
    """

    def given(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Size]:
        if len(sizes) > 1:
            return list(sizes)
        images = processor.image_processor
        canvases, tile = images.image_grid_pinpoints, images.size["height"]
        return [canvas_fit(size, canvases=canvases, tile=tile, max_pixels=data.pixel_budget) for size in sizes]

    def bounds(self, images: int) -> bool:
        return images == 1

    def scaled_down(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> int:
        return sum(given != size for given, size in zip(self.given(sizes, processor, data), sizes, strict=True))

    def options(self, processor: Processor, data: DataConfig) -> Mapping[str, Any]:
        return {}

    def canvas_pixels(self, processor: Processor, data: DataConfig) -> int | None:
        images = processor.image_processor
        canvases, tile = images.image_grid_pinpoints, images.size["height"]
        return canvas_budget(canvases, tile=tile, max_pixels=data.pixel_budget)

    def shown(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Shown]:
        token, whole = processor.image_token, processor.num_image_tokens
        if len(sizes) > 1:
            return [Shown(token, whole + 1)] * len(sizes)
        maps = self._maps(sizes, processor, data)
        return [Shown(token, whole + rows * (columns + 1)) for rows, columns in maps]

    def grids(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Grid]:
        side = math.isqrt(processor.num_image_tokens)
        if len(sizes) > 1:
            return [squared_grid(size, side) for size in sizes]
        return [joined_grid(rows, columns, side) for rows, columns in self._maps(sizes, processor, data)]

    def _maps(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Size]:
        """Rows and columns of each image's map."""
        images, side = processor.image_processor, math.isqrt(processor.num_image_tokens)
        most = int(processor.vision_aspect_ratio.removeprefix("anyres_max_"))
        return [
            joined_map(
                size,
                best_canvas(size, images.image_grid_pinpoints),
                tile=images.size["height"],
                side=side,
                most=most,
            )
            for size in self.given(sizes, processor, data)
        ]


_WAYS: dict[str, Showing] = {
    "SmolVLMProcessor": Split(),
    "InternVLProcessor": Cropped(),
    "LlavaOnevisionProcessor": Joined(),
    "Gemma3Processor": Pooled(),
}


def showing_of(processor: Processor) -> Showing:
    """The way of a processor, by the name of its class; that of Qwen where no other is known."""
    return _WAYS.get(type(processor).__name__, _WHOLE)


_WHOLE = Whole()
