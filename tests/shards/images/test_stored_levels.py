"""More than eight bits, and other bands than colours: kept as configured, never laid on white."""

import io
import random
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from shards.images.decode import decode
from shards.images.image_header import ImageError, ImageHeader, read_image_header
from shards.images.stored_levels import measure_bits
from shards.records import Sample
from shards.samples.admission import admit
from shards.samples.admission_config import AdmissionConfig
from tests.hostile import image_pixels, mutate, png_chunk, steps

PIXELS = image_pixels()
HEIGHT, WIDTH = PIXELS.shape[:2]


def admitted(data, **policy):
    image = admit(Sample(0, 0, "a", {"img": data}), AdmissionConfig(**policy))
    assert isinstance(image, ImageHeader), image
    return image


def tiff(levels, *, photometric=2, extra=None, predictor=1, deflate=False, planes=False, tile=0,
         order="<"):  # fmt: skip
    """Encode levels (H, W, C) as a TIFF."""
    height, width, num_bands = levels.shape
    bits = 8 * levels.dtype.itemsize
    levels = levels.astype(levels.dtype.newbyteorder(order))
    images = [levels[..., [band]] for band in range(num_bands)] if planes else [levels]
    side_y, side_x = (tile, tile) if tile else (height, width)
    parts = []
    for image in images:
        for top in range(0, height, side_y):
            for left in range(0, width, side_x):
                part = np.zeros((side_y, side_x, image.shape[2]), levels.dtype)
                some = image[top : top + side_y, left : left + side_x]
                part[: some.shape[0], : some.shape[1]] = some
                if predictor == 2:
                    part[:, 1:] = part[:, 1:] - part[:, :-1]
                parts.append(zlib.compress(part.tobytes()) if deflate else part.tobytes())
    places = np.cumsum([8, *map(len, parts)]).tolist()
    where, sizes = (324, 325) if tile else (273, 279)
    tags = {
        256: [width],
        257: [height],
        258: [bits] * num_bands,
        259: [8 if deflate else 1],
        262: [photometric],
        where: places[:-1],
        277: [num_bands],
        sizes: [*map(len, parts)],
        284: [2 if planes else 1],
        317: [predictor],
        **({322: [tile], 323: [tile]} if tile else {278: [height]}),
        **({} if extra is None else {338: extra}),
    }
    body, entries, start = b"".join(parts), [], 8 + sum(map(len, parts))
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(packed) > 4:
            body, packed = body + packed, struct.pack(f"{order}I", 8 + len(body))
        entries.append(struct.pack(f"{order}HHI", tag, 4, len(values)) + packed)
    assert start <= 8 + len(body)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(body))
    return head + body + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4)


def bands(num_bands, dtype=np.uint8):
    """Return a smooth image in each band, all different."""
    scale = 1 if dtype == np.uint8 else 257
    planes = [image_pixels(band)[..., 0].astype(dtype) * scale for band in range(num_bands)]
    return np.stack(planes, axis=-1)


@pytest.mark.parametrize("num_bands", [2, 4, 5, 6, 13, 40])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"extra": 0},
        {"deflate": True, "predictor": 2, "order": ">"},
        {"deflate": True, "predictor": 2, "tile": 32},
        {"planes": True, "deflate": True, "predictor": 2},
        {"planes": True, "tile": 16, "order": ">"},
    ],
    ids=str,
)
def test_first_bands_are_used_and_the_others_dropped(num_bands, dtype, options):
    """An infrared band would be laid on white as transparency, or thirteen bands refused."""
    levels, photometric = bands(num_bands, dtype), 2 if num_bands > 3 else 1
    options = dict(options)
    if "extra" in options:
        options["extra"] = [0] * (num_bands - (3 if photometric == 2 else 1))
    image = admitted(tiff(levels, photometric=photometric, **options))
    used = levels[..., :3] if num_bands > 2 else levels[..., :1]
    assert (decode(image) == used >> (0 if dtype == np.uint8 else 8)).all()
    assert (image.num_bands, image.alpha) == (num_bands, False)
    assert image.num_dropped_bands == num_bands - used.shape[-1]


