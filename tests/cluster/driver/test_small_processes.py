"""Processes of a run that do not train: they are small, and start without torch."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.driver.driver import run_cluster
from cluster.protocol.actor_rpc import CONTROL
from shards.crops.native import NativeEngine
from shards.records import Sample
from shards.samples.synthetic_images import encode_jpeg, make_image
from tests.cluster.counting import Kept
from tests.cluster.driver.test_driver import Case
from tests.cluster.marked import RECIPE, MarkedShards

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(240)]

MAX_BYTES = 250 << 20
TRAINING = {"torch", "timm", "torchvision", "faiss", "plotly", "tyro", "rich", "aiohttp"}


def look(name: str) -> tuple[set[str], int]:
    """Return the libraries in an actor, and its resident memory."""

    def inside(_: object) -> tuple[set[str], int]:  # pickled by value: the actor has no tests
        import sys

        from cluster.protocol.process_memory import resident_bytes

        return {module.partition(".")[0] for module in sys.modules}, resident_bytes()

    found: tuple[set[str], int] = ray.get(
        ray.get_actor(name).__ray_call__.remote(inside), timeout=60
    )
    return found


def isolated(name: str, sample: Sample) -> tuple[int, int]:
    """Return the crops of one sample in the isolated process of a reader, and its memory."""

    def inside(reader: Any, sample: Sample) -> tuple[int, int]:
        import psutil

        from shards.crops.isolated_process import IsolatedProcess

        with IsolatedProcess(reader._job) as process:
            rows = len(process.crop([sample], 0).crops[0])
            family = psutil.Process().children(recursive=True)
            return rows, max(one.memory_info().rss for one in family)

    found: tuple[int, int] = ray.get(
        ray.get_actor(name).__ray_call__.remote(inside, sample), timeout=60
    )
    return found


def test_readers_and_control_are_small(one_ray: None, tmp_path: Path) -> None:
    """With torch a reader takes a gigabyte: a node of 16 cores would need 16 GB for nothing."""
    shards = MarkedShards(tmp_path / "shards", 4, {})
    job = shards.job(build_engine=partial(NativeEngine, RECIPE))
    kept, found = Kept(), {}

    def stop() -> bool:
        """Look at the actors once crops went through all of them."""
        if kept.records and kept.reports and not found:
            names = [one.name for one in kept.reports[-1].status.actors if one.role == "reader"]
            found.update({name: look(name) for name in (CONTROL, *names)})
            image = encode_jpeg(make_image(0, 0, 0, 64))
            found["isolated"] = isolated(names[0], Sample(0, 0, "a", {"jpg": image}))
        return bool(found)

    run_cluster(Case(shards, tmp_path).spec(1000, job=job), kept, stop)
    rows, child_bytes = found.pop("isolated")
    assert rows == 1 and child_bytes < MAX_BYTES
    assert len(found) == 2
    for libraries, num_bytes in found.values():
        assert libraries & TRAINING == set()
        assert "numpy" in libraries and num_bytes < MAX_BYTES
