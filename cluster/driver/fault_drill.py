"""Fault drill: breaks a run on purpose, and observes it until it has recovered.

A task of Ray on the node of the target sends the signal; the run itself knows nothing of drills.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.protocol.run_status import Status
from shards.errors import ConfigError

Fault = Literal["kill-reader", "kill-trainer", "kill-node", "hang"]

_POLL_SECONDS = 0.1
# Counters of Control whose increase the report shows.
_COUNTERS: Final = (
    "readers_lost",
    "trainers_lost",
    "leases_reissued",
    "results_refused",
    "beats_refused",
    "generations",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillTarget:
    """A process, or with pid 0 a whole node; `names` are the actors that end with it."""

    names: tuple[str, ...]
    node: str
    pid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillReport:
    """Result of a drill. Times are seconds since the fault, None if it did not happen.

    `noticed`: Control gave up the target. `recovered`: the run had as many actors and ranks as
    before. `continued`: a step was finished after the notice. `back_from`: the newest step before
    the fault, if the run had to continue from an earlier one. `counts`: increases of Control's
    counters.
    """

    target: DrillTarget
    noticed: float | None
    recovered: float | None
    continued: float | None
    back_from: int | None
    first_step: int
    last_step: int
    counts: dict[str, int]


def choose_target(status: Status, fault: Fault, name: str = "") -> DrillTarget:
    """Return the named target, or the first that fits. Raises ConfigError."""
    if fault == "kill-node":
        return _choose_node(status, name)
    role = {"kill-reader": "reader", "kill-trainer": "trainer", "hang": ""}[fault]
    fit = [one for one in status.actors if one.role == role or not role]
    named = [one for one in fit if one.name == name or not name]
    if not named:
        known = ", ".join(one.name for one in fit) or "none"
        raise ConfigError(f"no {role or 'actor'} {name!r} in this run; there are: {known}")
    return DrillTarget(names=(named[0].name,), node=named[0].node, pid=named[0].pid)


def _choose_node(status: Status, name: str) -> DrillTarget:
    """Return the node with the most actors, without the head: its loss would end the run."""
    heads = {node.node for node in status.nodes if node.is_head}
    found: dict[str, list[str]] = {}
    for one in status.actors:
        if one.node not in heads:
            found.setdefault(one.node, []).append(one.name)
    fit = [node for node in found if node.startswith(name)]
    if not fit:
        known = ", ".join(sorted(found)) or "none"
        raise ConfigError(
            f"no node {name!r} that can be spared; besides the head, actors are on: {known}"
        )
    node = max(fit, key=lambda node: (len(found[node]), node))
    return DrillTarget(names=tuple(found[node]), node=node)


def inject(target: DrillTarget, fault: Fault) -> Callable[[], None]:
    """Break the target. Return the function that ends a hang."""
    if fault == "kill-node":
        _run_on(target.node, _kill_raylet)
    elif fault == "hang":
        _run_on(target.node, _send, target.pid, int(signal.SIGSTOP))
        return lambda: _run_on(target.node, _send, target.pid, int(signal.SIGCONT))
    else:
        _run_on(target.node, _send, target.pid, int(signal.SIGKILL))
    return lambda: None


def drill(
    read_status: Callable[[], Status | None],
    fault: Fault,
    name: str = "",
    *,
    hang_seconds: float = 30.0,
    patience_seconds: float = 180.0,
) -> Iterator[str | DrillReport]:
    """Break a run and observe it; yield a sentence for each change, and the report at the end.

    `read_status` returns None while Control does not answer.
    """
    before = read_status()
    if before is None:
        raise ConfigError("the run's Control does not answer; check it with `streamssl status`")
    target = choose_target(before, fault, name)
    yield f"{fault}: {', '.join(target.names)} on node {target.node[-8:]}, at step {before.step}"
    _run_on(target.node, _do_nothing)  # a worker process takes seconds to start
    began = time.monotonic()
    resume = inject(target, fault)
    observer = DrillObserver(before, target)
    hangs = fault == "hang"
    while True:
        now = time.monotonic() - began
        if hangs and now >= hang_seconds:
            resume()
            hangs = False
            yield f"after {now:.1f} s it continues; if it was given up, its messages are refused"
        status = read_status()
        if status is not None:
            yield from observer.observe(status, now)
        if (observer.is_done and not hangs) or now > patience_seconds:
            yield observer.report(status or before)
            return
        time.sleep(_POLL_SECONDS)


class DrillObserver:
    """Observations of a run after a fault. Pure: times are passed in."""

    def __init__(self, before: Status, target: DrillTarget) -> None:
        self._before, self._target = before, target
        self._noticed: float | None = None
        self._recovered: float | None = None
        self._continued: float | None = None
        self._noticed_step = self._newest = before.step
        self._back_from: int | None = None
        self._reported: set[tuple[str, str]] = set()

    @property
    def is_done(self) -> bool:
        """True if the run is as before, and continues."""
        return self._recovered is not None and self._continued is not None

    def observe(self, status: Status, now: float) -> Iterator[str]:
        """Take the status `now` seconds after the fault; yield a sentence for each change."""
        for decision in status.decisions:
            at = now - decision.seconds
            if at >= 0 and (decision.what, decision.why) not in self._reported:
                self._reported.add((decision.what, decision.why))
                why = f" ({decision.why})" if decision.why else ""
                yield f"{at:6.1f} s  {decision.what}{why}"
        present = {one.name for one in status.actors}
        if self._noticed is None and not present & set(self._target.names):
            self._noticed, self._noticed_step = now, status.step
            yield f"{now:6.1f} s  noticed"
        if self._noticed is None:
            self._newest = max(self._newest, status.step)
            return
        if self._continued is None and status.step > self._noticed_step:
            self._continued = now
            self._back_from = self._newest if status.step < self._newest else None
            yield f"{now:6.1f} s  step {status.step} is finished"
        if self._recovered is None and self._is_as_before(status):
            self._recovered = now
            yield f"{now:6.1f} s  as many as before"

    def _is_as_before(self, status: Status) -> bool:
        """Return True if there are as many actors and ranks as before, or as wanted by now."""
        for role, wanted in self._before.wanted.items():
            before, now = (
                sum(one.role == role for one in seen.actors) for seen in (self._before, status)
            )
            if now < min(before, wanted, status.wanted.get(role, wanted)):
                return False
        return status.world >= self._before.world

    def report(self, last: Status) -> DrillReport:
        """Return the result."""
        return DrillReport(
            target=self._target,
            noticed=self._noticed,
            recovered=self._recovered,
            continued=self._continued,
            back_from=self._back_from,
            first_step=self._before.step,
            last_step=last.step,
            counts={
                name: int(_total(last, name) - _total(self._before, name)) for name in _COUNTERS
            },
        )


def _total(status: Status, name: str) -> float:
    return sum(value for key, value in status.readings.items() if key[0] == name)


def _run_on(node: str, function: Callable[..., Any], *arguments: object) -> None:
    """Run a function on a node. `_kill_raylet` ends the node, so its failure is expected."""
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=place)(function)
    try:
        ray.get(task.remote(*arguments), timeout=30)
    except RayError:
        if function is not _kill_raylet:
            raise


def _do_nothing() -> None:
    """Start the worker process that later sends the signal."""


def _send(pid: int, number: int) -> None:
    """Send a signal to a process that may have ended already."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _kill_raylet() -> None:
    """Kill the daemon that started this process; everything that it started ends with it."""
    os.kill(os.getppid(), signal.SIGKILL)