@pytest.mark.parametrize(("extra", "at"), [([2], 3), ([0, 2], 4), ([2, 0, 0], 3)])
def test_declared_transparency_among_bands_is_blended(extra, at):
    """Invisible colours would show, or a band of infrared hide the image."""
    levels = bands(3 + len(extra))
    levels[..., at] = steps(levels.shape)
    opacity = levels[..., [at]].astype(int)
    image = admitted(tiff(levels, extra=extra))
    assert image.alpha and image.num_dropped_bands == len(extra) - 1
    expected = (levels[..., :3] * opacity + 255 * (255 - opacity)) / 255
    assert np.abs(decode(image) - expected).max() <= 1
    assert (decode(admitted(tiff(levels, extra=extra), alpha="drop")) == levels[..., :3]).all()


def test_premultiplied_colours_are_divided_by_their_opacity():
    """Edges of a drawing would be dark."""
    levels = bands(5)
    levels[..., 3] = np.maximum(steps(levels.shape), 1)
    opacity = levels[..., [3]].astype(int)
    shown = (levels[..., :3] * opacity + 255 * (255 - opacity)) / 255
    levels[..., :3] = levels[..., :3] * opacity // 255
    assert np.abs(decode(admitted(tiff(levels, extra=[1, 0]))) - shown).max() <= 2


def test_truncated_bands_are_rejected():
    """The directory that is appended would be taken for pixels."""
    levels = bands(6)
    data, size = tiff(levels), levels.nbytes
    length = struct.pack("<HHII", 279, 4, 1, size)
    longer = data.replace(length, struct.pack("<HHII", 279, 4, 1, 2 * size))
    assert longer != data
    with pytest.raises(ImageError, match="truncated"):
        decode(read_image_header(longer))


@pytest.mark.filterwarnings("ignore")  # Pillow warns about broken files
def test_damaged_bands_raise_only_image_errors():
    """A broken directory would end a reader."""
    rng = random.Random(0)
    wholes = [
        tiff(bands(6)),
        tiff(bands(13, np.uint16), photometric=1, deflate=True, predictor=2, tile=32),
        tiff(bands(5), planes=True, deflate=True, extra=[2, 0]),
    ]
    for number in range(150):
        try:
            image = read_image_header(mutate(rng, wholes[number % 3]))
            if image.height * image.width < 200_000:
                decode(image)
        except ImageError:
            continue
    far = b"II+\0\x08\0\0\0" + bytes(7) + b"\xff" + bytes(40)
    with pytest.raises(ImageError, match="truncated"):
        read_image_header(far)


@pytest.mark.parametrize("num_bands", [4, 2])
def test_component_of_a_jpeg_2000_is_transparency_only_if_declared(num_bands):
    """Satellite images in JPEG 2000 would be laid on white by their infrared."""
    levels = bands(num_bands)
    file = io.BytesIO()
    Image.fromarray(levels, "RGBA" if num_bands == 4 else "LA").save(file, "JPEG2000")
    declared = admitted(file.getvalue())
    assert declared.alpha and declared.num_dropped_bands == 0
    image = admitted(file.getvalue().replace(b"cdef", b"free"))
    assert (image.alpha, image.num_dropped_bands) == (False, 1)
    assert (decode(image) == levels[..., : 3 if num_bands == 4 else 1]).all()


def grey_png(levels):
    file = io.BytesIO()
    Image.fromarray(levels[..., 1].copy()).save(file, "PNG")
    return file.getvalue()


def grey_jp2(levels):
    file = io.BytesIO()
    Image.fromarray(levels[..., 1].copy()).save(file, "JPEG2000")
    return file.getvalue()


def pgm(levels):
    return b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + levels[..., 1].astype(">u2").tobytes()


def ppm(levels):
    return b"P6 %d %d 65535\n" % (WIDTH, HEIGHT) + levels.astype(">u2").tobytes()


