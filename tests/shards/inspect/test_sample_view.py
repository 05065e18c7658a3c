"""Contact sheets: samples shown, bytes read, and untrusted text that stays text."""

import base64
import html.parser
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from shards.errors import ConfigError
from shards.images.image_header import read_image_header
from shards.inspect.contact_sheet import (
    ContactSheet,
    SheetTile,
    clean_text,
    draw_sheet,
    sheet_html,
    write_sheet,
)
from shards.inspect.sample_view import describe, draw_samples, sample_tile, thumbnail
from shards.records import Sample
from shards.samples.admission_config import AdmissionConfig
from shards.samples.sample_check import SampleCheck
from shards.stores.range_reader import RangeReader
from shards.stream.manifest_listing import open_manifest
from tests.noise import noise
from tests.tars import make_tar

HOSTILE = "</b><script>alert(1)</script>\"' onload=x\N{RIGHT-TO-LEFT OVERRIDE}gpj.\x00\udcff\n"


def draw(folder, num, **options):
    reader = RangeReader()
    manifest = open_manifest(str(folder), reader)
    return list(draw_samples(manifest, reader, AdmissionConfig(), num=num, **options))


class Page(html.parser.HTMLParser):
    """Parsed page: elements, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def images(self):
        return [
            Image.open(io.BytesIO(base64.b64decode(attrs["src"].partition(",")[2])))
            for tag, attrs in self.elements
            if tag == "img"
        ]


def test_seed_decides_which_samples_are_drawn(synthetic_shards):
    """Two users would see different sheets, or a second seed nothing new."""
    one, again = draw(synthetic_shards, 20), draw(synthetic_shards, 20)
    assert [t.title for t in one] == [t.title for t in again]
    other = draw(synthetic_shards, 20, seed=1)
    assert len(other) == 20 and {t.title for t in one} != {t.title for t in other}


def test_every_sample_is_shown_at_most_once(synthetic_shards):
    """A sheet of all samples would repeat some."""
    titles = [tile.title for tile in draw(synthetic_shards, 1000)]
    assert len(titles) == len(set(titles)) == 96


def test_sheet_reads_a_few_chunks_of_a_large_bucket(tmp_path):
    """Ten images would cost a read of a hundred shards."""
    image = noise(64, 64, ".jpg")
    for shard in range(100):
        members = [(f"{shard:03d}-{i:03d}.jpg", image) for i in range(40)]
        (tmp_path / f"{shard:03d}.tar").write_bytes(make_tar(members))

    uris = []

    class Counting(RangeReader):
        def read(self, shard, start, stop):
            uris.append(shard.uri)
            return super().read(shard, start, stop)

    reader = Counting()
    manifest = open_manifest(str(tmp_path), reader)
    uris.clear()
    tiles = list(draw_samples(manifest, reader, AdmissionConfig(), num=10))
    assert len(tiles) == 10 and len(set(uris)) <= 16
    assert len({tile.title[:3] for tile in tiles}) >= 4  # from many places


def test_reject_is_shown_with_its_reason(tmp_path):
    """The user could not see what a run leaves out."""
    members = [
        ("good.jpg", noise(40, 60, ".jpg")), ("good.cls", b"3"),
        ("tiny.png", noise(4, 4)),
        ("html.jpg", b"<html>gone</html>"),
        ("cut.jpg", noise(50, 50, ".jpg")[:-300]),
        ("none.txt", b"only words"),
    ]  # fmt: skip
    (tmp_path / "0.tar").write_bytes(make_tar(members))
    tiles = {tile.title: tile for tile in draw(tmp_path, 10)}
    assert {key: tile.reason for key, tile in tiles.items()} == {
        "good": "", "tiny": "too_small", "html": "not_an_image", "cut": "truncated",
        "none": "no_image",
    }  # fmt: skip
    assert tiles["good"].lines[0].startswith("60 x 40 jpeg, ")
    assert tiles["good"].lines[1] == "label: 3" and tiles["none"].lines[1] == "caption: only words"
    assert all(bool(tile.rows) == (not tile.reason) for tile in tiles.values())


def test_rejected_images_are_not_decoded():
    """A decompression bomb would fill the memory of the viewer."""
    bomb = noise(300, 300)
    tile = sample_tile(
        Sample(0, 0, "bomb", {"png": bomb}), SampleCheck(AdmissionConfig(max_pixels=10_000))
    )
    assert tile.reason == "too_large" and not tile.rows


@pytest.mark.parametrize(("height", "width"), [(40, 60), (1000, 30), (2000, 1500), (1, 500)])
def test_thumbnail_keeps_its_proportions(height, width):
    """A stretched image would look like bad data."""
    shown = thumbnail(read_image_header(noise(height, width, ".jpg")))
    assert max(shown.shape[:2]) == min(192, max(height, width))
    share = max(shown.shape[:2]) / max(height, width)
    assert shown.shape[:2] == (max(1, round(height * share)), max(1, round(width * share)))


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({"cls": b"7", "txt": b" a cat \n"}, ("label: 7", "caption: a cat")),
        ({"json": b'{"label": 3, "caption": "a dog"}'}, ("label: 3", "caption: a dog")),
        ({"json": b'{"caption": "json"}', "txt": b"own"}, ("caption: own",)),
        ({"json": b"[" * 100_000}, ()),
        ({"json": b'{"label": {"a": [1, 2]}, "caption": null}'}, ()),
        ({"json": b"no json", "txt": b"\xff\xfe"}, ("caption: ��",)),
        ({"cls": b"0"}, ("label: 0",)),
    ],
)
def test_label_and_caption_are_read_from_members_or_json(fields, lines):
    """A label or caption in another place would not be shown, or a broken one raise."""
    assert describe(Sample(0, 0, "k", fields))[:-1] == lines


def test_untrusted_text_is_escaped():
    """A key or caption would become an element, a script, or a change of direction."""
    tile = SheetTile(HOSTILE, ((np.zeros((2, 3, 3), np.uint8),),), (HOSTILE,), HOSTILE)
    text = sheet_html(ContactSheet(HOSTILE, [tile], (HOSTILE,), HOSTILE))
    text.encode()  # no lone surrogate is left
    found = Page(text)
    names = {tag for tag, _ in found.elements}
    assert names <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "p", "main", "figure"),
        *("div", "img", "figcaption", "b", "span"),
    }
    assert not any(name.startswith("on") for _, attrs in found.elements for name in attrs)
    assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 8
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in text and "\x00" not in text


def test_page_is_self_contained(synthetic_shards):
    """The page would fail offline, or report to a server that it is read."""
    text = sheet_html(ContactSheet("all", draw(synthetic_shards, 96)))
    found = Page(text)
    images = [attrs for tag, attrs in found.elements if tag == "img"]
    assert len(images) == 96
    assert all(attrs["src"].startswith("data:image/webp;base64,") for attrs in images)
    assert all(attrs["loading"] == "lazy" and attrs["alt"] for attrs in images)
    assert "//" not in re.sub(r'src="[^"]*"', "", text)
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text


def test_exact_quality_keeps_every_pixel():
    """A comparison of the crops of two runs would compare a codec."""
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 24, 24, 3), np.uint8)
    tiles = [SheetTile("a", (tuple(pixels[0]),)), SheetTile("b", (tuple(pixels[1]),))]
    shown = Page(sheet_html(ContactSheet("crops", tiles, quality="exact"))).images()
    assert len(shown) == 10
    for pil_image, expected in zip(shown, pixels.reshape(10, 24, 24, 3), strict=True):
        assert np.array_equal(np.asarray(pil_image.convert("RGB")), expected)
    drawn = np.asarray(draw_sheet(ContactSheet("crops", tiles)))
    at = np.argwhere((drawn[:-23, :-23] == pixels[0, 0, 0, 0]).all(-1)).tolist()
    assert any(np.array_equal(drawn[y : y + 24, x : x + 24], pixels[0, 0]) for y, x in at)


def test_sheet_is_written_atomically_or_refused(tmp_path, synthetic_shards):
    """Half a page would look like half the data."""
    tiles = draw(synthetic_shards, 9)
    for name in ("a.png", "a.html", "a.PNG"):
        write_sheet(ContactSheet("nine", tiles, ("a fact",), "a warning"), tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.PNG", "a.html", "a.png"]
    with Image.open(tmp_path / "a.png") as pil_image:
        assert pil_image.format == "PNG" and pil_image.width > 500
    with pytest.raises(ConfigError, match=r"ends in '\.gif'; a sheet is written as \.html or"):
        write_sheet(ContactSheet("nine", tiles), tmp_path / "a.gif")
    with pytest.raises(ConfigError, match=r"does not exist; .* make .*nowhere first"):
        write_sheet(ContactSheet("nine", tiles), tmp_path / "nowhere" / "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match="cannot be written"):
        write_sheet(ContactSheet("nine", tiles), tmp_path / "folder.png")
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("num", [0, 1025])
def test_number_of_tiles_is_bounded(synthetic_shards, num):
    """A million tiles would fill the memory."""
    with pytest.raises(ConfigError, match=rf"num={num}; a sheet shows from 1 to 1024"):
        draw(synthetic_shards, num)


def test_text_is_cleaned_and_shortened():
    """A caption of a megabyte would fill the page."""
    assert len(clean_text("x" * 1_000_000)) == 160 and clean_text("a\r\n\tb\u2028c") == "a b c"
    assert clean_text("naïve 長 é") == "naïve 長 é"


@pytest.mark.slow
def test_browser_shows_every_image(tmp_path, synthetic_shards):
    """A browser would refuse a policy, a codec or a quote that the parser accepts."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no chromium on the PATH")
    write_sheet(ContactSheet(HOSTILE, draw(synthetic_shards, 60)), tmp_path / "sheet.html")
    shot = tmp_path / "shot.png"
    options = "--headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1200,1600"
    files = (f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}")
    page = (tmp_path / "sheet.html").as_uri()
    subprocess.run(
        [chromium, *options.split(), *files, page], check=True, capture_output=True, timeout=50
    )
    with Image.open(shot) as pil_image:
        pixels = np.asarray(pil_image.convert("RGB"))
    # Images have many colours; a page of broken images has a few.
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 5000
