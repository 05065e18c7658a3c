"""Throughput of readers and trainers, measured on nodes of a run before it begins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from cluster.protocol.messages import Role
from cluster.protocol.node_pools import Pool
from shards.crops.chunk_cropper import lower_thread_priority
from shards.crops.sample_cropper import CropJob, SampleCropper
from shards.errors import ConfigError
from shards.records import Chunk, Sample, ShardInfo
from shards.stores.range_reader import RangeReader
from shards.tars.chunk_reader import read_chunk

# A few seconds on the slowest core; the first images of a chunk stand for the others.
_MAX_SAMPLES = 128
# A node may have to be launched first.
_MAX_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class DecodeRates:
    """Images per second that one reader crops, one reader verifies, and one trainer crops."""

    cropping: float
    verifying: float
    trainer: float

    def by_readers(self, num_readers: int) -> float:
        """Return the rate at which images reach trainers if readers crop."""
        return num_readers * self.cropping

    def by_trainers(self, num_readers: int, num_trainers: int) -> float:
        """Return that rate if readers only verify and trainers crop."""
        return min(num_readers * self.verifying, num_trainers * self.trainer)


def measure_rates(
    job: CropJob,
    shard: ShardInfo,
    chunk: Chunk,
    pools: Mapping[Role, Sequence[Pool]],
    trainer_options: Mapping[str, Any],
) -> DecodeRates:
    """Measure one node of each kind, on the first samples of a chunk, whatever the subset.

    Needs a connection to Ray. Raises ConfigError, ShardUnreadable.
    """
    jobs = (replace(job, subset=None), replace(job, subset=None, only_verify=True))
    reader = _of_reader.options(num_cpus=1, **pools["reader"][0].options())
    rates, samples = reader.remote(jobs, shard, chunk)
    cropping, verifying = _answer(rates)
    trainer = _of_trainer.options(**trainer_options, **pools["trainer"][0].options())
    return DecodeRates(cropping, verifying, _answer(trainer.remote(jobs[0], samples)))


def _answer(ref: Any) -> Any:
    try:
        return ray.get(ref, timeout=_MAX_SECONDS)
    except RayTaskError as error:
        raise error.cause from error
    except (RayError, GetTimeoutError) as error:
        raise ConfigError(
            f"--decode auto could not measure on a node ({type(error).__name__}); give --decode "
            "readers, or trainers"
        ) from error


# Priorities of their threads end with their processes.
@ray.remote(max_retries=0, max_calls=1, num_returns=2)
def _of_reader(
    jobs: Sequence[CropJob], shard: ShardInfo, chunk: Chunk
) -> tuple[list[float], list[Sample]]:
    """Return the rate of one core of this node for each job, and the samples."""
    lower_thread_priority()
    found = read_chunk(RangeReader(jobs[0].sources), shard, chunk).found
    samples = [sample for sample in found if isinstance(sample, Sample)][:_MAX_SAMPLES]
    return [_rate(SampleCropper(job), samples) for job in jobs], samples


@ray.remote(max_retries=0, max_calls=1)
def _of_trainer(job: CropJob, samples: Sequence[Sample]) -> float:
    """Return the rate of one thread of this node. It may have no right to read the shards."""
    lower_thread_priority()
    return _rate(SampleCropper(job), samples)


def _rate(cropper: SampleCropper, samples: Sequence[Sample]) -> float:
    cropper.try_out()  # pays the costs of the first call
    began = perf_counter()
    cropper.crop(samples, 0)
    return len(samples) / (perf_counter() - began)
