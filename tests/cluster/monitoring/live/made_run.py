"""A run without training: its hub is filled by formula, minutes of it in an instant."""

import math
import random
import time
from dataclasses import replace

from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.run_state import RunInfo
from cluster.protocol.driver_protocol import RunReport
from cluster.protocol.lease_counters import LeaseSnapshot
from cluster.protocol.run_status import ActorStatus, NodeStatus, Status, TimedEvent
from streamssl.monitoring.catalogue import CATALOGUE

NUM_STEPS, BATCH = 2000, 256
RUN = RunInfo(
    name="runs/made",
    method="swav",
    cluster="local",
    num_steps=NUM_STEPS,
    batch_size=BATCH,
    began=0.0,
    thresholds={
        "streamssl_loss": {"high": math.log(3000)},
        "streamssl_effective_rank": {"low": 3.0},
    },
)
LEASES = LeaseSnapshot(
    num_readers=6, num_waiting=2, num_running=6, num_held=30,
    held_bytes=10**8, deadline=30.0, oldest=(),
)  # fmt: skip


class MadeRun:
    """Two steps a second, six readers, two trainers. `hub` is as after `seconds` of them."""

    def __init__(self, seconds: int = 300, cluster: str = "local") -> None:
        self.hub = MetricsHub(CATALOGUE)
        self.began = time.time() - seconds
        self.hub.run = replace(RUN, began=self.began, cluster=cluster)
        self._random, self._cluster = random.Random(0), cluster
        self.step = 0
        for passed in range(1, seconds + 1):
            self.go_on()
            now = self.began + passed
            self.hub.add_to_history(now)

    def go_on(self, waiting: float = 0.02) -> None:
        """Add one second; `waiting` is the part of it spent waiting for images."""
        values, grown = self.hub.values, 1 - math.exp(-self.step / 400)
        self.step += 2
        noise = self._random.random()
        for stage, number in (("read", 560), ("cropped", 540), ("trained", 2 * BATCH)):
            values.count(("samples", stage), number)
        values.count(("rejects", "too_small"), 3)
        values.count(("rejects", "truncated"), 1)
        values.count(("data_wait_seconds",), waiting)
        for _ in range(2):
            values.observe("step_seconds", (1 - waiting) / 2)
        phases = {"input_wait": waiting, "forward_backward": 0.8 - waiting, "optimizer": 0.1}
        for phase, seconds in phases.items():
            values.count(("step_phase_seconds", phase), seconds)
        values.count(("reader_busy_seconds", "crop"), 3.0)
        values.count(("reader_busy_seconds", "read"), 0.4)
        values.count(("reader_blocked_seconds", "lease"), 0.7)
        values.set(
            {
                ("train_step",): self.step,
                ("loss",): 8.0 - 2.6 * grown + 0.03 * noise,
                ("learning_rate",): 0.6 * min(1.0, self.step / 100),
                ("prototype_usage_ratio",): 0.9 - 0.3 * grown,
                ("prototypes_dead_ratio",): 0.12 * grown,
                ("effective_rank",): 5 + 60 * grown,
                ("lead_seconds",): 4 + math.sin(self.step / 60),
            }
        )
        if self._cluster != "none":
            gauges = {
                (name, role): float(number)
                for name in ("actors", "actors_wanted")
                for role, number in (("reader", 6), ("trainer", 2))
            }
            self.hub.take_report(RunReport(counted=(), gauges=gauges, status=self._status()))

    def _status(self) -> Status:
        nodes = tuple(
            NodeStatus(node=f"{number}{'ab' * 10}", address=f"10.0.0.{number + 1}",
                       labels={"pool": "decode" if number else "train"}, num_readers=2,
                       num_trainers=0 if number else 2, cores=4.0,
                       leaves_in=80.0 if number == 2 else None, is_head=not number)
            for number in range(3)
        )  # fmt: skip
        readers = tuple(
            ActorStatus(name=f"reader-1.{number}", role="reader", node=nodes[number // 2].node,
                        pid=1000 + number, phase="works")
            for number in range(6)
        )  # fmt: skip
        trainers = tuple(
            ActorStatus(name=f"trainer-1.{7 + rank}", role="trainer", node=nodes[0].node,
                        pid=2000 + rank, phase="running", step=self.step, rank=rank, doing="step",
                        pages=f"10.0.0.1:950{rank}")
            for rank in range(2)
        )  # fmt: skip
        return Status(
            term=1, seconds=self.step / 2, step=self.step, num_steps=NUM_STEPS,
            planned=self.step + 8, generation="1", world=2, step_seconds=0.49,
            wanted={"reader": 6, "trainer": 2}, scaling="6 readers: enough", rates={},
            nodes=nodes, actors=readers + trainers, leases=LEASES,
            decisions=(TimedEvent(seconds=self.step / 4, what="6 readers, not 4", why="starved"),),
            recoveries=(TimedEvent(seconds=5.0, what="1.8 s", why="trainer-1.9 died"),),
            readings={},
        )  # fmt: skip
