"""The galleries: bounded, made from ids alone, and only while somebody looks."""

import io
import multiprocessing
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image

from cluster.monitoring.live.gallery import (
    NUM_TILES,
    Gallery,
    Maker,
    Place,
    as_jpeg,
    mosaic,
    refused,
)
from shards.crops.chunk_cropper import ChunkCropper
from shards.crops.opencv import OpenCVEngine
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
    build_engine=partial(OpenCVEngine, RECIPE),
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Three good images, then one that is too small, then none at all."""
    folder = tmp_path_factory.mktemp("gallery")
    images = [encoded(made_pixels(seed, 60, 80), "jpeg") for seed in range(3)]
    images += [encoded(made_pixels(9, 20, 30), "png"), b"no image"]
    members = [(f"{number}.jpg", data) for number, data in enumerate(images)]
    (folder / "0.tar").write_bytes(make_tar(members))
    return open_manifest([str(folder / "0.tar")], RangeReader())


@pytest.fixture(scope="module")
def cropped(manifest):
    """What a reader makes of the shard."""
    turn = Turn(Chunk(0, 0, manifest.shards[0].num_bytes), epoch=2)
    return ChunkCropper(JOB, RangeReader()).crop(manifest.shards[0], turn)


def place_of(cropped, row):
    return Place(shard=0, offset=int(cropped.offsets[cropped.kept][row]), epoch=cropped.epoch)


def looked_at(gallery, seconds=30.0):
    """What a page shows once no image waits to be made."""
    until = time.monotonic() + seconds
    while any(tile["waits"] for tiles in gallery.look().values() for tile in tiles):
        assert time.monotonic() < until, "images were not made in time"
        time.sleep(0.05)
    return gallery.look()


def test_crops_are_those_that_were_trained_on(manifest, cropped):
    """The gallery would show other crops than the run has seen."""
    with Maker(manifest, JOB, RangeReader()) as maker:
        key, image = maker.make(place_of(cropped, 1))
    assert key == "1"
    assert image == as_jpeg(mosaic([group[1] for group in cropped.crops]))
    assert Image.open(io.BytesIO(image)).size == (2 * 96 + 2 * 48, 96)


def test_a_page_gets_images_of_what_can_be_shown(manifest, cropped):
    """An image that was too small is worth a look; one that kills decoders is never opened."""
    small, nothing = cropped.rejects
    killer = Reject(0, small.offset, "killer", "kills_decoder", "")
    with Gallery(manifest, JOB) as gallery:
        rejects = [refused(one, step=7) for one in (small, nothing, killer)]
        gallery.fill([place_of(cropped, 0), *rejects])
        tiles = looked_at(gallery)
        shown = {tile["key"]: tile for tile in tiles["rejects"]}
        assert shown["3"]["reason"] == "too_small" and shown["3"]["step"] == 7
        image = gallery.image(shown["3"]["name"])
    assert image is not None and Image.open(io.BytesIO(image)).size == (96, 96)
    assert shown["3"]["image"] == f"/gallery?name={shown['3']['name']}"
    assert shown["killer"]["image"] is None and shown["4"]["image"] is None
    assert tiles["crops"][0]["key"] == "0" and tiles["crops"][0]["image"]


def test_a_gallery_has_a_bound(manifest):
    """A run with a million rejects would fill the memory of the machine that shows them."""
    gallery = Gallery(manifest, JOB)
    gallery.fill([Place(shard=0, offset=512 * number) for number in range(100)])
    shown = gallery.look()["crops"]
    assert len(shown) == NUM_TILES and shown[0]["where"] == "0.tar, byte 50,688"


def test_of_many_steps_one_sample_of_a_kind_is_taken(manifest):
    """Quick steps would pay for a gallery that nobody can follow."""
    gallery = Gallery(manifest, JOB)
    for step in range(50):
        gallery.offer(step, (0, 512 * step, 0), [Reject(0, 0, str(step), "blank")])
    shown = gallery.look()
    assert [tile["key"] for tile in shown["rejects"]] == ["0"]
    assert [tile["where"] for tile in shown["crops"]] == ["0.tar, byte 0"]


def test_rare_reasons_are_shown_first(manifest):
    """A thousand images that are too small would hide the one that is broken."""
    gallery = Gallery(manifest, JOB)
    small = Reject(0, 0, "small", "too_small")
    gallery.fill([refused(small, step=1)])
    gallery.offer(2, None, [small, small, Reject(0, 512, "short", "truncated")])
    assert gallery.look()["rejects"][0]["reason"] == "truncated"


def test_nothing_is_made_while_nobody_looks(manifest):
    """A run without a page would pay for one."""
    before = len(multiprocessing.active_children())
    with Gallery(manifest, JOB) as gallery:
        gallery.fill([Place(shard=0, offset=0)])
        time.sleep(0.3)
        assert len(multiprocessing.active_children()) == before
        assert gallery.image("crops-1") is None


def test_words_of_strangers_are_made_plain(manifest):
    """A key could turn the direction of the page, or fill it."""
    gallery = Gallery(manifest, JOB)
    gallery.fill([Place(shard=0, offset=0, key="a\u202e\n" + "b" * 999, reason="blank")])
    shown = gallery.look()["rejects"][0]["key"]
    assert "\u202e" not in shown and "\n" not in shown and len(shown) <= 160


def test_crops_and_rejects_take_turns(manifest, cropped):
    """One gallery would be empty until the other one is full."""
    with Gallery(manifest, JOB) as gallery:
        small = cropped.rejects[0]
        gallery.fill([place_of(cropped, 0), place_of(cropped, 1)])
        gallery.fill([refused(small, step=1)] * 6)
        until = time.monotonic() + 30
        while not gallery.look()["crops"][0]["image"]:
            assert time.monotonic() < until
            time.sleep(0.02)
        made = [tile["image"] for tile in gallery.look()["rejects"]]
    assert made.count(None) >= 3


def test_a_shard_that_is_gone_leaves_a_tile_without_an_image(manifest, tmp_path):
    """An old run whose bucket was emptied could not be opened."""
    (tmp_path / "gone.tar").write_bytes(make_tar([("0.jpg", b"x" * 99)]))
    listed = open_manifest([str(tmp_path / "gone.tar")], RangeReader())
    (tmp_path / "gone.tar").unlink()
    with Gallery(listed, JOB) as gallery:
        gallery.fill([Place(shard=0, offset=0)])
        assert looked_at(gallery)["crops"][0]["image"] is None


def test_a_mosaic_holds_every_view():
    """A view that is left out is one that nobody can judge."""
    groups = [np.full((2, 32, 32, 3), 200, np.uint8), np.full((3, 16, 16, 3), 90, np.uint8)]
    made = mosaic(groups)
    assert made.shape == (96, 288, 3)
    assert (made == 200).sum() == 2 * 96 * 96 * 3 and (made == 90).sum() == 3 * 48 * 48 * 3
