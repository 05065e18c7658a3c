"""A run is broken on purpose, through what its Control knows of it, and watched until it is well.

What is done is done to processes, by a task of Ray on the node where they are; nothing of the run
itself knows of drills.
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

_LOOK_SECONDS = 0.1
# What is added up over a drill, by the names that Control has for it.
_COUNTED: Final = (
    "readers_lost",
    "trainers_lost",
    "leases_reissued",
    "results_refused",
    "beats_refused",
    "generations",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """A process, or with pid 0 a whole node; `names` are the actors that go with it."""

    names: tuple[str, ...]
    node: str
    pid: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillReport:
    """What came of it; times in seconds since it was done, None for what did not happen.

    `noticed`: Control no longer counted on the victim. `mended`: there were as many actors, and as
    many ranks, as before. `went_on`: a step was finished after it was noticed. `back_from`: the
    newest step before, if the run had to go on from one that lies before it. `counts`: how much
    Control's counters rose.
    """

    victim: Victim
    noticed: float | None
    mended: float | None
    went_on: float | None
    back_from: int | None
    first_step: int
    last_step: int
    counts: dict[str, int]


def choose(status: Status, fault: Fault, name: str = "") -> Victim:
    """Whom to break: the one that was named, or the first that will do. Raises ConfigError."""
    if fault == "kill-node":
        return _choose_node(status, name)
    role = {"kill-reader": "reader", "kill-trainer": "trainer", "hang": ""}[fault]
    fit = [one for one in status.actors if one.role == role or not role]
    named = [one for one in fit if one.name == name or not name]
    if not named:
        known = ", ".join(one.name for one in fit) or "none"
        raise ConfigError(f"no {role or 'actor'} {name!r} in this run; there are: {known}")
    return Victim(names=(named[0].name,), node=named[0].node, pid=named[0].pid)


def _choose_node(status: Status, name: str) -> Victim:
    """A node on which actors are; that of Control is not offered: it would end the run."""
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
    return Victim(names=tuple(found[node]), node=node)


def break_it(victim: Victim, fault: Fault) -> Callable[[], None]:
    """Do it; what must be called when the time of a victim that hangs is over."""
    if fault == "kill-node":
        _on(victim.node, _kill_raylet)
    elif fault == "hang":
        _on(victim.node, _send, victim.pid, int(signal.SIGSTOP))
        return lambda: _on(victim.node, _send, victim.pid, int(signal.SIGCONT))
    else:
        _on(victim.node, _send, victim.pid, int(signal.SIGKILL))
    return lambda: None


def drill(
    look: Callable[[], Status | None],
    fault: Fault,
    name: str = "",
    *,
    hang_seconds: float = 30.0,
    patience_seconds: float = 180.0,
) -> Iterator[str | DrillReport]:
    """Break a run and watch it: sentences while it lasts, at last the report.

    `look` gives what Control says, or None while it does not answer.
    """
    before = look()
    if before is None:
        raise ConfigError("the run's Control does not answer; look at it with `streamssl status`")
    victim = choose(before, fault, name)
    yield f"{fault}: {', '.join(victim.names)} on node {victim.node[-8:]}, at step {before.step}"
    _on(victim.node, _be_there)  # a process that will do it; to start one takes seconds
    began = time.monotonic()
    wake = break_it(victim, fault)
    watch = Watch(before, victim)
    asleep = fault == "hang"
    while True:
        now = time.monotonic() - began
        if asleep and now >= hang_seconds:
            wake()
            asleep = False
            yield f"after {now:.1f} s it goes on, as a zombie if it was given up"
        status = look()
        if status is not None:
            yield from watch.see(status, now)
        if (watch.is_over and not asleep) or now > patience_seconds:
            yield watch.report(status or before)
            return
        time.sleep(_LOOK_SECONDS)


class Watch:
    """What is seen of a run after something was done to it. Pure: times are passed in."""

    def __init__(self, before: Status, victim: Victim) -> None:
        self._before, self._victim = before, victim
        self._noticed: float | None = None
        self._mended: float | None = None
        self._went_on: float | None = None
        self._step_then = self._newest = before.step
        self._back_from: int | None = None
        self._told: set[tuple[str, str]] = set()

    @property
    def is_over(self) -> bool:
        """All is as before, and goes on."""
        return self._mended is not None and self._went_on is not None

    def see(self, status: Status, now: float) -> Iterator[str]:
        """Take in what Control says `now` seconds after the deed; sentences of what is new."""
        for decided in status.decisions:
            at = now - decided.seconds
            if at >= 0 and (decided.what, decided.why) not in self._told:
                self._told.add((decided.what, decided.why))
                why = f" ({decided.why})" if decided.why else ""
                yield f"{at:6.1f} s  {decided.what}{why}"
        there = {one.name for one in status.actors}
        if self._noticed is None and not there & set(self._victim.names):
            self._noticed, self._step_then = now, status.step
            yield f"{now:6.1f} s  noticed"
        if self._noticed is None:
            self._newest = max(self._newest, status.step)
            return
        if self._went_on is None and status.step > self._step_then:
            self._went_on = now
            self._back_from = self._newest if status.step < self._newest else None
            yield f"{now:6.1f} s  step {status.step} is finished"
        if self._mended is None and self._is_as_before(status):
            self._mended = now
            yield f"{now:6.1f} s  as many as before"

    def _is_as_before(self, status: Status) -> bool:
        """As many as there were, or as many as there shall be by now."""
        for role, wanted in self._before.wanted.items():
            then, now = (
                sum(one.role == role for one in seen.actors) for seen in (self._before, status)
            )
            if now < min(then, wanted, status.wanted.get(role, wanted)):
                return False
        return status.world >= self._before.world

    def report(self, last: Status) -> DrillReport:
        """The end of it."""
        return DrillReport(
            victim=self._victim,
            noticed=self._noticed,
            mended=self._mended,
            went_on=self._went_on,
            back_from=self._back_from,
            first_step=self._before.step,
            last_step=last.step,
            counts={
                name: int(_total(last, name) - _total(self._before, name)) for name in _COUNTED
            },
        )


def _total(status: Status, name: str) -> float:
    return sum(value for key, value in status.readings.items() if key[0] == name)


def _on(node: str, do: Callable[..., Any], *arguments: object) -> None:
    """Run a function on a node; a node that dies of it is no error."""
    place = NodeAffinitySchedulingStrategy(node, soft=False)
    task = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=place)(do)
    try:
        ray.get(task.remote(*arguments), timeout=30)
    except RayError:
        if do is not _kill_raylet:
            raise


def _be_there() -> None:
    """Do nothing, in a process that is there afterwards."""


def _send(pid: int, number: int) -> None:
    """A signal, to whom it may concern: it may be gone by now."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _kill_raylet() -> None:
    """End the daemon that started this very process; all that it started ends with it."""
    os.kill(os.getppid(), signal.SIGKILL)
