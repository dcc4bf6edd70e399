"""Encoded images for tests: pixels that show which way is up, in any format, whole or damaged."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image


def corner_pixels(height: int = 16, width: int = 24) -> np.ndarray:
    """A grey picture with a red block top left and a blue one top right, so that every turn and flip shows."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[: height // 2, : width // 2] = (220, 20, 20)
    pixels[: height // 2, width // 2 :] = (20, 20, 220)
    return pixels


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    """The bytes of a file."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    stream = io.BytesIO()
    picture.save(stream, form, **options)
    return stream.getvalue()


def png(height: int = 16, width: int = 24) -> bytes:
    """A small PNG."""
    return encoded(corner_pixels(height, width))


def hollow_png(width: int, height: int, *, bits: int = 8, colour: int = 2) -> bytes:
    """A PNG whose header claims a size that its pixels, a few bytes, do not fill; whole to its end."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 16)) + chunk(b"IEND", b"")
    )


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG whose frame header claims another size than was encoded."""
    content = bytearray(encoded(corner_pixels(), "JPEG"))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(content)
