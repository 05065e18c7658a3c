"""Bytes that are no supported image are rejected by the name of their format, with a remedy."""

import gzip
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from shards.images.image_header import ImageError, read_image_header
from shards.records import Reject, Sample
from shards.samples.admission import admit
from shards.samples.admission_config import AdmissionConfig
from tests.shards.crops.made import encoded, made_pixels


def archive(name):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        zipped.writestr(name, b"words")
    return file.getvalue()


def npy():
    file = io.BytesIO()
    np.save(file, np.zeros((3, 4)))
    return file.getvalue()


def isobmff(*brands):
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands)
    return (len(body) + 4).to_bytes(4) + body + bytes(40)


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
XML = b'<?xml version="1.0"?>\n'
FOREIGN = {
    "an SVG drawing": [
        SVG,
        b"\xef\xbb\xbf \n" + XML + b"<!-- <html> -->\n" + SVG,
        XML + b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "svg11.dtd">\n' + SVG,
        b"\xff\xfe" + (XML + SVG).decode().encode("utf-16-le"),
        b"<svg:svg/>",
    ],
    "an HTML page": [
        b"<html><body>403</body></html>",
        b"\n\n<!DOCTYPE HTML>\n<html>",
        b"<!-- made -->\n<HEAD><title>404</title>" + SVG,
    ],
    "an XML answer of a store": [XML + b"<Error><Code>AccessDenied</Code></Error>"],
    "an XML document": [XML + b"<annotation><size/></annotation>"],
    "a Git LFS pointer": [b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n"],
    "DICOM": [bytes(128) + b"DICM" + bytes(200), b"\xff\x0b" * 64 + b"DICM\x02\0\0\0UL"],
    "a NumPy array": [npy()],
    "an archive of NumPy arrays": [archive("arr_0.npy")],
    "a ZIP archive": [archive("a.docx")],
    "gzip data": [gzip.compress(b"words")],
    "a PDF": [b"%PDF-1.7\n%\xe2"],
    "PostScript": [b"%!PS-Adobe-3.0 EPSF-3.0"],
    "an MP4 or QuickTime video": [isobmff(b"isom"), isobmff(b"qt  "), isobmff(b"mp42")],
    "a Canon raw file": [isobmff(b"crx ")],
    "a camera's raw file": [b"FUJIFILMCCD-RAW 0201", b"IIU\0\x18\0\0\0"],
    "a WebM or Matroska video": [b"\x1a\x45\xdf\xa3\x01"],
    "an AVI video": [b"RIFF\x10\0\0\0AVI LIST"],
    "OpenEXR": [b"\x76\x2f\x31\x01\x02\0\0\0"],
    "Radiance HDR": [b"#?RADIANCE\n"],
    "JPEG XR": [b"II\xbc\x01\x20\0\0\0"],
    "JPEG-LS": [
        b"\xff\xd8\xff\xf7\0\x0b\x08\0\x10\0\x10\1\1\x11\0\xff\xda\0\x08\1\1\0\0\0\0\xff\xd9"
    ],
    "FITS": [b"SIMPLE  =                    T"],
    "HDF5": [b"\x89HDF\r\n\x1a\n\0"],
    "JSON": [b'{"error": "not found"}', b"[1, 2]"],
    "text": [b"403 Forbidden: quota exceeded\n"],
    "text in base64": [b"/9j/4AAQSkZJRgABAQ=="],
    "only zeros": [bytes(100), bytes(10_000)],
}


@pytest.mark.parametrize("name", FOREIGN)
def test_reject_names_the_format_and_a_remedy(name):
    """A user would learn eight bytes of a file, and search for their meaning."""
    for data in FOREIGN[name]:
        with pytest.raises(ImageError) as caught:
            read_image_header(data)
        assert caught.value.reason == "not_an_image"
        assert caught.value.detail.startswith(f"{name}: "), data


@pytest.mark.parametrize(
    "data", [b"\0", b"\x07\x08\x09junk", b"\0" * 9000 + b"\1", b"\xef\xbb\xbf"]
)
def test_unknown_bytes_are_shown(data):
    """A wrong name would send a user the wrong way."""
    with pytest.raises(ImageError, match="not_an_image: begins with b'") as caught:
        read_image_header(data)
    assert caught.value.detail == f"begins with {data[:8]!r}"


WITHOUT_EXTRAS = """
import json, sys
sys.modules["pillow_heif"] = sys.modules["pillow_jxl"] = None  # an import fails, as without them
from shards.images.image_header import ImageError, read_image_header
for data in json.load(sys.stdin):
    try:
        read_image_header(bytes.fromhex(data))
    except ImageError as error:
        print(error.reason, error)
"""


def test_heic_and_jpeg_xl_name_the_extra_that_reads_them():
    """Photographs of phones would be lost, though one command reads them."""
    heic = [isobmff(brand) for brand in (b"heic", b"heix", b"hevc", b"msf1")]
    heic.append(isobmff(b"mif1", b"heic", b"miaf"))
    jxl = [b"\xff\x0a\xfa\x1f", b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20)]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS],
        input=json.dumps([data.hex() for data in heic + jxl]),
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(heic + jxl) and all(line.startswith("not_an_image") for line in lines)
    assert all("pip install 'streamssl[heic]'" in line for line in lines[: len(heic)])
    assert all("pip install 'streamssl[jxl]'" in line for line in lines[len(heic) :])


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"svg": SVG, "txt": b"a long enough caption"}, "svg is an SVG drawing: draw it as PNG"),
        ({"dcm": b"without preamble"}, "dcm is DICOM: "),
        ({"image.npy": npy(), "cls": b"1"}, "image.npy is a NumPy array: "),
        ({"mp4": isobmff(b"isom")}, "mp4 is an MP4 or QuickTime video: "),
        ({"": b"%PDF-1.4"}, "it is a PDF: "),
        ({"json": json.dumps({"a": 1}).encode(), "xml": XML + b"<a/>"}, None),
    ],
)
def test_sample_without_an_image_names_what_its_members_hold(fields, named):
    """A user would see `members: dcm` and no way on; a side-car must not be blamed."""
    found = admit(Sample(0, 0, "a", fields), AdmissionConfig())
    assert isinstance(found, Reject) and found.reason == "no_image"
    if named is None:
        assert found.detail == f"members: {', '.join(sorted(fields))}"
    else:
        assert f"; {named}" in found.detail


def test_avif_of_a_general_brand_is_still_an_avif():
    """AVIF files whose first brand is mif1 would be called HEIC."""
    data = bytearray(encoded(made_pixels(0, 40, 60), "AVIF"))
    assert data[8:12] == b"avif"
    data[8:12] = b"mif1"
    assert read_image_header(bytes(data)).format == "avif"
