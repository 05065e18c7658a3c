"""Decoded pixels of every kind of file, against Pillow and against the original pixels."""

import dataclasses
import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from shards.images.decode import JPEG_REDUCTIONS, decode
from shards.images.image_header import ImageError, ImageHeader, read_image_header
from shards.records import Sample
from shards.samples.admission import admit
from shards.samples.admission_config import AdmissionConfig
from tests.hostile import (
    HEIGHT,
    KINDS,
    WIDTH,
    image_pixels,
    png_chunk,
    png_of,
    saved,
    steps,
    swapping_profile,
    valid,
)
from tests.shards.crops.made import encoded, made_pixels

PIXELS = image_pixels()
# Mean difference in grey levels that a lossy format or a palette causes.
LOSSY = {"jpeg": 5, "webp": 6, "avif": 6, "gif": 12, "palette": 12}


@pytest.fixture(scope="module")
def files():
    """One good file of every kind."""
    return valid()


def decoded(data, **policy):
    """Return the decoded pixels under this policy, as signed numbers."""
    image = admit(Sample(0, 0, "a", {"img": data}), AdmissionConfig(**policy))
    assert isinstance(image, ImageHeader)
    return decode(image).astype(int)


def loss(kind):
    if "lossless" in kind or "2000" in kind or kind in ("webp_alpha", "webp_animated"):
        return 0.5
    return max((level for word, level in LOSSY.items() if word in kind), default=0.5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "one_bit" not in kind])
def test_every_kind_decodes_to_the_original_pixels(kind, files):
    """Colours would be swapped, a wrong frame used, or sixteen bits become white."""
    expected = PIXELS.astype(int)
    if "grey" in kind:
        luma = cv2.cvtColor(PIXELS, cv2.COLOR_RGB2GRAY) if _by_luma(kind) else PIXELS[..., 1]
        expected = np.repeat(luma[..., None], 3, axis=-1).astype(int)
    found = decoded(files[kind], alpha="drop")
    assert found.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(found - expected).mean() < loss(kind)


def _by_luma(kind):
    return not any(word in kind for word in ("16", "float", "runs"))


# The conversion of Pillow makes sixteen bits white, and floats black.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "16" not in kind and "fl" not in kind])
def test_every_kind_decodes_to_the_pixels_of_pillow(kind, files):
    """An image would look different from other pipelines."""
    with Image.open(io.BytesIO(files[kind])) as pil_image:
        pil_image.load()
        expected = np.asarray(pil_image.convert("RGBA").convert("RGB")).astype(int)
    found = decoded(files[kind], alpha="drop")
    assert np.abs(found - expected).mean() < (1.5 if kind.startswith(("jpeg", "webp")) else 0.01)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.endswith("alpha")])
@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0), ("drop", None)])
def test_transparency_is_blended_on_the_configured_background(kind, background, level, files):
    """A drawing would vanish in black, or an image show its invisible colours."""
    found = decoded(files[kind], alpha=background)
    beneath = decoded(files[kind], alpha="drop")
    if "palette" in kind or "key" in kind:
        with Image.open(io.BytesIO(files[kind])) as pil_image:
            opacity = np.asarray(pil_image.convert("RGBA"))[..., 3:].astype(int)
    else:
        opacity = steps(PIXELS.shape)[..., None].astype(int)
    expected = beneath if level is None else (beneath * opacity + level * (255 - opacity)) / 255
    # Lossy codecs also blur the edges of opacity.
    tolerance = 3 if kind in ("webp_lossy_alpha", "avif_alpha") else 0.6
    assert np.abs(found - expected).mean() < tolerance
    assert opacity.min() < 255


@pytest.mark.parametrize("background", ["white", "black"])
def test_opaque_alpha_channel_changes_nothing(background):
    """Rounding would change every screenshot by one level."""
    stack = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    assert (decoded(png_of(stack, colour=6), alpha=background) == PIXELS).all()


def test_sixteen_bit_png_with_transparent_colour_is_decoded():
    """A rare kind of PNG would be rejected, or its transparent colour shown."""
    deep = PIXELS.astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    data = b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            png_chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)),
            png_chunk(b"tRNS", deep[5, 5].tobytes()),
            png_chunk(b"IDAT", zlib.compress(rows)),
            png_chunk(b"IEND", b""),
        ]
    )
    found = decoded(data, alpha="white")
    assert np.abs(found - PIXELS).mean() < 0.5


def test_twelve_bit_tiff_is_scaled_to_the_full_range():
    """Images of scientific cameras would be almost black."""
    levels = (PIXELS[..., 1].astype(np.uint16) << 4) + 7
    tags = [(256, WIDTH), (257, HEIGHT), (258, 12), (259, 1), (262, 1), (277, 1), (278, HEIGHT)]
    packed = _pack_twelve(levels)
    tags += [(273, 8), (279, len(packed))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags))
    start = 8 + len(packed)
    data = b"II*\0" + struct.pack("<I", start) + packed + struct.pack("<H", len(tags)) + entries
    found = decoded(data + bytes(4))
    assert np.abs(found[..., 0] - PIXELS[..., 1]).mean() < 0.5


