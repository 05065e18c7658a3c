"""A reader on Ray does what the same code does in this process."""

import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import ray

from cluster.fixed_readers import FixedReader as Reader
from cluster.fixed_readers import RayReaders
from shards.admission import AdmissionConfig
from shards.chunks import CropJob
from shards.errors import ConfigError, ShardUnreadable
from shards.stream import ThreadReaders
from shards.subset import build_subset
from tests.cluster.marked import MarkedShards

pytestmark = pytest.mark.ray


def test_a_reader_is_a_process_that_crops(one_ray: None, tmp_path: Path) -> None:
    """Pixels, offsets and errors are those of the same call here, read ahead or not."""
    shards = MarkedShards(tmp_path / "shards", 2, {})
    shard = shards.manifest.shards[1]
    reader = Reader.remote(shards.job())
    assert ray.get(reader.start.remote(), timeout=50) != os.getpid()
    crops = []
    with ThreadReaders(shards.manifest, shards.job(), 1) as threads:
        for epoch, ticket in ((0, 0), (3, 7)):
            turn = shards.turn("plain1", epoch)
            if ticket:
                ray.get(reader.fetch.remote(ticket, shard, turn.chunk), timeout=50)
            theirs = ray.get(reader.crop.remote(shard, turn, ticket), timeout=50)
            ours = threads.submit(turn).result()
            assert np.array_equal(theirs.crops[0], ours.crops[0])
            assert np.array_equal(theirs.offsets, ours.offsets)
            crops.append(theirs.crops[0])
    assert not np.array_equal(*crops)
    content = shards.path("plain1").read_bytes()
    ray.get(reader.fetch.remote(8, shard, turn.chunk), timeout=50)
    ray.get(reader.fetch.remote(6, shard, turn.chunk), timeout=50)  # too late: nobody will ask
    time.sleep(0.5)
    shards.path("plain1").unlink()
    assert np.array_equal(
        ray.get(reader.crop.remote(shard, turn, 8), timeout=50).crops[0], crops[1]
    )
    with pytest.raises(ShardUnreadable, match="is gone"):
        ray.get(reader.crop.remote(shard, turn, 6), timeout=50)
    ray.get(reader.fetch.remote(9, shard, turn.chunk), timeout=50)
    time.sleep(0.5)
    shards.path("plain1").write_bytes(content)
    with pytest.raises(ShardUnreadable, match="is gone"):  # as it was when it was read
        ray.get(reader.crop.remote(shard, turn, 9), timeout=50)
    ray.kill(reader)


@ray.remote(num_cpus=0)
def look(job: CropJob) -> dict[str, Any]:
    """How the list of a job lies in the memory of a process that was given the job."""
    assert job.subset is not None
    pairs = job.subset.pairs
    return {"owns": pairs.flags.owndata, "writes": pairs.flags.writeable, "length": len(pairs)}


def test_a_subset_list_is_shared_by_the_readers_of_a_node(one_ray: None, tmp_path: Path) -> None:
    """A list of a billion has 16 GB: a copy in every reader would fill any machine."""
    shards = MarkedShards(tmp_path / "shards", 1, {})
    subset = build_subset("uid", np.arange(200_000, dtype=np.uint64).reshape(-1, 2))
    job = ray.put(shards.job(subset=subset))
    found = ray.get(look.remote(job), timeout=50)
    assert found == {"owns": False, "writes": False, "length": 100_000}


def keep(metadata: object, picture: object) -> bool:
    return True


def test_a_predicate_that_a_node_does_not_have_ends_the_run_before_it_begins(
    one_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the user's to mend; readers that die again and again would say nothing of it."""
    here = ModuleType("known_to_the_trainer_alone")
    here.keep = keep  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, here.__name__, here)
    shards = MarkedShards(tmp_path / "shards", 1, {})
    job = shards.job(admission=AdmissionConfig(predicate=f"{here.__name__}:keep"))
    with (
        RayReaders(shards.manifest, job, 1) as feed,
        pytest.raises(ConfigError, match=r"known_to_the_trainer_alone.* on PYTHONPATH, wherever"),
    ):
        feed.submit(shards.turn("plain0")).result(50)
