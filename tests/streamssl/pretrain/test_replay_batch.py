"""A batch of a run is made again bit by bit from its folder, or refused with the reason."""

import json
import shutil

import numpy as np
import pytest

from shards.crops.chunk_cropper import ChunkCropper
from shards.errors import ConfigError, CursorMismatch, ManifestError, ShardChanged
from shards.records import Chunk, Turn
from shards.stores.range_reader import RangeReader
from streamssl.config.run_config import read_toml
from streamssl.errors import ReplayDiffers
from streamssl.pretrain.replay_batch import open_batch
from streamssl.runs.crop_job import crop_job
from streamssl.runs.run_data import DataConfig, open_data
from tests.tinyrun import make_shards, read_log, tiny_swav, train_here


def test_every_batch_is_made_again_bit_by_bit(finished_run, shards_folder):
    """A user would look at other crops than those of the step."""
    config = read_toml(finished_run / "config.toml")
    data = open_data(DataConfig(patterns=(str(shards_folder),)), RangeReader())
    cropper = ChunkCropper(crop_job(config, data), RangeReader())
    crops = {}
    for row, shard in enumerate(data.manifest.shards):
        result = cropper.crop(shard, Turn(Chunk(row, 0, shard.num_bytes), 0))
        for place, offset in enumerate(result.offsets[result.kept].tolist()):
            crops[row, offset] = [group[place] for group in result.crops]
    for fields in read_log(finished_run):
        batch = open_batch(finished_run, fields["step"], RangeReader())
        assert batch.digest == fields["digest"] and batch.cursor.block == fields["cursor"][0]
        for place, (row, offset) in enumerate(batch.ids.tolist()):
            for group, expected in zip(batch.crops, crops[row, offset], strict=True):
                assert np.array_equal(group[place], expected)
    # Signed addresses are not saved, so the user may name the shards again.
    named = DataConfig(patterns=(f"{shards_folder}/*.tar",))
    assert open_batch(finished_run, fields["step"], RangeReader(), named).digest == batch.digest


@pytest.mark.slow
def test_a_changed_mixture_is_replayed_with_its_weights(tmp_path):
    """The journal is part of the run: without it, batches would differ."""
    patterns = tuple(str(make_shards(tmp_path / name, num=60)) for name in "ab")
    for num_steps, weights in ((2, ("0.7", "0.3")), (4, ("1", "1"))):
        data = DataConfig(patterns=patterns, weights=weights)
        train_here(tiny_swav(num_steps=num_steps, save_every=2), data, tmp_path / "run")
    for fields in read_log(tmp_path / "run"):
        found = open_batch(tmp_path / "run", fields["step"], RangeReader())
        assert found.digest == fields["digest"]


def test_a_batch_that_cannot_be_replayed_is_refused(finished_run, tmp_path):
    """A wrong batch would be taken for the trained one."""
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    with pytest.raises(ConfigError, match=r"step 7 is not in .*, which has steps 1 to 6: name one"):
        open_batch(run, 7, RangeReader())
    other = DataConfig(patterns=(str(make_shards(tmp_path / "other", num=64, seed=5)),))
    with pytest.raises(CursorMismatch, match=r"journal\.jsonl"):
        open_batch(run, 2, RangeReader(), other)
    lines = [json.dumps(fields | {"digest": "x"}) for fields in read_log(run)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ReplayDiffers, match="step 2 was trained on batch x, but the order now"):
        open_batch(run, 2, RangeReader())
    old = [{k: v for k, v in fields.items() if k != "cursor"} for fields in read_log(finished_run)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, old)) + "\n")
    with pytest.raises(ConfigError, match="does not tell where step 1 ended; runs of this version"):
        open_batch(run, 2, RangeReader())
    (run / "manifest.parquet").write_bytes(b"junk")
    with pytest.raises(ManifestError, match="cannot be read as a manifest"):
        open_batch(run, 1, RangeReader())


def test_shards_that_changed_since_are_refused(shards_folder, tmp_path):
    """Other images under the same name are not those of the training."""
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(shards_folder, data)
    train_here(tiny_swav(num_steps=1), data, run)
    for shard in data.glob("*.tar"):
        shard.write_bytes(shard.read_bytes())
    with pytest.raises(ShardChanged, match="was written to since the shards were listed"):
        open_batch(run, 1, RangeReader())
