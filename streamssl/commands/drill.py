"""`streamssl drill kill-reader|kill-trainer|kill-node|hang`: a run is broken, and watched."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from cluster.control.run_place import RunPlace, read_place
from cluster.driver.fault_drill import DrillReport, Fault, drill
from cluster.driver.status_client import ask_status, watched
from cluster.protocol.actor_rpc import Link, Unreachable
from cluster.protocol.run_status import Status
from shards.errors import ConfigError
from streamssl.commands.argument_parser import parse
from streamssl.runs.run_folder import CONTROL

_ANSWER_SECONDS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Drill:
    """Break a run that goes on at this moment, and tell what was noticed, when, and what was lost.

    Not for a run that must not be disturbed: what is killed stays dead, a node too.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    name: str = ""
    """Whom to break, by a name or node of `streamssl status`; the first that will do, otherwise."""
    hang_seconds: float = 30.0
    """How long it hangs, before it goes on as if nothing had happened."""
    patience_seconds: float = 180.0
    """How long to watch for the run to be as before."""

    def __post_init__(self) -> None:
        if self.hang_seconds <= 0 or self.patience_seconds <= 0:
            raise ConfigError(
                f"hang_seconds={self.hang_seconds:g}, patience_seconds={self.patience_seconds:g}; "
                "both must be above 0"
            )


def parse_drill(fault: Fault, arguments: list[str]) -> tuple[Drill, RunPlace]:
    """What to break, and where its Control can be asked. Raises ConfigError."""
    parsed = parse(Drill, f"streamssl drill {fault}", arguments)
    return parsed, read_place(parsed.run / CONTROL)


def run_drill(fault: Fault, parsed: Drill, place: RunPlace, console: Console) -> bool:
    """Break it, and say what comes of it as it comes; whether all was as before in the end."""
    with watched(place) as control:
        ask_status(control)  # one sentence, if there is nobody
        said = drill(
            lambda: _look(control),
            fault,
            parsed.name,
            hang_seconds=parsed.hang_seconds,
            patience_seconds=parsed.patience_seconds,
        )
        for item in said:
            if isinstance(item, DrillReport):
                for line in _summary(item):
                    console.print(line)
                return item.mended is not None and item.went_on is not None
            console.print(item)
    raise AssertionError("a drill ends with its report")


def _look(control: Link) -> Status | None:
    """What Control says, unless it is the one that was hit."""
    try:
        found: Status = control.call("status", seconds=_ANSWER_SECONDS)
    except Unreachable:
        return None
    return found


def _summary(report: DrillReport) -> list[str]:
    counts = ", ".join(
        f"{count} {name.replace('_', ' ')}" for name, count in report.counts.items() if count
    )
    return [
        f"noticed: {_after(report.noticed)}; a step was finished: {_after(report.went_on)}; "
        f"as many as before: {_after(report.mended)}",
        f"steps: {report.first_step} to {report.last_step}; counted: {counts or 'nothing'}",
        _lost(report),
    ]


def _lost(report: DrillReport) -> str:
    if report.went_on is None:
        return "lost: nothing is known yet; the run did not go on while this was watched"
    if report.back_from is not None:
        names = ", ".join(report.victim.names)
        return (
            f"lost: the steps up to {report.back_from} that only {names} had done, and no "
            "checkpoint holds; they are done again, on the same samples (--save-every says how "
            "many at most, --trainers 2 keeps another copy)"
        )
    return "lost: no step and no sample; what was held was made again, a step under way tried again"


def _after(seconds: float | None) -> str:
    return "not" if seconds is None else f"after {seconds:.1f} s"