def _pack_twelve(levels):
    pairs = levels.reshape(-1, 2).astype(int)
    first, second = pairs[:, 0], pairs[:, 1]
    stack = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], axis=1)
    return stack.astype(np.uint8).tobytes()


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [*range(1, 9), 42])
def test_every_orientation_gives_the_same_upright_image(format_, orientation):
    """Images from phones would be rotated."""
    lossless = {"WEBP": {"lossless": True}, "AVIF": {"quality": 95}, "JPEG": {"quality": 95}}
    stored = PIXELS if orientation == 42 else stored_pixels(PIXELS, orientation)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(stored, format_, exif=exif, **lossless.get(format_, {}))
    tolerance = 4 if format_ in ("JPEG", "AVIF") else 0.01
    for config, expected in (("apply", PIXELS), ("ignore", stored)):
        found = decoded(data, orientation=config)
        assert found.shape == expected.shape
        assert np.abs(found - expected).mean() < tolerance


def stored_pixels(pixels, orientation):
    """Return the stored pixels that `orientation` makes upright."""
    pil_image = Image.fromarray(pixels)
    pil_image.getexif()[0x0112] = {6: 8, 8: 6}.get(orientation, orientation)
    return np.asarray(ImageOps.exif_transpose(pil_image))


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_colour_profile_is_applied_if_configured(format_):
    """Images with a wide-gamut profile would be pale."""
    lossless = {"WEBP": {"lossless": True}, "AVIF": {"quality": 98}}
    options = lossless.get(format_, {"quality": 95} if format_ == "JPEG" else {})
    data = encoded(PIXELS, format_, icc_profile=swapping_profile(), **options)
    tolerance = 4 if format_ in ("JPEG", "AVIF") else 1
    assert np.abs(decoded(data) - PIXELS).mean() < tolerance
    assert np.abs(decoded(data, icc_profile="srgb") - PIXELS[..., [1, 0, 2]]).mean() < tolerance


def test_unusable_profile_changes_nothing():
    """A broken profile would lose its image, or end the reader."""
    whole = swapping_profile()
    grey = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (b"junk", whole[:300], whole[:128] + bytes(len(whole) - 128), grey):
        data = encoded(PIXELS, "PNG", icc_profile=profile)
        assert (decoded(data, icc_profile="srgb") == PIXELS).all()


@pytest.mark.parametrize("reduction", sorted(JPEG_REDUCTIONS))
@pytest.mark.parametrize("kind", ["jpeg", "jpeg_cmyk", "png"])
def test_reduced_decode_equals_a_reduced_image(kind, reduction, files):
    """A quarter of an image would be used for the whole."""
    image = read_image_header(files[kind])
    found = decode(image, reduction)
    reduction = reduction if kind == "jpeg" else 1
    assert found.shape == (HEIGHT // reduction, WIDTH // reduction, 3)
    expected = cv2.resize(decode(image), found.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(found.astype(int) - expected).mean() < 6


def test_pillow_decodes_what_opencv_refuses(files):
    """An image with only a wrong checksum would be lost."""
    spoilt = bytearray(files["png"])
    spoilt[-13] ^= 1  # of the checksum of the pixels
    assert cv2.imdecode(np.frombuffer(spoilt, np.uint8), cv2.IMREAD_COLOR) is None
    assert (decode(read_image_header(bytes(spoilt))) == PIXELS).all()


@pytest.mark.parametrize("part", [0.1, 0.5, 0.8])
@pytest.mark.parametrize(("mode", "subsampling"), [("RGB", 0), ("RGB", 2), ("L", 0), ("CMYK", 0)])
def test_truncated_jpeg_with_a_forged_end_is_rejected(part, mode, subsampling):
    """Decoders fill the missing rows with grey without an error."""
    whole = saved("JPEG", mode, quality=90, subsampling=subsampling)(made_pixels(4, 200, 160))
    forged = read_image_header(whole[: int(part * len(whole))] + b"\xff\xd9")
    for reduction in JPEG_REDUCTIONS:
        with pytest.raises(ImageError, match="last rows are plain grey"):
            decode(forged, reduction)


@pytest.mark.parametrize("start", range(100, 129, 4))
def test_decision_does_not_depend_on_the_reduction(start):
    """An image would be accepted in one epoch and rejected in the next, with smaller boxes."""
    pixels = made_pixels(4, 129, 160)
    pixels[start:] = 128
    verdicts = set()
    for quality in (75, 98):
        image = read_image_header(encoded(pixels, quality=quality, subsampling=0))
        for reduction in JPEG_REDUCTIONS:
            try:
                decode(image, reduction)
                verdicts.add((quality, "ok"))
            except ImageError as error:
                verdicts.add((quality, error.reason))
    assert len(verdicts) == 2


def test_grey_images_are_accepted():
    """Plain grey images, and images with a grey border, would be rejected."""
    grey = np.full((100, 100, 3), 128, np.uint8)
    assert (decode(read_image_header(encoded(grey))) == 128).all()
    framed = made_pixels(5, 100, 100)
    framed[85:] = 128
    assert decode(read_image_header(encoded(framed, quality=95))).shape == (100, 100, 3)


def test_wrong_size_in_the_header_is_detected(files):
    """Boxes would be drawn outside the image."""
    for kind in ("png", "gif_palette", "jpeg_cmyk"):
        image = dataclasses.replace(read_image_header(files[kind]), width=WIDTH + 1)
        with pytest.raises(ImageError, match="expected"):
            decode(image)
