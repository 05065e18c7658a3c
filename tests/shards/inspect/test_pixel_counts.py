"""Lines about bits, bands and foreign formats: told once, with a remedy, and not for usual data."""

import numpy as np
import pytest

from shards.images.image_header import ImageHeader
from shards.inspect.pixel_counts import PixelCounts, probe_pixels
from shards.records import Sample
from shards.samples.admission_config import AdmissionConfig
from tests.shards.crops.made import encoded, made_pixels
from tests.shards.images.test_stored_levels import PIXELS, bands, by_opencv, tiff


def lines(*files, **policy):
    """Return the lines of a probe of these files."""
    admission = AdmissionConfig(**policy)
    samples = [Sample(0, 512 * row, str(row), {"img": data}) for row, data in enumerate(files)]
    return list(probe_pixels(samples, admission).lines(admission.sixteen_bit))


def deep(bits):
    levels = PIXELS.astype(np.uint16) << (bits - 8)
    levels[0, 0] = (1 << bits) - 1
    return by_opencv(".png")(levels)


def test_unused_bits_are_told_unless_the_setting_keeps_them():
    """Twelve bits of a sensor would be trained on as fifteen grey levels, without a word."""
    (line,) = lines(*[deep(12)] * 3, deep(10), deep(16))
    assert line.startswith("4 of 5 measured images of over eight bits use only 12 bits, ")
    assert "--admission.sixteen-bit stretch" in line
    assert lines(*[deep(12)] * 3, sixteen_bit="stretch") == []
    assert lines(deep(16), deep(15), deep(15)) == []


@pytest.mark.parametrize("setting", ["scale", "stretch", "percentiles", "reject"])
def test_formats_that_are_decoded_to_eight_bits_are_told(setting):
    """A setting would be ignored without a word."""
    counts = PixelCounts()
    for bits, num_bands in ((16, 3), (16, 1), (8, 3)):
        counts.add(ImageHeader(b"", "jxl", 40, 60, bits=bits, num_bands=num_bands))
    counts.add(ImageHeader(b"", "png", 40, 60, num_frames=3, bits=16))
    found = PixelCounts()
    found.merge(counts)
    told = list(found.lines(setting))
    assert len(told) == (setting in ("stretch", "percentiles"))
    for line in told:
        assert line.startswith("2 of 4 images of over eight bits (jxl, png) are decoded to their")
        assert f"--admission.sixteen-bit {setting} does not apply to them: convert them to" in line


def test_dropped_bands_are_told_with_their_number():
    """Ten of thirteen bands would be dropped without a word."""
    (line,) = lines(tiff(bands(13)), tiff(bands(4)), tiff(bands(4), extra=[2]), tiff(bands(3)))
    assert line.startswith("2 of 4 images have 4, 13 bands: the first three are used")


def test_foreign_formats_are_told_with_their_remedy():
    """The first reject would hide the other formats."""
    html, dicom = b"<html>403", bytes(128) + b"DICM"
    first, second = lines(html, html, dicom, b"junk", encoded(made_pixels(0, 40, 60)))
    assert first.startswith("not read: an HTML page (2 of the samples): an error page was saved")
    assert second.startswith("not read: DICOM (1 of the samples): save its pixels as PNG")


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "GIF", "BMP"])
def test_usual_images_are_no_news(format_):
    """A line at the start of every run would not be read."""
    assert lines(encoded(made_pixels(0, 40, 60), format_)) == []


def test_counts_of_parts_add_up():
    """The line would name the counts of the last shard."""
    total = PixelCounts()
    for data in (tiff(bands(13)), tiff(bands(4)), deep(12), b"<html>"):
        total.merge(probe_pixels([Sample(0, 0, "a", {"img": data})], AdmissionConfig()))
    assert (total.num_images, total.num_narrow, total.max_narrow) == (3, 1, 12)
    assert total.bands == {13: 1, 4: 1, 3: 1} and total.bits == {8: 2, 16: 1}
    assert len(list(total.lines("scale"))) == 3
