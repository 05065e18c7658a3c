"""`picture`: what a file is, told from its header; hostile files cost one reject each."""

import csv
import io
import random
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from shards.crops.dali import DaliEngine
from shards.crops.opencv import OpenCVEngine, decode
from shards.crops.recipe import cifar
from shards.picture import MAX_SIDE, PictureError, inspect
from tests.shards.crops.made import drawn, encoded, made_pixels, shared_files

MAX_PIXELS = 64_000_000
PIXELS = made_pixels(0, 40, 60)
FORMATS = {
    "JPEG": "jpeg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
    "PPM": "ppm",
    "AVIF": "avif",
    "JPEG2000": "jpeg2000",
    "QOI": "qoi",
}


def reason(data):
    with pytest.raises(PictureError) as caught:
        inspect(data)
    return caught.value.reason


@pytest.mark.parametrize(("pillow", "ours"), FORMATS.items())
def test_the_magic_bytes_name_the_format(pillow, ours):
    """A format would be refused, or trusted to a file's extension."""
    picture = inspect(encoded(PIXELS, pillow))
    assert (picture.format, picture.height, picture.width) == (ours, 40, 60)
    assert (picture.orientation, picture.num_frames) == (1, 1)


@pytest.mark.parametrize("options", [{"progressive": True}, {"subsampling": 0}, {"optimize": True}])
@pytest.mark.parametrize("size", [(1, 1), (1, 333), (257, 3), (64, 64)])
def test_every_kind_of_whole_jpeg_is_accepted(options, size):
    """The bound on missing bits would refuse plain pictures."""
    for pixels in (made_pixels(1, *size), np.full((*size, 3), 128, np.uint8)):
        for picture in (pixels, pixels[..., 0]):
            assert inspect(encoded(picture, **options)).height == size[0]


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize(
    ("value", "orientation"), [(1, 1), (3, 3), (6, 6), (8, 8), (0, 1), (9, 1), (42, 1)]
)
def test_orientation_is_read_and_a_wrong_one_is_none(byte_order, value, orientation):
    """Boxes would be drawn for a picture lying on its side."""
    magic = b"II*\0" if byte_order == "<" else b"MM\0*"
    entry = struct.pack(byte_order + "HHIHH", 0x0112, 3, 1, value, 0)
    tiff = magic + struct.pack(byte_order + "IH", 8, 1) + entry + bytes(4)
    segment = b"Exif\0\0" + tiff
    data = encoded(PIXELS)
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    picture = inspect(data)
    assert picture.orientation == orientation
    assert (picture.height, picture.width) == ((60, 40) if orientation > 4 else (40, 60))


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_orientation_is_read_from_other_formats(format_):
    """Only JPEGs would be turned upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = inspect(encoded(PIXELS, format_, exif=exif))
    assert (picture.height, picture.width) == (60, 40)
    assert decode(picture).shape == (60, 40, 3)


@pytest.mark.parametrize("tiff", [b"", b"II*\0", b"XX*\0\x08\0\0\0", b"II*\0\xff\xff\xff\xff"])
def test_broken_exif_does_not_cost_a_picture(tiff):
    """Many cameras and editors write EXIF that cannot be read."""
    segment = b"Exif\0\0" + tiff
    data = encoded(PIXELS)
    data = data[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + data[2:]
    assert inspect(data).orientation == 1


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
def test_a_cut_jpeg_is_truncated_wherever_it_is_cut(options):
    """The decoder would paint the missing part grey."""
    data = encoded(PIXELS, **options)
    for end in range(3, len(data)):
        assert reason(data[:end]) == "truncated", end


def test_a_thumbnails_end_is_not_the_end_of_the_picture():
    """A cut picture would pass because its thumbnail is whole."""
    thumbnail = encoded(made_pixels(1, 16, 16))
    segment = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 8) + b"Exif\0\0" + thumbnail
    data = encoded(PIXELS)
    data = data[:2] + segment + data[2:]
    assert inspect(data).width == 60
    assert reason(data[:-100]) == "truncated"
    assert reason(data[:-100] + thumbnail) == "truncated"


def test_junk_after_a_jpeg_and_fill_bytes_in_it_do_no_harm():
    """Pictures with appended data, which are common, would be refused."""
    data = encoded(PIXELS)
    assert inspect(data + b"junk" * 99).width == 60
    assert inspect(data + data[: len(data) // 2]).width == 60
    assert inspect(data[:2] + b"\xff\xff\xff" + data[3:]).width == 60


def test_a_marker_within_the_scan_is_undecodable():
    """The decoder would stop there and paint the rest grey."""
    data = bytearray(encoded(PIXELS))
    middle = data.index(b"\xff\xda") + (len(data) - data.index(b"\xff\xda")) // 2
    data[middle : middle + 2] = b"\xff\x4b"
    assert reason(bytes(data)) == "undecodable"


def test_a_height_that_the_data_cannot_fill_is_truncated():
    """A header that promises too much would give a picture that is nearly all grey."""
    data = bytearray(encoded(np.full((64, 64, 3), 128, np.uint8)))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 7] = struct.pack(">H", 6000)
    assert reason(bytes(data)) == "truncated"


def test_lossless_and_twelve_bit_jpegs_are_undecodable():
    """Every engine would have to find that out for itself."""
    for place, value in ((1, 0xC3), (4, 12)):
        data = bytearray(encoded(PIXELS))
        data[data.index(b"\xff\xc0") + place] = value
        assert reason(bytes(data)) == "undecodable"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"\0", "not_a_picture"),
        (b"<!DOCTYPE html><html>404", "not_a_picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not_a_picture"),
        (b"\xef\xbb\xbf\n" + encoded(PIXELS), "not_a_picture"),
        (b"\xff\xd8\xff", "truncated"),
        (b"\xff\xd8\xff\xd9", "broken_header"),
        (b"\xff\xd8\xff\xe0\0\0", "broken_header"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (encoded(PIXELS, "PNG")[:-12], "truncated"),
        (encoded(PIXELS, "PNG").replace(b"IHDR\0\0\0", b"IHDR\0\0\1"), "broken_header"),
        (encoded(PIXELS, "WEBP")[:-1], "truncated"),
        (b"RIFF\x04\0\0\0WEBP", "broken_header"),
        (encoded(PIXELS, "GIF")[:20], "truncated"),
        (encoded(PIXELS, "TIFF")[:9], "broken_header"),
        (encoded(PIXELS, "BMP")[:17], "broken_header"),
        (b"\0\0\0\x18ftypavif" + bytes(30), "broken_header"),
    ],
)
def test_every_kind_of_bad_file_has_its_reason(data, expected):
    """Rejects would be counted under the wrong reason, or crash."""
    assert reason(data) == expected


def png_header(height, width):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    end = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
    crc = struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + crc + end


def test_a_bomb_is_seen_and_not_set_off():
    """A picture of a few bytes would take gigabytes."""
    assert inspect(png_header(40000, 40000)).height == 40000
    assert reason(png_header(MAX_SIDE + 1, 1)) == "too_large"
    assert reason(png_header(0, 5)) == "broken_header"


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.filterwarnings("ignore")  # Pillow warns of much in broken files
def test_damaged_files_raise_nothing_but_picture_errors(format_):
    """Some broken file would kill a reader."""
    rng = random.Random(format_)
    whole = encoded(made_pixels(2, 24, 24), format_)
    for _ in range(120):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = bytes(data[: rng.choice([len(data), len(data), rng.randrange(len(data))])])
        try:
            picture = inspect(data)
            if picture.height * picture.width < 1_000_000:
                decode(picture)
        except PictureError:
            continue


def judged(files):
    """Every file of an archive: the picture, or the reason why not, by name."""
    results = {}
    for name, data in files.items():
        try:
            picture = inspect(data)
            if picture.height * picture.width > MAX_PIXELS:
                raise PictureError("too_large", "")
            pixels = decode(picture)
            assert pixels.shape == (picture.height, picture.width, 3)
            if min(pixels.shape[:2]) >= 8 and "gray" not in name:
                assert (pixels == 128).all(axis=-1).mean() < 0.5, f"{name} became grey"
            results[name] = picture
        except PictureError as error:
            results[name] = error.reason
    return results


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("archive", "most_refused", "most_accepted"), [("nasty-a.tar", 5, 3), ("made-a.tar", 1, 0)]
)
def test_hostile_files_are_judged_as_pillow_judges_them(archive, most_refused, most_accepted):
    """Good pictures would be lost, or bad ones trained on.

    What is refused here and accepted by Pillow is over 90 % grey paint, or a bomb; what is accepted
    here is broken only in chunks that hold no pixels.
    """
    files = shared_files(archive)
    manifest = csv.DictReader(
        io.StringIO(files.pop("MANIFEST.tsv").decode()), delimiter="\t", quoting=csv.QUOTE_NONE
    )
    results = judged(files)
    disagreements = Counter()
    for row in manifest:
        good = row["pillow13_result"].startswith(("ok", "warn"))
        found = results[row["file"]]
        if good and isinstance(found, str):
            disagreements["refused"] += 1
        elif not good and not isinstance(found, str):
            disagreements["accepted"] += 1
        elif good:
            size = sorted((found.height, found.width))
            assert size == sorted((int(row["height"]), int(row["width"])))
    assert disagreements["refused"] <= most_refused
    assert disagreements["accepted"] <= most_accepted


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("archive", ["nasty-a.tar", "made-a.tar"])
def test_both_engines_keep_the_same_hostile_files(archive):
    """Which samples are trained on would depend on the engine."""
    pictures = []
    for data in shared_files(archive).values():
        try:
            picture = inspect(data)
        except PictureError:
            continue
        if picture.height * picture.width < 8_000_000:
            pictures.append(picture)
    parameters = drawn(cifar(), pictures)
    ours = OpenCVEngine(cifar()).crop(pictures, parameters)
    theirs = DaliEngine(cifar(), 16, "cpu", 1).crop(pictures, parameters)
    assert [picture.format for picture in pictures if not picture.data] == []
    np.testing.assert_array_equal(ours.ok, theirs.ok)
    assert {(f.row, f.reason) for f in ours.failures} == {
        (f.row, f.reason) for f in theirs.failures
    }
    found = np.abs(ours.crops[0].astype(int) - theirs.crops[0]).mean(axis=(1, 2, 3, 4))
    assert np.median(found) < 0.7
