"""The bytes of an image -> upright RGB pixels, or a refusal, from the header alone where that is enough.

Rotation noted beside the pixels is applied, transparency is laid on white, and every other form of pixels (palettes,
16-bit greys, CMYK) becomes 8-bit RGB. Of animations the first frame is taken.
"""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeAlias, cast

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from vgpo_lite.datasets.refusals import ASPECT_RATIO, MISSING_IMAGE, TOO_MANY_PIXELS, UNDECODABLE, RefusalError

if TYPE_CHECKING:
    from collections.abc import Iterator

ImageSource: TypeAlias = bytes | memoryview | pa.Buffer | Path
"""Where the bytes of one image are: in the row, or in a file that the data set's reader has found to be its own."""

LARGEST_IMAGE_PIXELS = 50_000_000
"""Promise 7: what is larger is refused before it is decoded."""
LARGEST_ASPECT_RATIO = 100
"""Promise 7; the processors of the Qwen families themselves refuse above 200."""
LARGEST_IMAGE_BYTES = 8 * LARGEST_IMAGE_PIXELS
"""The largest image, uncompressed, in four channels of 16 bits."""

_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_TAIL_BYTES = 64  # an end marker and a little padding behind it
# What Pillow's readers raise on damaged files; ArithmeticError and LookupError come from sizes and tables gone wrong.
_DECODING_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    AttributeError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    struct.error,
    zlib.error,
)


def checked_size(source: ImageSource) -> tuple[int, int]:
    """Height and width in pixels, as stored, of an image that can be used.

    Reads the header and looks for the mark that ends the file; only a file without one is decoded, to know.

    Raises:
        RefusalError: Not an image, cut short, over 50 megapixels, or over 100 times as long as wide.
    """
    with _opened(source) as (stream, image):
        if not _ends_whole(stream, image.format):
            image.load()
        return image.height, image.width


def decode_image(source: ImageSource) -> Image.Image:
    """An image as the model shall see it: upright, RGB, 8 bits, without metadata.

    Raises:
        RefusalError: As for `checked_size`, or the pixels are damaged.
    """
    with _opened(source) as (_, image):
        image.load()
        upright = _upright(image)
        picture = _as_rgb(upright)
        picture.info = {}
        return picture


@contextmanager
def _opened(source: ImageSource) -> Iterator[tuple[IO[bytes], Image.Image]]:
    """The stream of an image and the image, its header read and found within limits."""
    with _stream(source) as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of damaged metadata, which nothing here needs, and of sizes checked below
        try:
            with Image.open(stream, formats=_formats()) as image:
                _check_shape(image)
                yield stream, image
        except Image.DecompressionBombError as error:
            raise RefusalError(TOO_MANY_PIXELS, f"more than {LARGEST_IMAGE_PIXELS:,} pixels") from error
        except _DECODING_ERRORS as error:
            raise RefusalError(UNDECODABLE, _in_words(error)) from error


@contextmanager
def _stream(source: ImageSource) -> Iterator[IO[bytes]]:
    if not isinstance(source, Path):
        _check_bytes(memoryview(source).nbytes)
        with pa.BufferReader(source) as reader:  # reads a memory-mapped row without copying it
            yield cast("IO[bytes]", reader)
        return
    try:
        stream = source.open("rb")
    except OSError as error:
        raise RefusalError(MISSING_IMAGE, f"{source.name}: {error.strerror}") from error
    with stream:
        _check_bytes(os.fstat(stream.fileno()).st_size)
        yield stream


def _check_bytes(count: int) -> None:
    if count == 0:
        raise RefusalError(UNDECODABLE, "0 bytes")
    if count > LARGEST_IMAGE_BYTES:
        raise RefusalError(TOO_MANY_PIXELS, f"{count:,} bytes, at most {LARGEST_IMAGE_BYTES:,}")


def _check_shape(image: Image.Image) -> None:
    width, height = image.size
    if width * height > LARGEST_IMAGE_PIXELS:
        raise RefusalError(TOO_MANY_PIXELS, f"{width} x {height} pixels, at most {LARGEST_IMAGE_PIXELS:,} in all")
    if max(width, height) > LARGEST_ASPECT_RATIO * min(width, height):
        raise RefusalError(ASPECT_RATIO, f"{width} x {height} pixels, sides at most 1 : {LARGEST_ASPECT_RATIO}")


@cache
def _formats() -> tuple[str, ...]:
    """The formats read: those of photographs and drawings that this Pillow was built with. None of them runs code."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _ends_whole(stream: IO[bytes], form: str | None) -> bool:
    """Whether the file ends as its format says it must; False where that cannot be told without decoding."""
    size = stream.seek(0, os.SEEK_END)
    if form == "WEBP":
        stream.seek(4)
        return int.from_bytes(stream.read(4), "little") + 8 <= size
    ends = {"PNG": b"IEND", "JPEG": b"\xff\xd9", "GIF": b"\x3b"}
    stream.seek(max(0, size - _TAIL_BYTES))
    tail = bytes(stream.read(_TAIL_BYTES)).rstrip(b"\0\r\n")
    return form in ends and (tail.endswith(ends[form]) if form == "GIF" else ends[form] in tail)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _DECODING_ERRORS:  # no rotation can be read from damaged metadata; the pixels are whole
        return image


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65_535:
            raise RefusalError(UNDECODABLE, f"grey values from {values.min()} to {values.max()}, expected 16 bits")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")  # rounded; 257 = 65535 / 255
    if image.mode == "F":
        raise RefusalError(UNDECODABLE, "pixels are floating-point numbers, of which nothing says what white is")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _in_words(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "the bytes are no image of a known format"
    return f"{error}" or type(error).__name__
