"""Fault drill: has a run broken on purpose, and observes it until it has recovered.

Imports no Ray: the driver of the run breaks the target, see `fault_injection`.
"""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, Protocol

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

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "DrillTarget":
        """Return the target of `to_json`. Raises KeyError, TypeError, ValueError."""
        names = tuple(map(str, fields["names"]))
        if not names:
            raise ValueError("a target has a name")
        return cls(names=names, node=str(fields["node"]), pid=int(fields["pid"]))


class RunUnderDrill(Protocol):
    """A run that is broken on purpose."""

    def try_status(self) -> Status | None:
        """Return the status, None while Control does not answer."""

    def drill(self, fault: str, name: str) -> tuple[DrillTarget, float]:
        """Break a target; return it, and how long ago that was in seconds."""

    def resume(self, target: DrillTarget) -> None:
        """End a hang."""


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


def drill(
    run: RunUnderDrill,
    fault: Fault,
    name: str = "",
    *,
    hang_seconds: float = 30.0,
    patience_seconds: float = 180.0,
) -> Iterator[str | DrillReport]:
    """Break a run and observe it; yield a sentence for each change, and the report at the end."""
    before = run.try_status()
    if before is None:
        raise ConfigError("the run's Control does not answer; check it with `streamssl status`")
    target, since = run.drill(fault, name)
    began = time.monotonic() - since
    yield f"{fault}: {', '.join(target.names)} on node {target.node[-8:]}, at step {before.step}"
    observer = DrillObserver(before, target)
    hangs = fault == "hang"
    while True:
        now = time.monotonic() - began
        if hangs and now >= hang_seconds:
            run.resume(target)
            hangs = False
            yield f"after {now:.1f} s it continues; if it was given up, its messages are refused"
        status = run.try_status()
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
