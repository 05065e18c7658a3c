"""Reader on Ray: the memory that it shares, and errors at its start."""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import ray

from cluster.driver.ray_session import ray_session
from cluster.ray_access import TOKEN
from cluster.readers.reader_actor import Reader
from shards.crops.sample_cropper import CropJob
from shards.errors import ConfigError
from shards.samples.admission_config import AdmissionConfig
from shards.samples.subset import build_subset
from tests.cluster.marked import MarkedShards

pytestmark = pytest.mark.ray


@ray.remote(num_cpus=0)
def describe_subset(job: CropJob) -> dict[str, Any]:
    """Return how the subset list of a job lies in the memory of this process."""
    assert job.subset is not None
    pairs = job.subset.pairs
    return {"owns": pairs.flags.owndata, "writes": pairs.flags.writeable, "length": len(pairs)}


@pytest.mark.slow
def test_a_subset_list_is_shared_by_the_readers_of_a_node(one_ray: None, tmp_path: Path) -> None:
    """A list of a billion samples has 16 GB: a copy in every reader would fill any machine."""
    shards = MarkedShards(tmp_path / "shards", 1, {})
    subset = build_subset("uid", np.arange(200_000, dtype=np.uint64).reshape(-1, 2))
    job = ray.put(shards.job(subset=subset))
    found = ray.get(describe_subset.remote(job), timeout=50)
    assert found == {"owns": False, "writes": False, "length": 100_000}


def keep(metadata: object, image: object) -> bool:
    return True


@pytest.mark.slow
def test_a_predicate_that_is_missing_on_a_node_fails_at_the_start(
    one_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers would die repeatedly, and the user would not learn why."""
    here = ModuleType("known_to_the_trainer_alone")
    here.keep = keep  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, here.__name__, here)
    shards = MarkedShards(tmp_path / "shards", 1, {})
    job = shards.job(admission=AdmissionConfig(predicate=f"{here.__name__}:keep"))
    reader = Reader.remote("r", "nobody", job)
    with pytest.raises(ray.exceptions.RayTaskError) as error:
        ray.get(reader.start.remote(), timeout=50)
    assert isinstance(error.value.cause, ConfigError)
    assert "known_to_the_trainer_alone" in str(error.value.cause)
    assert "is on PYTHONPATH, on every machine" in str(error.value.cause)
    ray.kill(reader)


def test_an_address_without_a_cluster_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The user would see a stack of gRPC."""
    monkeypatch.setenv(TOKEN, "of a cluster")
    with (
        pytest.raises(
            ConfigError, match=r"no Ray cluster answers at 'nonsense://x'.*--cluster local"
        ),
        ray_session("nonsense://x", 1, 1 << 20),
    ):
        pass
