"""How each kind of processor shows images: under which pixel budget, and with which tokens in place of their marks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from vgpo_lite.planning import cropped_tiles, most_tiles, resized, split_tiles, tiles_per_side

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


class Grid(NamedTuple):
    """Which part of an image each of its tokens shows, on a grid of whole tokens.

    Attributes:
        rows: Rows of cells.
        columns: Columns of them.
        areas: Of each image token the cells it shows: top, bottom (not included), left, right (not included).
    """

    rows: int
    columns: int
    areas: tuple[tuple[int, int, int, int], ...]


class Showing(Protocol):
    """The way of one kind of processor."""

    def placeholder(self, processor: Processor) -> str:
        """What the chat template writes in an image's place."""
        ...

    def token(self, processor: Processor) -> tuple[str, int]:
        """What stands for one feature of an image, as text and as an id."""
        ...

    def options(self, processor: Processor, data: DataConfig) -> Mapping[str, Any]:
        """The processor's `images_kwargs` that keep images within the pixel budget."""
        ...

    def shown(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Shown]:
        """What stands for the images of one prompt, without decoding them."""
        ...

    def grids(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Grid]:
        """Where the tokens of one prompt's images are."""
        ...


class _OneToken:
    """One token serves for both: the template writes it once, and it is repeated for each feature."""

    def placeholder(self, processor: Processor) -> str:
        return processor.image_token

    def token(self, processor: Processor) -> tuple[str, int]:
        return processor.image_token, processor.image_token_id


class Whole(_OneToken):
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
            grids.append(Grid(rows, columns, _cells(rows, columns)))
        return grids


class Split(_OneToken):
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


class Cropped(_OneToken):
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


class Pooled:
    """Gemma 3: the whole image, whatever its form, as one square of as many tokens as every other."""

    def placeholder(self, processor: Processor) -> str:
        return processor.boi_token

    def token(self, processor: Processor) -> tuple[str, int]:
        return processor.tokenizer.image_token, processor.tokenizer.image_token_id

    def options(self, processor: Processor, data: DataConfig) -> Mapping[str, Any]:
        return {"do_pan_and_scan": False}

    def shown(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Shown]:
        count = processor.image_seq_length
        frame, image = processor.full_image_sequence, self.token(processor)[0]
        return [Shown(frame.replace(image * count, image), count)] * len(sizes)

    def grids(self, sizes: Sequence[Size], processor: Processor, data: DataConfig) -> list[Grid]:
        return [tiled_grid(0, 0, math.isqrt(processor.image_seq_length))] * len(sizes)


def tiled_grid(rows: int, columns: int, side: int) -> Grid:
    """Tiles of `side` x `side` tokens row by row, then the whole image as one more; that one alone where rows are none.

    >>> tiled_grid(1, 2, 1)
    Grid(rows=1, columns=2, areas=((0, 1, 0, 1), (0, 1, 1, 2), (0, 1, 0, 2)))
    >>> tiled_grid(0, 0, 1)
    Grid(rows=1, columns=1, areas=((0, 1, 0, 1),))
    """
    height, width = max(rows, 1), max(columns, 1)
    tiles = [
        (top + row * side, bottom + row * side, left + column * side, right + column * side)
        for row in range(rows)
        for column in range(columns)
        for top, bottom, left, right in _cells(side, side)
    ]
    whole = [
        (top * height, bottom * height, left * width, right * width) for top, bottom, left, right in _cells(side, side)
    ]
    return Grid(height * side, width * side, (*tiles, *whole))


def _cells(rows: int, columns: int) -> tuple[tuple[int, int, int, int], ...]:
    return tuple((row, row + 1, column, column + 1) for row in range(rows) for column in range(columns))


_WAYS: dict[str, Showing] = {"SmolVLMProcessor": Split(), "InternVLProcessor": Cropped(), "Gemma3Processor": Pooled()}


def showing_of(processor: Processor) -> Showing:
    """The way of a processor, by the name of its class; that of Qwen where no other is known."""
    return _WAYS.get(type(processor).__name__, _WHOLE)


_WHOLE = Whole()
