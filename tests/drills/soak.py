"""Soak: breaks everything repeatedly, in an order fixed by a seed, then checks every step.

python -m tests.drills.soak --minutes 5 --seed 0        (`make soak MINUTES=5`)
"""

import argparse
import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil

from cluster.ray_internals import RayNode
from tests.drills.cluster_runs import actors, check_steps, endless, on_cluster, stop
from tests.drills.processes import Run
from tests.ray_clusters import RayCluster, ray_cluster
from tests.tinyrun import make_shards

CONFIG = endless(save_every=100)
NUM_READERS, NUM_TRAINERS = 2, 2


class Chaos:
    """Faults of a cluster and of a run on it."""

    def __init__(self, cluster: RayCluster, run: Run, rng: random.Random) -> None:
        self.cluster, self.run, self._rng = cluster, run, rng
        self.done: Counter[str] = Counter()
        self._asleep: list[tuple[float, psutil.Process]] = []
        self._cut_off: list[tuple[float, RayNode]] = []
        self._replaced: list[RayNode] = []

    def break_for(self, seconds: float) -> None:
        """Inject one or two faults at a time; after each, the run must continue.

        No fault is repeated before all others came.
        """
        deeds: tuple[Callable[[], None], ...] = (
            self._kill_reader,
            self._hang_reader,
            self._kill_trainer,
            self._hang_trainer,
            self._lose_node,
            self._take_node,
            self._cut_off_node,
            self._kill_control,
            self._restart_head,
        )
        deadline = time.monotonic() + seconds
        deck: list[Callable[[], None]] = []
        while time.monotonic() < deadline:
            for _ in range(self._rng.choice((1, 1, 2))):
                deck = deck or self._rng.sample(deeds, len(deeds))
                deed = deck.pop()
                deed()
                self.done[deed.__name__.strip("_").replace("_", " ")] += 1
            self._wake()
            self.run.wait_for_step(self.run.last_step + self._rng.randint(5, 20))
        self._wake(all_of_them=True)

    def settle(self) -> None:
        """Wait until all actors are back."""
        self.run.wait_for(
            lambda: (
                self.run.metric("world_size") == NUM_TRAINERS
                and self.run.metric("actors", role="reader") == NUM_READERS
            ),
            "all actors",
        )

    def _pick(self, kind: str) -> list[psutil.Process]:
        found = actors(self.cluster, kind)
        return [self._rng.choice(sorted(found, key=lambda one: one.pid))] if found else []

    def _kill_reader(self) -> None:
        for process in self._pick("Reader"):
            _kill(process)

    def _hang_reader(self) -> None:
        self._hang("Reader")

    def _kill_trainer(self) -> None:
        for process in self._pick("Trainer"):
            _kill(process)

    def _hang_trainer(self) -> None:
        self._hang("Trainer")

    def _hang(self, kind: str) -> None:
        """Suspend a process, for long enough to be given up, or not."""
        for process in self._pick(kind):
            try:
                process.suspend()
            except psutil.NoSuchProcess:
                return
            self._asleep.append((time.monotonic() + self._rng.uniform(1, 15), process))

    def _wake(self, *, all_of_them: bool = False) -> None:
        now = math.inf if all_of_them else time.monotonic()
        for at, process in self._asleep:
            if at <= now:
                _wake(process)
        self._asleep = [(at, process) for at, process in self._asleep if at > now]
        for at, node in self._cut_off:
            if at <= now:
                self.cluster.come_back(node)
        self._cut_off = [(at, node) for at, node in self._cut_off if at > now]

    def _lose_node(self) -> None:
        """Lose a node; another one of its pool replaces it."""
        if node := self._pick_node():
            self._replace(node)
            self.cluster.lose(node)

    def _take_node(self) -> None:
        """Preempt a node, with a notice."""
        if node := self._pick_node():
            self._replace(node)
            self.cluster.drain(node, 60)

    def _cut_off_node(self) -> None:
        if node := self._pick_node():
            self._replace(node)
            self.cluster.cut_off(node)
            self._cut_off.append((time.monotonic() + self._rng.uniform(2, 15), node))

    def _pick_node(self) -> RayNode | None:
        """Return a node that was not replaced yet."""
        fit = [node for node in self.cluster.nodes() if node not in self._replaced]
        return self._rng.choice(sorted(fit, key=lambda node: node.node_id)) if fit else None

    def _replace(self, node: RayNode) -> None:
        self._replaced.append(node)
        self.cluster.add(self.cluster.pool_of(node), num_cpus=2)

    def _kill_control(self) -> None:
        for process in self._pick("Control"):
            _kill(process)

    def _restart_head(self) -> None:
        self.cluster.kill_gcs()
        self.cluster.start_gcs()


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _wake(process: psutil.Process) -> None:
    try:
        process.resume()
    except psutil.NoSuchProcess:
        return


def soak(minutes: float, seed: int, folder: Path) -> str:
    """Break a run for so long, stop it, and check every step. Return a summary."""
    shards, out = make_shards(folder / "shards", num=230), folder / "run"
    with ray_cluster(persistent=True) as cluster:
        cluster.add("readers", num_cpus=2)
        cluster.add("trainers", num_cpus=2)
        options = ("--readers", NUM_READERS, "--trainers", NUM_TRAINERS)
        with on_cluster(cluster.address, CONFIG, shards, out, *options) as run:
            run.wait_for_step(10)
            chaos = Chaos(cluster, run, random.Random(seed))
            chaos.break_for(60 * minutes)
            chaos.settle()
            counts = {
                name: run.metric(f"{name}_total")
                for name in ("readers_lost", "trainers_lost", "generations", "recoveries")
            }
            term = run.metric("control_term")
            stop(run)
    num = check_steps(CONFIG, shards, out)
    done = ", ".join(f"{number} x {name}" for name, number in sorted(chaos.done.items()))
    counted = ", ".join(f"{name} {value:.0f}" for name, value in counts.items())
    return (
        f"seed {seed}: {done}; {num} steps, each once, on its own batch; {counted}, term {term:.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        print(soak(given.minutes, given.seed, Path(folder)))


if __name__ == "__main__":
    main()
