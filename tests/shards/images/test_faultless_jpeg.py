"""Pixels of simplejpeg, bit by bit against those of OpenCV, and the files that it must leave."""

import dataclasses
import itertools

import cv2
import numpy as np
import pytest

from shards.images.decode import JPEG_REDUCTIONS
from shards.images.faultless_jpeg import decode_faultless
from shards.images.image_header import read_image_header
from tests.hostile import valid
from tests.shards.crops.made import made_pixels

SAMPLINGS = (0x411111, 0x221111, 0x211111, 0x121111, 0x111111)
# Sides that end within a block, within a unit of 4:1:1, and below one block.
SIZES = ((67, 91), (64, 48), (33, 17), (200, 9), (7, 5), (2, 2))


def by_opencv(data, reduction):
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | JPEG_REDUCTIONS[reduction]
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def encoded(size, sampling, progressive, grey):
    pixels = made_pixels(0, *size)
    options = [
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        sampling,
        cv2.IMWRITE_JPEG_PROGRESSIVE,
        progressive,
    ]
    return cv2.imencode(".jpg", pixels[..., 0] if grey else pixels, options)[1].tobytes()


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_opencv(size):
    """Crops of a run would change with a version of either library, and no digest would fit."""
    num_decoded = 0
    for sampling, progressive, grey in itertools.product(SAMPLINGS, (0, 1), (False, True)):
        data = encoded(size, sampling, progressive, grey)
        image = read_image_header(data)
        for reduction in JPEG_REDUCTIONS:
            pixels = decode_faultless(image, reduction)
            if pixels is not None:
                num_decoded += 1
                assert np.array_equal(pixels, by_opencv(data, reduction))
    assert num_decoded == 20 * (4 if max(size) >= 16 else 1)


def test_a_file_with_a_fault_or_of_another_kind_is_left_to_opencv():
    """A truncated image would be accepted here and rejected there; CMYK has other colours."""
    data = encoded((64, 48), 0x221111, 0, False)
    image = read_image_header(data)
    assert decode_faultless(image, 1) is not None
    middle = len(data) * 2 // 3
    faulty = {
        "its end is missing": data[:middle],
        "a marker in its middle": data[:middle] + b"\xff\xd3" + data[middle:],
        "bytes before a marker": data[:2] + b"\x00" + data[2:],
    }
    for name, bad in faulty.items():
        assert decode_faultless(dataclasses.replace(image, data=bad), 1) is None, name
    assert decode_faultless(dataclasses.replace(image, height=63), 1) is None
    for kind, other in valid().items():
        is_left = "jpeg" not in kind or "2000" in kind or "cmyk" in kind
        assert (decode_faultless(read_image_header(other), 1) is None) == is_left, kind
