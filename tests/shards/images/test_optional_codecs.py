"""HEIC and JPEG XL, where their libraries are installed: header and pixels, upright once."""

import io
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image

from shards.images.decode import decode
from shards.images.formats.jpeg_xl import JpegXlInfo
from shards.images.image_header import ImageError, read_image_header
from tests.hostile import image_pixels

PIXELS = image_pixels()
STACK = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
DEEP = PIXELS[..., 1].astype(np.uint16) * 257


def heic(pixels, **options):
    library = pytest.importorskip("pillow_heif", reason="HEIC needs the extra heic")
    file = io.BytesIO()
    heif = library.from_pillow(Image.fromarray(np.ascontiguousarray(pixels)))
    heif.save(file, quality=-1, chroma=444, **options)
    return file.getvalue()


def jxl(pixels, **options):
    pytest.importorskip("pillow_jxl", reason="JPEG XL needs the extra jxl")
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(file, "JXL", lossless=True, **options)
    return file.getvalue()


def boxed_jxl(pixels, **options):
    return jxl(pixels, use_container=True, **options)


@pytest.mark.parametrize("encode", [heic, jxl, boxed_jxl])
@pytest.mark.parametrize(
    ("pixels", "bits", "alpha", "num_bands"),
    [
        (PIXELS, 8, False, 3),
        (PIXELS[..., 1], 8, False, 1),
        (STACK, 8, True, 4),
        (DEEP, 16, False, 1),
    ],
)
def test_header_and_pixels_of_every_kind(encode, pixels, bits, alpha, num_bands):
    """An image would have wrong sizes or colours, and deep ones would be white."""
    image = read_image_header(encode(pixels))
    assert (image.format, image.height, image.width) == (encode.__name__[-4:].strip("d_"), 48, 64)
    assert (image.bits > 8, image.alpha, image.num_bands) == (bits > 8, alpha, num_bands)
    expected = (pixels >> 8 if bits > 8 else pixels).astype(int)
    expected = expected[..., :3] if expected.ndim == 3 else expected[..., None]
    assert np.abs(decode(image) - expected).mean() < 0.6


@pytest.mark.parametrize("encode", [heic, jxl, boxed_jxl])
def test_exif_does_not_turn_an_upright_image_again(encode):
    """Photographs of phones would lie on their side: the decoder has turned them."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = read_image_header(encode(PIXELS, exif=exif.tobytes()))
    turned = encode is heic  # libheif writes the rotation of the container, too
    assert (image.height, image.width, image.orientation) == ((64, 48) if turned else (48, 64)) + (
        1,
    )
    expected = np.rot90(PIXELS, -1) if turned else PIXELS
    assert np.abs(decode(image).astype(int) - expected).mean() < 0.6


@pytest.mark.parametrize("encode", [heic, jxl, boxed_jxl])
def test_truncated_files_cost_one_reject(encode):
    """Half of an upload would end a reader."""
    data = encode(PIXELS)
    for stop in range(1, len(data) - 1, 97):
        with pytest.raises(ImageError):
            decode(read_image_header(data[:stop]))


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        # (value, bits): a small square of 8 x 8 with default metadata.
        ([(1, 1), (0, 5), (1, 3), (1, 1)], JpegXlInfo(8, 8)),
        # 100 x 200, turned, animated, 10 bits, opacity by default, then grey.
        (
            [
                *((0, 1), (0, 2), (99, 9), (0, 3), (0, 2), (199, 9), (0, 1), (1, 1), (5, 3)),
                *((0, 2), (1, 1), (0, 2), (0, 2), (0, 2), (0, 1), (0, 1), (1, 2), (1, 1)),
                *((1, 2), (1, 1), (0, 1), (0, 1), (0, 1), (1, 2), (0, 8)),
            ],
            JpegXlInfo(100, 200, 6, True, 10, 1, True, True),
        ),
    ],
)
def test_fields_of_a_jpeg_xl_header(numbers, expected):
    """Boxes would be drawn for another size, or an animation taken for a photograph."""
    bits = "".join(format(value, f"0{num_bits}b")[::-1] for value, num_bits in numbers)
    bits += "0" * (-len(bits) % 8)
    body = bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))
    assert JpegXlInfo.read(b"\xff\x0a" + body) == expected
    for stop in range(len(body) - 1):
        with pytest.raises(IndexError):
            JpegXlInfo.read(b"\xff\x0a" + body[:stop])


def deep_heic(levels):
    library = pytest.importorskip("pillow_heif", reason="HEIC needs the extra heic")
    mode = {2: "L;16", 3: "RGB;16"}[levels.ndim]
    stored = (levels << 6).astype("<u2")  # its upper ten bits are kept
    file = io.BytesIO()
    size = levels.shape[1::-1]
    library.from_bytes(mode, size, stored.tobytes()).save(file, quality=-1, chroma=444)
    return file.getvalue()


def deep_avif(levels):
    flags = [cv2.IMWRITE_AVIF_DEPTH, 10, cv2.IMWRITE_AVIF_QUALITY, 100]
    done, data = cv2.imencode(".avif", levels if levels.ndim == 2 else levels[..., ::-1], flags)
    assert done
    return data.tobytes()


def deep_jxl(levels):
    return jxl((levels << 6).astype(np.uint16))


@pytest.mark.parametrize("deep_levels", ["stretch", "percentiles"])
@pytest.mark.parametrize(
    ("encode", "grey"),
    [
        *((deep_heic, False), (deep_heic, True), (deep_avif, False), (deep_avif, True)),
        (deep_jxl, True),
    ],
)
def test_all_bits_are_used_where_the_setting_asks_for_them(encode, grey, deep_levels):
    """A night photograph of ten bits would be trained on as a few levels of black."""
    levels = (PIXELS[..., 1] if grey else PIXELS).clip(8, 248).astype(np.uint16)  # 8 of 10 bits
    image = read_image_header(encode(levels))
    assert image.bits >= 10 and decode(image).max() < 64
    found = decode(replace(image, deep_levels=deep_levels)).astype(int)
    if deep_levels == "stretch":
        assert np.abs(found - (levels[..., None] if grey else levels)).mean() < 3
    else:
        assert found.min() == 0 and found.max() >= 254
