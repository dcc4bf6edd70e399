"""Bytes become upright RGB pixels, or a refusal with a reason; nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from tests.datasets.pictures import corner_pixels, encoded, hollow_png, jpeg_of_size, png
from vgpo_lite.datasets.images import checked_size, decode_image
from vgpo_lite.datasets.refusals import ASPECT_RATIO, MISSING_IMAGE, TOO_MANY_PIXELS, UNDECODABLE, RefusalError

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)

# How a camera's pixels, stored with each EXIF orientation, stand upright: written from the EXIF 2.32 table
# ("the 0th row is at the visual ... of the image, the 0th column at the visual ...").
UPRIGHT = {
    1: lambda stored: stored,  # row 0 top, column 0 left
    2: lambda stored: stored[:, ::-1],  # top, right
    3: lambda stored: stored[::-1, ::-1],  # bottom, right
    4: lambda stored: stored[::-1],  # bottom, left
    5: lambda stored: stored.transpose(1, 0, 2),  # left, top
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],  # right, top
    7: lambda stored: stored.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],  # left, bottom
}


def with_orientation(form: str, orientation: int, pixels: np.ndarray) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if form == "WEBP" else {}
    return encoded(pixels, form, exif=exif, **lossless)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_rotation_noted_beside_the_pixels_is_applied(form: str, orientation: int) -> None:
    stored = corner_pixels()
    picture = np.asarray(decode_image(with_orientation(form, orientation, stored)))
    wanted = UPRIGHT[orientation](stored)
    assert picture.shape == wanted.shape
    assert np.abs(picture.astype(int) - wanted).mean() < (10 if form == "JPEG" else 0.01)  # a wrong turn costs over 40


def test_what_is_upright_carries_no_note_that_would_turn_it_again() -> None:
    picture = decode_image(with_orientation("JPEG", 6, corner_pixels()))
    assert picture.getexif().get(0x0112, 1) == 1
    assert picture.info == {}


def grey_with_clear_half(mode: str) -> Image.Image:
    """Black, its left half wholly transparent."""
    image = Image.new("LA", (4, 2), (0, 255))
    for x in range(2):
        for y in range(2):
            image.putpixel((x, y), (0, 0))
    return image.convert(mode)


def palette_with_clear_entry() -> Image.Image:
    image = Image.new("P", (4, 2), 1)
    image.putpalette([0, 0, 0, 0, 0, 0])
    for x in range(2):
        for y in range(2):
            image.putpixel((x, y), 0)
    image.info["transparency"] = 0
    return image


@pytest.mark.parametrize(
    "content",
    [
        encoded(grey_with_clear_half("RGBA")),
        encoded(grey_with_clear_half("LA")),
        encoded(grey_with_clear_half("RGBA"), "WEBP", lossless=True),
        encoded(palette_with_clear_entry(), transparency=0),
        encoded(palette_with_clear_entry(), "GIF", transparency=0),
    ],
    ids=["rgba", "grey-alpha", "webp", "palette-png", "gif"],
)
def test_transparency_is_laid_on_white(content: bytes) -> None:
    pixels = np.asarray(decode_image(content))
    assert pixels[:, :2].min() == 255
    assert pixels[:, 2:].max() == 0


def test_half_transparent_black_becomes_the_grey_between() -> None:
    pixels = np.asarray(decode_image(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)))))
    assert set(pixels.ravel().tolist()) == {127}  # 255 * (1 - 128 / 255)


def test_a_colour_that_stands_for_transparent_is_white() -> None:
    image = Image.new("RGB", (2, 1), (10, 20, 30))
    image.putpixel((1, 0), (0, 0, 0))
    pixels = np.asarray(decode_image(encoded(image, transparency=(10, 20, 30))))
    assert pixels.tolist() == [[[255, 255, 255], [0, 0, 0]]]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bit_greys_keep_their_range(form: str) -> None:
    values = np.array([[0, 200, 257 * 64, 257 * 128, 65_400, 65_535]], np.uint16)
    pixels = np.asarray(decode_image(encoded(Image.fromarray(values), form)))
    assert pixels[0, :, 0].tolist() == [0, 1, 64, 128, 254, 255]  # 200 / 257 = 0.78, 65400 / 257 = 254.47


def test_big_endian_sixteen_bit_greys_keep_their_range() -> None:
    plain = b"P5 2 1 65535\n" + np.array([257 * 100, 65_535], ">u2").tobytes()
    assert np.asarray(decode_image(plain))[0, :, 0].tolist() == [100, 255]


def test_cmyk_becomes_the_colours_it_prints() -> None:
    red = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixels = np.asarray(decode_image(encoded(red, "JPEG", quality=100))).reshape(-1, 3).mean(0)
    assert pixels[0] > 200
    assert pixels[1:].max() < 60


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "YCbCr"])
def test_other_forms_of_pixels_become_rgb(mode: str) -> None:
    picture = decode_image(
        encoded(Image.fromarray(corner_pixels()).convert(mode), "TIFF" if mode == "YCbCr" else "PNG")
    )
    assert picture.mode == "RGB"
    assert picture.size == (24, 16)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("wrap", [bytes, memoryview, pa.py_buffer], ids=["bytes", "memoryview", "buffer"])
def test_bytes_come_in_any_wrapping(wrap: type) -> None:
    assert checked_size(wrap(png(10, 30))) == (10, 30)
    assert np.array_equal(np.asarray(decode_image(wrap(png()))), corner_pixels())


def test_a_file_is_read_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(10, 30))
    assert checked_size(tmp_path / "a.png") == (10, 30)


BROKEN_EXIF = encoded(corner_pixels(), "JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")


def test_damaged_metadata_costs_no_image() -> None:
    assert decode_image(BROKEN_EXIF).size == (24, 16)


BAD_IMAGES = {
    "nothing": (b"", UNDECODABLE, "0 bytes"),
    "text": (b"a photograph of a cat", UNDECODABLE, "no image of a known format"),
    "html": (b"<html><body>404</body></html>", UNDECODABLE, "no image of a known format"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", UNDECODABLE, "no image"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNDECODABLE, "no image"),
    "mp4": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2mp41" + b"\0" * 64, UNDECODABLE, "no image"),
    "png signature alone": (b"\x89PNG\r\n\x1a\n", UNDECODABLE, ""),
    "png cut in its header": (png()[:20], UNDECODABLE, ""),
    "png cut in its pixels": (encoded(NOISE)[:-200], UNDECODABLE, "truncated"),
    "png without its end": (encoded(NOISE)[: -len(NOISE) - 2000], UNDECODABLE, ""),
    "jpeg cut in its header": (encoded(NOISE, "JPEG")[:100], UNDECODABLE, ""),
    "jpeg cut in its pixels": (encoded(NOISE, "JPEG")[:-300], UNDECODABLE, "truncated"),
    "webp cut short": (encoded(NOISE, "WEBP")[:-300], UNDECODABLE, ""),
    "gif cut short": (encoded(NOISE, "GIF")[:-300], UNDECODABLE, ""),
    "bmp cut short": (encoded(NOISE, "BMP")[:-300], UNDECODABLE, "truncated"),
    "tiff cut short": (encoded(NOISE, "TIFF")[:-300], UNDECODABLE, ""),
    "png of no pixels": (hollow_png(0, 10), UNDECODABLE, ""),
    "png of 60 megapixels": (hollow_png(10_000, 6_000), TOO_MANY_PIXELS, "10000 x 6000 pixels, at most 50,000,000"),
    "png of 100 megapixels": (hollow_png(10_000, 10_000), TOO_MANY_PIXELS, "10000 x 10000"),
    "png of 10 gigapixels": (hollow_png(100_000, 100_000), TOO_MANY_PIXELS, "50,000,000"),
    "jpeg of 4 gigapixels": (jpeg_of_size(65_000, 65_000), TOO_MANY_PIXELS, "50,000,000"),
    "png too wide": (hollow_png(10_001, 100), ASPECT_RATIO, "10001 x 100 pixels, sides at most 1 : 100"),
    "png too tall": (hollow_png(2, 201), ASPECT_RATIO, "2 x 201"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "reason", "detail"), BAD_IMAGES.values(), ids=BAD_IMAGES.keys())
def test_a_bad_image_is_refused_by_the_check_with_its_reason(content: bytes, reason: str, detail: str) -> None:
    for refuse in (checked_size, decode_image):
        with pytest.raises(RefusalError) as refusal:
            refuse(content)
        assert refusal.value.reason == reason
        assert detail in refusal.value.detail


def test_floating_point_pixels_are_refused_when_decoded() -> None:
    content = encoded(Image.new("F", (4, 4), 0.5), "TIFF")
    with pytest.raises(RefusalError, match="floating-point"):
        decode_image(content)


def test_the_limits_themselves_are_allowed() -> None:
    assert checked_size(hollow_png(10_000, 5_000)) == (5_000, 10_000)
    assert checked_size(hollow_png(10_000, 100)) == (100, 10_000)


def test_the_check_decodes_no_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_decoding(*_: object) -> None:
        raise AssertionError("decoded")

    contents = [encoded(NOISE, form) for form in ("PNG", "JPEG", "WEBP", "GIF")]
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_decoding)
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile.load", no_decoding)
    monkeypatch.setattr("PIL.GifImagePlugin.GifImageFile.load_prepare", no_decoding)
    for content in contents:
        assert checked_size(content) == (64, 64)


def test_damage_behind_the_header_is_refused_when_decoded() -> None:
    content = bytearray(encoded(NOISE))
    content[len(content) // 2] ^= 0xFF
    assert checked_size(bytes(content)) == (64, 64)
    with pytest.raises(RefusalError) as refusal:
        decode_image(bytes(content))
    assert refusal.value.reason == UNDECODABLE


def test_a_file_that_is_gone_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RefusalError) as refusal:
        checked_size(tmp_path / "gone.png")
    assert refusal.value.reason == MISSING_IMAGE
