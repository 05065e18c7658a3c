"""Galleries are bounded, made from sample ids alone, and only while a page is open."""

import io
import multiprocessing
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image

from cluster.monitoring.live.gallery import NUM_TILES, Gallery, GalleryItem, reject_item
from cluster.monitoring.live.thumbnail_maker import ThumbnailMaker, as_jpeg, mosaic
from shards.crops.chunk_cropper import ChunkCropper
from shards.crops.native import NativeEngine
from shards.crops.recipe import CropRecipe, swav
from shards.crops.sample_cropper import CropJob
from shards.records import Chunk, Reject, Turn
from shards.samples.admission_config import AdmissionConfig
from shards.stores.range_reader import RangeReader
from shards.stream.manifest_listing import open_manifest
from tests.shards.crops.made import encoded, made_pixels
from tests.tars import make_tar

RECIPE = CropRecipe(swav(counts=(2, 3), sizes=(32, 16)).groups)
JOB = CropJob(
    recipe=RECIPE,
    seed=3,
    admission=AdmissionConfig(min_side=24),
    build_engine=partial(NativeEngine, RECIPE),
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Three good images, one that is too small, and one that is no image."""
    folder = tmp_path_factory.mktemp("gallery")
    images = [encoded(made_pixels(seed, 60, 80), "jpeg") for seed in range(3)]
    images += [encoded(made_pixels(9, 20, 30), "png"), b"no image"]
    members = [(f"{number}.jpg", data) for number, data in enumerate(images)]
    (folder / "0.tar").write_bytes(make_tar(members))
    return open_manifest([str(folder / "0.tar")], RangeReader())


@pytest.fixture(scope="module")
def cropped(manifest):
    """The shard as a reader crops it."""
    turn = Turn(Chunk(0, 0, manifest.shards[0].num_bytes), epoch=2)
    return ChunkCropper(JOB, RangeReader()).crop(manifest.shards[0], turn)


@pytest.fixture
def gallery(manifest):
    """A gallery that makes no images: its thread was not started."""
    return gallery_of(manifest)


def gallery_of(manifest):
    return Gallery(manifest.shards, partial(ThumbnailMaker, manifest, JOB))


def item_of(cropped, row):
    offset = int(cropped.offsets[cropped.kept][row])
    return GalleryItem(shard=0, offset=offset, epoch=cropped.epoch)


def view_when_made(gallery, seconds=30.0):
    """Return the tiles once no image waits to be made."""
    until = time.monotonic() + seconds
    while any(tile["waits"] for tiles in gallery.view().values() for tile in tiles):
        assert time.monotonic() < until, "images were not made in time"
        time.sleep(0.05)
    return gallery.view()


@pytest.mark.slow
def test_thumbnails_are_the_trained_crops(manifest, cropped):
    """The gallery would show other crops than the trainer has seen."""
    with ThumbnailMaker(manifest, JOB) as maker:
        key, image = maker.make(item_of(cropped, 1))
    assert key == "1"
    assert image == as_jpeg(mosaic([group[1] for group in cropped.crops]))
    assert Image.open(io.BytesIO(image)).size == (2 * 96 + 2 * 48, 96)


@pytest.mark.slow
def test_an_open_page_gets_images_of_everything_that_is_safe(manifest, cropped):
    """A decoder would be killed again, or a page would show fewer images than it can.

    Crops and rejects take turns, so six rejects do not delay the crop.
    """
    small, nothing = cropped.rejects
    killer = Reject(0, small.offset, "killer", "kills_decoder", "")
    before = len(multiprocessing.active_children())
    with gallery_of(manifest) as gallery:
        rejects = [reject_item(one, step=7) for one in (killer, nothing, *[small] * 6)]
        gallery.fill([item_of(cropped, 0), *rejects])
        assert gallery.image("crops-1") is None  # no page is open yet
        assert len(multiprocessing.active_children()) == before
        until = time.monotonic() + 30
        while not gallery.view()["crops"][0]["image"]:
            assert time.monotonic() < until
            time.sleep(0.02)
        assert [tile["image"] for tile in gallery.view()["rejects"]].count(None) >= 5
        tiles = view_when_made(gallery)
        shown = {tile["key"]: tile for tile in tiles["rejects"]}
        image = gallery.image(shown["3"]["name"])
    assert shown["3"]["reason"] == "too_small" and shown["3"]["step"] == 7
    assert image is not None and Image.open(io.BytesIO(image)).size == (96, 96)
    assert shown["3"]["image"] == f"/gallery?name={shown['3']['name']}"
    assert shown["killer"]["image"] is None and shown["4"]["image"] is None
    assert tiles["crops"][0]["key"] == "0" and tiles["crops"][0]["image"]


def test_a_missing_shard_gives_a_tile_without_an_image(manifest, tmp_path):
    """An old run could not be opened after its bucket was emptied."""
    (tmp_path / "gone.tar").write_bytes(make_tar([("0.jpg", b"x" * 99)]))
    listed = open_manifest([str(tmp_path / "gone.tar")], RangeReader())
    (tmp_path / "gone.tar").unlink()
    with ThumbnailMaker(listed, JOB) as maker:
        assert maker.make(GalleryItem(shard=0, offset=0)) == ("", b"")


def test_a_gallery_is_bounded(gallery):
    """A run with a million rejects would fill the memory."""
    gallery.fill([GalleryItem(shard=0, offset=512 * number) for number in range(100)])
    shown = gallery.view()["crops"]
    assert len(shown) == NUM_TILES and shown[0]["where"] == "0.tar, byte 50,688"


def test_fast_steps_offer_one_item_of_each_kind(gallery):
    """Fast steps would pay for a gallery that nobody can follow."""
    for step in range(50):
        gallery.offer(step, (0, 512 * step, 0), [Reject(0, 0, str(step), "blank")])
    shown = gallery.view()
    assert [tile["key"] for tile in shown["rejects"]] == ["0"]
    assert [tile["where"] for tile in shown["crops"]] == ["0.tar, byte 0"]


def test_rare_reasons_come_first(gallery):
    """A thousand small images would hide the broken one."""
    small = Reject(0, 0, "small", "too_small")
    gallery.fill([reject_item(small, step=1)])
    gallery.offer(2, None, [small, small, Reject(0, 512, "short", "truncated")])
    assert gallery.view()["rejects"][0]["reason"] == "truncated"


def test_keys_are_shown_as_plain_text(gallery):
    """A key could reverse the text of the page, or fill it."""
    item = GalleryItem(shard=0, offset=0, key="a\u202e\n" + "b" * 999, reason="blank")
    gallery.fill([item])
    shown = gallery.view()["rejects"][0]["key"]
    assert "\u202e" not in shown and "\n" not in shown and len(shown) <= 160


def test_a_mosaic_holds_every_view():
    """A user cannot judge a view that is left out."""
    groups = [np.full((2, 32, 32, 3), 200, np.uint8), np.full((3, 16, 16, 3), 90, np.uint8)]
    made = mosaic(groups)
    assert made.shape == (96, 288, 3)
    assert (made == 200).sum() == 2 * 96 * 96 * 3 and (made == 90).sum() == 3 * 48 * 48 * 3
