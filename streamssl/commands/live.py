"""`streamssl live`: the live page of a run that ended, from its folder."""

import fcntl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from shards.errors import ConfigError
from streamssl.commands.argument_parser import parse
from streamssl.pretrain.live_run import address_of
from streamssl.pretrain.replay_page import reopened


@dataclass(frozen=True, kw_only=True, slots=True)
class ShowLive:
    """Charts, rejects, crops and answers of a run, in a browser on this machine."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    port: int = 0
    """Port on the loopback address; 0 takes any free one."""


def live(arguments: list[str], console: Console) -> int:
    """Open the page of a run that ended, from its folder."""
    parsed = parse(ShowLive, "streamssl live", arguments)
    show_live(parsed, console, _wait)
    return 0


def show_live(parsed: ShowLive, console: Console, wait: Callable[[], None]) -> None:
    """Serve the page until `wait` returns; of a run that trains, say where its own is."""
    if not (parsed.run / "config.toml").exists():
        raise ConfigError(
            f"{parsed.run} is no run (it has no config.toml); name the folder that was --out of "
            "one, such as runs/a"
        )
    if is_training(parsed.run):
        where = address_of(parsed.run) or "the address that it printed"
        console.print(f"{parsed.run} trains at this moment; its page is at {where}")
        return
    with reopened(parsed.run, parsed.port) as address:
        console.print(f"{parsed.run} is shown at {address}; Ctrl-C ends it")
        wait()


def is_training(run: Path) -> bool:
    """Whether a process of this machine trains into the folder."""
    try:
        with (run / ".lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _wait() -> None:
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        return