def by_opencv(extension):
    return lambda levels: bytes(cv2.imencode(extension, levels[..., ::-1])[1])


def grey_tiff(levels):
    return tiff(levels[..., 1:2], photometric=1)


DEEP = {
    "png": by_opencv(".png"),
    "png_grey": grey_png,
    "tiff": tiff,
    "tiff_lzw": by_opencv(".tiff"),
    "tiff_grey": grey_tiff,
    "tiff_13": lambda levels: tiff(np.dstack([levels, *[levels[..., :2]] * 5])),
    "jp2_grey": grey_jp2,
    "ppm": ppm,
    "ppm_grey": pgm,
}


@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_bits_in_use_are_measured_and_stretched(kind, bits):
    """Twelve bits of a sensor would become fifteen grey levels."""
    levels = PIXELS.astype(np.uint16) << (bits - 8)
    levels[0, 0] = (1 << bits) - 1
    data = DEEP[kind](levels)
    used = levels[..., 1:2] if "grey" in kind else levels
    image = admitted(data)
    assert measure_bits(image) == bits
    assert np.abs(decode(image).astype(int) - (used >> 8)).max() <= (2 if kind == "ppm" else 0)
    stretched = decode(admitted(data, sixteen_bit="stretch"))
    assert (stretched == used >> (bits - 8)).all()


@pytest.mark.parametrize("kind", DEEP)
def test_percentiles_fill_the_range(kind):
    """One bright pixel would make the rest of an image black."""
    levels = 3000 + PIXELS.astype(np.uint16)
    levels[0, 0] = 65535
    found = decode(admitted(DEEP[kind](levels), sixteen_bit="percentiles"))
    assert np.percentile(found, 2) < 30 and np.percentile(found, 98) > 225
    assert 0.005 < (found == 255).mean() < 0.03


def test_percentiles_of_flat_and_of_sparse_images():
    """A plain image would divide by zero, and rare cells on black would vanish."""
    flat = np.full((HEIGHT, WIDTH, 3), 4000, np.uint16)
    assert len(np.unique(decode(admitted(grey_tiff(flat), sixteen_bit="percentiles")))) == 1
    flat[:] = 0
    flat[3, 3] = 900
    found = decode(admitted(grey_tiff(flat), sixteen_bit="percentiles"))
    assert found[3, 3, 0] == 255 and found.mean() < 1


def test_stretch_keeps_transparency():
    """The opacity would be stretched like a colour."""
    levels = np.dstack([PIXELS.astype(np.uint16) << 4, steps(PIXELS.shape).astype(np.uint16) * 257])
    data = bytes(cv2.imencode(".png", levels[..., [2, 1, 0, 3]])[1])
    opacity = steps(PIXELS.shape)[..., None].astype(int)
    expected = (PIXELS * opacity + 255 * (255 - opacity)) / 255
    assert np.abs(decode(admitted(data, sixteen_bit="stretch")) - expected).max() <= 1


@pytest.mark.parametrize("top", [1.0, 4000.0])
def test_floats_are_stretched_to_their_largest_level(top):
    """Floats of counts would be white."""
    levels = (PIXELS[..., 1] / 255 * top).astype(np.float32)
    levels[0, 0] = top
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "TIFF")
    image = admitted(file.getvalue(), sixteen_bit="stretch")
    assert measure_bits(image) == 0
    assert np.abs(decode(image)[..., 0].astype(int) - levels * (255 / top)).max() <= 1


def test_transparent_colour_of_a_deep_png_is_blended_when_stretched():
    """The setting would show the colour that is declared invisible."""
    deep = (PIXELS.astype(np.uint16) << 4).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        [
            png_chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)),
            png_chunk(b"tRNS", deep[5, 5].tobytes()),
            png_chunk(b"IDAT", zlib.compress(rows)),
            png_chunk(b"IEND", b""),
        ]
    )
    found = decode(admitted(data, sixteen_bit="stretch"))
    assert (found[5, 5] == 255).all()
    assert (found[20, 20] == PIXELS[20, 20]).all()
