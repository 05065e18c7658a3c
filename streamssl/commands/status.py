"""`streamssl status`: nodes, actors, rates and decisions of a run, as its Control reports them."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cluster.protocol.run_status import ActorStatus, Status
from shards.errors import ConfigError
from streamssl.commands.argument_parser import parse
from streamssl.runs.run_access import RunAccess, is_driven_elsewhere, read_access
from streamssl.runs.run_end import is_training, read_end

_WATCH_SECONDS = 1.0
_NUM_DECISIONS = 8
_NUM_ACTORS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ShowStatus:
    """Nodes, actors, rates, leases, generations and decisions of a run on a Ray cluster."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """The run folder."""
    address: str | None = None
    """auto or ray://HOST:10001 instead of a folder: the only run of that Ray cluster."""
    watch: bool = False
    """Refresh every second, until Ctrl-C."""


def parse_status(arguments: list[str]) -> ShowStatus:
    """Parse the options of `status`. Raises ConfigError."""
    parsed = parse(ShowStatus, "streamssl status", arguments)
    if (parsed.run is None) == (parsed.address is None):
        raise ConfigError(
            "status needs the folder of a run, or --address of a Ray cluster, and not both: give "
            "for example `streamssl status runs/a`"
        )
    return parsed


def find_end(parsed: ShowStatus) -> str:
    """Return how the run ended, in a sentence; "" if it may still train, here or elsewhere."""
    if parsed.run is None or is_training(parsed.run):
        return ""
    end = read_end(parsed.run)
    # A note of a start may be of a process on another machine, whose lock is not seen here.
    if end is None or (end.how == "killed" and is_driven_elsewhere(parsed.run)):
        return ""
    return f"{parsed.run} does not train now: {end.describe()}"


def find_access(parsed: ShowStatus) -> RunAccess | None:
    """Return the access to the run in a folder, None without a folder. Raises ConfigError."""
    return None if parsed.run is None else read_access(parsed.run)


def show_status(parsed: ShowStatus, access: RunAccess | None, console: Console) -> None:
    """Print the status of the run. Raises ConfigError."""
    with _open_client(parsed, access) as read_status:
        if not parsed.watch:
            console.print(render(read_status()))
        else:
            _refresh(read_status, console)


@contextmanager
def _open_client(parsed: ShowStatus, access: RunAccess | None) -> Iterator[Callable[[], Status]]:
    if access is not None:
        from cluster.driver.desk_client import DeskClient

        yield DeskClient(access.address, access.token).status
        return
    from cluster.driver.status_client import cluster_client

    assert parsed.address is not None
    with cluster_client(parsed.address) as client:
        yield client.status


def _refresh(read_status: Callable[[], Status], console: Console) -> None:
    """Show the status until Ctrl-C, or until two requests in a row fail.

    One request may fail because a new Control replaces one that died.
    """
    page, is_silent = render(read_status()), False
    with Live(page, console=console, auto_refresh=False) as live:
        while True:
            time.sleep(_WATCH_SECONDS)
            try:
                page, is_silent = render(read_status()), False
            except ConfigError:
                if is_silent:
                    raise
                is_silent = True
                page = Group(page, Text("Control does not answer; trying again"))
            live.update(page, refresh=True)


def render(status: Status) -> Group:
    """Return a status as text and tables for a terminal."""
    return Group(
        *_head(status),
        _node_table(status),
        _actor_table(status),
        Text(_leases(status)),
        *(Text(line) for line in _decisions(status)),
    )


def _head(status: Status) -> list[Text]:
    rates = status.rates
    trains = f"generation {status.generation} of {status.world} trainers"
    world = trains if status.world else "no trainer at this moment"
    wanted = ", ".join(f"{count} {role}s" for role, count in status.wanted.items())
    lines = [
        f"step {status.step} of {status.num_steps}, planned up to {status.planned}; {world}; "
        f"{status.step_seconds:.2f} s a step",
        f"images/s: {rates.get('trained', 0):,.0f} trained on, {rates.get('cropped', 0):,.0f} "
        f"cropped; readers are busy {rates.get('busy', 0):.0%} of their time",
        f"wanted: {wanted} ({status.scaling}); Control of term {status.term} since "
        f"{status.seconds:,.0f} s",
    ]
    lines += [f"pages of {role}: http://{address}/stacks" for role, address in status.pages.items()]
    lines += [f"nodes are starting: {text}" for text in status.pending]
    lines += [f"nodes failed to start: {text}" for text in status.failed]
    return [Text(line) for line in lines]


def _node_table(status: Status) -> Table:
    table = Table("node", "address", "cores", "readers", "trainers", "labels", "")
    for node in status.nodes:
        labels = {k: v for k, v in node.labels.items() if not k.startswith("ray.io/")}
        table.add_row(
            node.node[:8],
            node.address,
            f"{node.cores:g}",
            str(node.num_readers),
            str(node.num_trainers),
            ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
            "" if node.leaves_in is None else f"leaves in {node.leaves_in:.0f} s",
        )
    return table


def _actor_table(status: Status) -> Table:
    """Return the table of all trainers and of the first readers."""
    has_pages = any(actor.pages for actor in status.actors)
    table = Table(
        "actor", "node", "pid", "state", "step", "rank", "heartbeat", *["pages"] * has_pages
    )
    trainers = [actor for actor in status.actors if actor.role == "trainer"]
    readers = [actor for actor in status.actors if actor.role == "reader"]
    for actor in trainers + readers[:_NUM_ACTORS]:
        table.add_row(*_actor_row(actor), *[actor.pages] * has_pages)
    if len(readers) > _NUM_ACTORS:
        table.add_row(f"and {len(readers) - _NUM_ACTORS} more readers")
    return table


def _actor_row(actor: ActorStatus) -> tuple[str, ...]:
    is_trainer = actor.role == "trainer"
    doing = f", {actor.doing}" if actor.doing else ""
    return (
        actor.name,
        actor.node[:8],
        str(actor.pid),
        actor.phase + doing,
        str(actor.step) if is_trainer else "",
        str(actor.rank) if actor.rank >= 0 else "",
        f"{actor.heartbeat_age:.1f} s ago" if is_trainer else "",
    )


def _leases(status: Status) -> str:
    leases = status.leases
    oldest = ""
    if leases.oldest:
        first = leases.oldest[0]
        oldest = f"; oldest lease: {first.reader} for {first.seconds:.1f} s, {first.shard}"
    return (
        f"chunks: {leases.num_waiting} waiting, {leases.num_running} leased, {leases.num_held} "
        f"held in {leases.held_bytes / (1 << 20):,.0f} MiB{oldest}"
    )


def _decisions(status: Status) -> list[str]:
    lines = [
        f"{one.seconds:8.1f} s ago  {one.what}" + (f" ({one.why})" if one.why else "")
        for one in status.decisions[-_NUM_DECISIONS:]
    ]
    return ["decisions:", *lines] if lines else []
