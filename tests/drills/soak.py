"""Soak: breaks everything repeatedly, in an order fixed by a seed, then checks every step.

python -m tests.drills.soak --minutes 5 --seed 0        (`make soak MINUTES=5`)

Faults of the cluster come one or two at a time. Between them a fault of `hard_ends` ends the
command, which is then given again; `--faults` names their groups. Where the system allows it, the
run folder is on a small disk of its own, which can be filled.
"""

import argparse
import math
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from cluster.ray_access import environment
from cluster.ray_internals import RayNode
from tests.drills import jumping_clock, small_disk
from tests.drills.cluster_runs import actors, check_steps, endless, on_cluster, stop
from tests.drills.hard_ends import HardEnds, Starts, fitting
from tests.drills.processes import Run, asked, started
from tests.ray_clusters import RayCluster, ray_cluster
from tests.tinyrun import make_shards

CONFIG = endless(save_every=100)
NUM_READERS, NUM_TRAINERS = 2, 2
FAULTS = ("signals", "kills", "clocks", "damage", "disks")
_SECONDS_TO_A_HARD_END = 40.0
_SECONDS_TO_A_NEW_NODE = 90.0
_RESTART = "restart head"
_DISK_SIZE = "256m"  # logs of an hour, twice


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
        """Wait until all actors are back.

        A head that restarts while a worker starts leaves a core of that node to nobody (Ray 2.60).
        An actor that finds no core is a demand, for which an autoscaler launches a node.
        """
        new_node_at = time.monotonic() + _SECONDS_TO_A_NEW_NODE if self.done[_RESTART] else math.inf

        def counts() -> tuple[float, float]:
            return self.run.metric("world_size"), self.run.metric("actors", role="reader")

        def are_back() -> bool:
            nonlocal new_node_at
            if time.monotonic() > new_node_at:
                new_node_at = math.inf
                trainers, _ = counts()
                self.cluster.add("readers" if trainers == NUM_TRAINERS else "trainers", num_cpus=2)
            return counts() == (NUM_TRAINERS, NUM_READERS)

        try:
            self.run.wait_for(are_back, "all actors")
        except AssertionError as error:
            status = asked("status", self.run.out)
            nodes = {node.node_id[:8]: self.cluster.pool_of(node) for node in self.cluster.nodes()}
            error.add_note(f"{counts()} of {self.done}; {nodes}\n{status.stdout}{status.stderr}")
            raise

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


def soak(
    minutes: float,
    seed: int,
    folder: Path,
    faults: tuple[str, ...] = FAULTS,
    disk: Path | None = None,
) -> str:
    """Break a run for so long, stop it, and check every step. Return a summary.

    `disk` is a small disk for the run folder, which is filled at times.
    """
    shards, out = make_shards(folder / "shards", num=230), (disk or folder) / "run"
    clock = folder / "clock"
    jumping_clock.jump(clock, 0.0)
    options = ("--readers", NUM_READERS, "--trainers", NUM_TRAINERS)
    rng = random.Random(seed)
    with environment({jumping_clock.PLACE: str(clock)}), ray_cluster(persistent=True) as cluster:
        cluster.add("readers", num_cpus=2)
        cluster.add("trainers", num_cpus=2)
        run_on = partial(on_cluster, cluster.address, program=jumping_clock.PROGRAM)
        starts = Starts(
            lambda: run_on(CONFIG, shards, out, *options),
            lambda: started(CONFIG, shards, out, "--cluster", "local", *options),
        )
        with starts:
            ends = HardEnds(
                starts, out, rng, faults, save_every=CONFIG.save_every, clock=clock, disk=disk
            )
            chaos = Chaos(cluster, ends.run, rng)
            deadline = time.monotonic() + 60 * minutes
            while seconds := fitting(_SECONDS_TO_A_HARD_END, deadline):
                chaos.break_for(seconds)
                chaos.settle()
                ends.next()
                chaos.run = ends.run
            chaos.settle()
            counts = {
                name: chaos.run.metric(f"{name}_total")
                for name in ("readers_lost", "trainers_lost", "generations", "recoveries")
            }
            trained = chaos.run.metric("samples_total", stage="trained")
            term = chaos.run.metric("control_term")
            stop(chaos.run)
    num = check_steps(CONFIG, shards, out)
    assert trained >= num * CONFIG.stream.batch_size * 0.9, "totals of earlier starts are lost"
    done = ", ".join(
        f"{number} x {name}" for name, number in sorted((chaos.done + ends.done).items())
    )
    counted = ", ".join(f"{name} {value:.0f}" for name, value in counts.items())
    return (
        f"seed {seed}: {done}; {starts.number} starts, {num} steps, each once, on its own batch; "
        f"{counted}, term {term:.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", nargs="*", default=FAULTS, choices=FAULTS)
    given = parser.parse_args()
    if small_disk.PLACE not in os.environ and small_disk.is_possible():
        _start_on_a_small_disk()
    disk = os.environ.get(small_disk.PLACE)
    with tempfile.TemporaryDirectory(prefix="soak") as folder:
        faults = tuple(given.faults)
        print(soak(given.minutes, given.seed, Path(folder), faults, Path(disk) if disk else None))


def _start_on_a_small_disk() -> None:
    """Become the same program, with a mount that nobody else sees."""
    os.environ[small_disk.PLACE] = tempfile.mkdtemp(prefix="soak-disk")
    command = (sys.executable, "-m", "tests.drills.soak", *sys.argv[1:])
    os.execvp(*small_disk.with_disk(_DISK_SIZE, *command))


if __name__ == "__main__":
    main()
