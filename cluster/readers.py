"""Readers as Ray actors: chunks in, crops out, on any node of the cluster.

A reader holds nothing that cannot be lost. It is made with `max_restarts=0`: whoever feeds from
readers (`feed`) notices a death and decides what to do about it.
"""

import os

import ray

from shards.chunks import ChunkCropper, CropJob
from shards.records import ChunkCrops, ShardInfo, Turn
from shards.sources import RangeReader


@ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)
class Reader:
    """One process that crops chunks, one at a time, on one core."""

    def __init__(self, job: CropJob) -> None:
        self._cropper = ChunkCropper(job, RangeReader())

    def crop(self, shard: ShardInfo, turn: Turn) -> ChunkCrops:
        """See `ChunkCropper.crop`."""
        return self._cropper.crop(shard, turn)

    def pid(self) -> int:
        """The process number of this reader."""
        return os.getpid()
