"""`streamssl live`: the live page of an ended run, from its folder."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from shards.errors import ConfigError
from streamssl.commands.argument_parser import parse
from streamssl.config.run_config import read_toml
from streamssl.pretrain.replay_page import replay_page
from streamssl.runs.file_names import METRICS_ADDRESS
from streamssl.runs.run_end import is_training, read_end


@dataclass(frozen=True, kw_only=True, slots=True)
class ShowLive:
    """Charts, rejects, crops and answers of a run, in a browser on this machine."""

    run: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    port: int = 0
    """Port on the loopback address; 0 takes any free one."""


def live(arguments: list[str], console: Console) -> int:
    """Serve the page of an ended run until Ctrl-C."""
    parsed = parse(ShowLive, "streamssl live", arguments)
    show_live(parsed, console, _wait_for_interrupt)
    return 0


def show_live(parsed: ShowLive, console: Console, wait: Callable[[], None]) -> None:
    """Serve the page until `wait` returns; of a run that trains, print the address of its page."""
    if not (parsed.run / "config.toml").exists():
        raise ConfigError(
            f"{parsed.run} is not a run (it has no config.toml); name a folder that was --out of "
            "a run, such as runs/a"
        )
    if is_training(parsed.run):
        where = live_address(parsed.run) or "the address that it printed"
        console.print(f"{parsed.run} is training now; its page is at {where}")
        return
    with replay_page(parsed.run, parsed.port) as address:
        end = read_end(parsed.run, read_toml(parsed.run / "config.toml").num_steps)
        if end is not None and end.how != "done":
            console.print(f"{parsed.run} does not train now: {end.describe()}", markup=False)
        console.print(f"the page of {parsed.run} is at {address}; Ctrl-C ends it")
        wait()


def live_address(run: Path) -> str:
    """Return the address of the page of a run that trains, or "" if it is unknown."""
    try:
        return f"{(run / METRICS_ADDRESS).read_text()}/"
    except (OSError, ValueError):
        return ""


def _wait_for_interrupt() -> None:
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
