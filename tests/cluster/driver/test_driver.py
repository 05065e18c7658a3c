"""Driver and Control on a real Ray: each step once, whatever dies, and a reason to end."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import ray

from cluster.control.control_spec import ControlSpec
from cluster.driver.driver import RunSpec, run_cluster
from cluster.errors import RestartLoop
from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.metrics_server import MetricsServer
from cluster.protocol.actor_rpc import CONTROL, ActorClient
from cluster.protocol.node_pools import Pool
from cluster.protocol.run_status import Status
from cluster.trainers.batch_feed import FeedConfig
from cluster.trainers.elastic_training import TrainerConfig
from shards.errors import BudgetExceeded, ConfigError
from shards.samples.admission_config import AdmissionConfig
from shards.stream.batch_stream import BatchStream, build_order
from shards.stream.stream_config import StreamConfig
from shards.stream.thread_readers import ThreadReaders
from streamssl.monitoring.catalogue import CATALOGUE
from tests.cluster.counting import CountingLearner, Kept, first_state
from tests.cluster.marked import RECIPE, MarkedShards, build_none
from tests.cluster.monitoring.counted import fetch, scrape, some_ports

# Each actor imports torch, which takes many seconds on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(240)]

STREAM = StreamConfig(batch_size=6, chunk_bytes=1 << 14, chunks_per_block=2)


@dataclass
class Case:
    """A small run with one reader and one trainer."""

    shards: MarkedShards
    out: Path

    def spec(self, num_steps: int = 12, seconds: float = 0.0, **changes: Any) -> RunSpec:
        job = changes.pop("job", self.shards.job())
        folder = self.out / "run"
        folder.mkdir(parents=True, exist_ok=True)
        control = ControlSpec(
            folder=folder / ".control",
            journal=folder / "journal.jsonl",
            manifest=self.shards.manifest,
            order=build_order(self.shards.manifest, STREAM, 0),
            stream=STREAM,
            admission=job.admission,
            num_steps=num_steps,
            readers=(1, 1),
            trainers=1,
            pools={"reader": (Pool(),), "trainer": (Pool(),)},
        )
        fields: dict[str, Any] = {
            "build": partial(CountingLearner, seconds),
            "trainer": TrainerConfig(num_steps=num_steps, save_every=5, num_threads=1),
            "feed": FeedConfig(),
            "state": first_state(),
            "entries": (),
            "trainer_options": {"num_cpus": 1},
        }
        return RunSpec(control=control, job=job, **fields | changes)

    def digests(self, num: int) -> list[str]:
        order = build_order(self.shards.manifest, STREAM, 0)
        job = self.shards.job()
        with ThreadReaders(self.shards.manifest, job, 1) as threads:
            stream = BatchStream(order, STREAM, job.admission, threads.submit)
            return [batch.digest for batch in islice(stream, num)]


@pytest.fixture
def case(one_ray: None, tmp_path: Path) -> Case:
    return Case(MarkedShards(tmp_path / "shards", 4, {}), tmp_path)


def check(case: Case, kept: Kept, first: int, last: int) -> None:
    assert [record.step for record in kept.records] == list(range(first, last + 1))
    found = [record.digest for record in kept.records]
    assert found == case.digests(last)[first - 1 :]


def never() -> bool:
    return False


def test_a_run_reaches_its_last_step_and_resumes_from_its_last_state(case: Case) -> None:
    """A step that is lost or repeated would not be seen in the loss; an actor that stays costs."""
    kept = Kept()
    run_cluster(case.spec(12), kept, never)
    check(case, kept, 1, 12)
    assert [state.step for state in kept.states][-1] == 12
    assert {state.step for state in kept.states} <= {5, 10, 12}
    assert kept.term == 1
    assert not any(
        one.pages for report in kept.reports for one in (report.status, *report.status.actors)
    )
    assert (case.out / "run" / "journal.jsonl").exists()
    with pytest.raises(ValueError, match="control"):
        ray.get_actor(CONTROL)
    state, more = kept.states[-1], Kept()
    spec = replace(case.spec(16), state=state)
    run_cluster(spec, more, never)
    check(case, more, 13, 16)
    assert more.term == 2


class Targets:
    """Scrape targets that /sd of `server` lists for single processes."""

    def __init__(self, kept: Kept, server: MetricsServer, metrics: MetricsHub) -> None:
        self._kept, self._server, self._metrics = kept, server, metrics

    def find(self) -> dict[str, str]:
        """Return the address of the one process of each role."""
        if self._kept.reports:
            self._metrics.take_report(self._kept.reports[-1])
        _, *groups = json.loads(fetch(f"{self._server.page}sd"))
        assert all(group["labels"]["scope"] == "process" for group in groups)
        return {group["labels"]["role"]: group["targets"][0] for group in groups}

    def wait_for(self, *roles: str) -> Iterator[None]:
        while self.find().keys() != set(roles):
            yield


def test_status_and_pages_show_all_actors_and_a_stop_saves(case: Case) -> None:
    """Users without Prometheus would see nothing; counts of a process would be summed twice."""
    kept, metrics, pages, seen = Kept(), MetricsHub(CATALOGUE), {}, []
    spec = case.spec(10_000, seconds=0.05)
    spec = replace(spec, control=replace(spec.control, debug_ports=some_ports(8)))

    def watch(targets: Targets) -> Iterator[None]:
        yield from targets.wait_for("driver", "control", "reader", "trainer")
        # The page of Control has the counters of its newest report.
        while not kept.records or kept.records[-1].step < 10 or kept.reports[-1].status.world < 1:
            yield
        status: Status = ActorClient(CONTROL).call("status")
        seen.append(status)
        for role, address in targets.find().items():
            stacks = fetch(f"http://{address}/stacks").decode()
            pages[role] = stacks, scrape(f"http://{address}/metrics")
        os.kill(next(one.pid for one in status.actors if one.role == "reader"), signal.SIGKILL)
        yield from targets.wait_for("driver", "control", "trainer")
        yield from targets.wait_for("driver", "control", "reader", "trainer")
        pages["next"] = fetch(f"http://{targets.find()['reader']}/stacks").decode(), {}

    with MetricsServer(metrics) as server:
        watching = watch(Targets(kept, server, metrics))
        run_cluster(spec, kept, lambda: next(watching, True) is True)
        of_run = scrape(server.url)
    [status] = seen
    assert {actor.role for actor in status.actors} == {"reader", "trainer"}
    assert all(actor.pid > 0 and actor.pages for actor in status.actors)
    assert status.term == 1 and status.planned >= status.step >= 3 and status.world == 1
    assert any("generation" in decided.what for decided in status.decisions)
    assert kept.states[-1].step == kept.records[-1].step
    loops = {"driver": "in run_cluster", "control": "asyncio",
             "reader": "in _crop_all", "trainer": "in _take_part"}  # fmt: skip
    for role, loop in loops.items():
        stacks, found = pages[role]
        assert stacks.startswith(role) and loop in stacks, stacks
        assert found["process_resident_memory_bytes",] > 1e6
        ours = {name for name, *_ in found if name.startswith("streamssl_")}
        assert ours.isdisjoint(name for name, *_ in of_run)
    assert pages["reader"][1]["streamssl_process_samples_total", "cropped"] > 0
    assert pages["trainer"][1]["streamssl_process_train_step",] > 5
    assert pages["control"][1]["streamssl_process_generations_total",] == 1
    first, second = (pages[role][0].splitlines()[0] for role in ("reader", "next"))
    assert second.startswith("reader-") and second != first


def test_an_exceeded_budget_is_the_error_of_the_run(case: Case) -> None:
    """The user would see only that some actor died."""
    strict = AdmissionConfig(min_side=64, probation=5, max_reject_fraction=0.1)
    with pytest.raises(BudgetExceeded):
        run_cluster(case.spec(job=case.shards.job(admission=strict)), Kept(), never)


def test_readers_that_cannot_start_end_the_run_with_the_reason(case: Case) -> None:
    """The run would restart readers for ever."""
    job = replace(case.shards.job(), build_engine=partial(build_none, RECIPE))
    kept = Kept()
    with pytest.raises(
        RestartLoop, match=r"readers died before they did anything .*no such engine"
    ):
        run_cluster(case.spec(job=job), kept, never)
    assert not kept.begun


def test_a_learner_that_cannot_be_built_is_the_error_of_the_run(case: Case) -> None:
    """The user must fix a setting that works on no node."""
    spec = replace(case.spec(), build=refuse)
    with pytest.raises(ConfigError, match="no such learner"):
        run_cluster(spec, Kept(), never)


def refuse() -> CountingLearner:
    raise ConfigError("no such learner")
