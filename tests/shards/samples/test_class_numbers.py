"""Class numbers of shards that were packed apart."""

from dataclasses import replace

from shards.crops.chunk_cropper import ChunkCropper
from shards.inspect.class_names import ClassNames
from shards.records import Chunk, Turn
from shards.stores.range_reader import RangeReader
from shards.stream.manifest_listing import open_manifest
from tests.noise import noise
from tests.shards.samples.test_labels import JOB
from tests.tars import make_tar


def test_a_number_means_one_class_in_all_shards(tmp_path):
    """Two packs number their classes each for itself: cats would be trained as dogs."""
    for name, classes in (("a", "cat\ndog\n"), ("b", "dog\nemu\ncat\n"), ("c", None)):
        (tmp_path / name).mkdir()
        members = [
            (f"{i}.{end}", noise(24, 24, seed=i) if end == "png" else b"%d" % i)
            for i in range(3)
            for end in ("png", "cls")
        ]
        (tmp_path / name / "0.tar").write_bytes(make_tar(members))
        if classes is not None:
            (tmp_path / name / "classes.txt").write_text(classes)
    reader = RangeReader()
    manifest = open_manifest([f"{tmp_path}/{name}" for name in "abc"], reader)
    names = ClassNames(manifest.shards, reader)
    numbers = names.numbers()
    assert numbers is not None and numbers.names == ("cat", "dog", "emu")
    assert names.unnamed == [f"{tmp_path}/c"]
    cropper = ChunkCropper(replace(JOB, class_numbers=numbers), reader)
    found = [
        cropper.crop(shard, Turn(Chunk(row, 0, shard.num_bytes), 0)).labels.tolist()
        for row, shard in enumerate(manifest.shards)
    ]
    assert found == [[0, 1, 2], [1, 2, 0], [0, 1, 2]]
