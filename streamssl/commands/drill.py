"""`streamssl drill kill-reader|kill-trainer|kill-node|hang`: break a run and watch it recover."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from shards.errors import ConfigError
from streamssl.commands.argument_parser import parse
from streamssl.runs.run_access import RunAccess, read_access


@dataclass(frozen=True, kw_only=True, slots=True)
class Drill:
    """Break a live run; report what was noticed, when, and what was lost.

    Not for a run that must not be disturbed: killed actors and nodes are not restored.
    """

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    name: str = ""
    """The actor or node to break, as in `streamssl status`; by default the first that fits."""
    hang_seconds: float = 30.0
    """Seconds for which the actor is suspended."""
    patience_seconds: float = 180.0
    """Seconds to wait for the run to recover."""

    def __post_init__(self) -> None:
        if self.hang_seconds <= 0 or self.patience_seconds <= 0:
            raise ConfigError(
                f"hang_seconds={self.hang_seconds:g}, patience_seconds={self.patience_seconds:g}; "
                "both must be above 0"
            )


def parse_drill(fault: str, arguments: list[str]) -> tuple[Drill, RunAccess]:
    """Return the options and the access to the run. Raises ConfigError."""
    parsed = parse(Drill, f"streamssl drill {fault}", arguments)
    return parsed, read_access(parsed.run)


def run_drill(fault: Any, parsed: Drill, access: RunAccess, console: Console) -> bool:
    """Break the run and print the recovery as it happens; return True if the run recovered."""
    from cluster.driver.desk_client import DeskClient
    from cluster.driver.fault_drill import DrillReport, drill

    run = DeskClient(access.address, access.token)
    run.status()  # raises ConfigError if no Control answers
    for item in drill(
        run,
        fault,
        parsed.name,
        hang_seconds=parsed.hang_seconds,
        patience_seconds=parsed.patience_seconds,
    ):
        if isinstance(item, DrillReport):
            for line in _summary(item):
                console.print(line)
            return item.recovered is not None and item.continued is not None
        console.print(item)
    raise AssertionError("a drill ends with its report")


def _summary(report: Any) -> list[str]:
    counts = ", ".join(
        f"{count} {name.replace('_', ' ')}" for name, count in report.counts.items() if count
    )
    return [
        f"noticed: {_after(report.noticed)}; next step finished: {_after(report.continued)}; "
        f"all actors back: {_after(report.recovered)}",
        f"steps: {report.first_step} to {report.last_step}; counted: {counts or 'nothing'}",
        _lost(report),
    ]


def _lost(report: Any) -> str:
    if report.continued is None:
        return "lost: unknown; the run finished no step while it was watched"
    if report.back_from is not None:
        names = ", ".join(report.target.names)
        return (
            f"lost: the steps up to {report.back_from}, which only {names} had and no checkpoint "
            "holds; they are trained again on the same samples (--save-every bounds their number, "
            "--trainers 2 keeps a second copy)"
        )
    return "lost: no step and no sample; leased chunks were cropped again, a broken step repeated"


def _after(seconds: float | None) -> str:
    return "no" if seconds is None else f"after {seconds:.1f} s"
