"""The front door: argv in, exit code out.

0 done, 1 it failed, 2 the user can mend it, 130 stopped early.

streamssl pretrain RECIPE --data SHARDS --out FOLDER [overrides]
streamssl recipes [NAME]
streamssl evaluate knn --run FOLDER --train SHARDS --test SHARDS
streamssl evaluate retrieval --run FOLDER --query SHARDS --gallery SHARDS
streamssl shards pack|verify|stats|view …
streamssl status RUN [--watch]
streamssl live RUN
streamssl monitor RUN... [--out FOLDER]
streamssl drill kill-reader|kill-trainer|kill-node|hang RUN
streamssl drill slow-bucket|corrupt SHARDS
streamssl demo
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from rich.console import Console

from cluster.control.run_place import RunPlace
from cluster.driver.fault_drill import Fault
from shards.errors import ConfigError, StreamSSLError, StreamStopped, UserError
from streamssl.commands.argument_parser import parse, unknown
from streamssl.commands.drill import parse_drill, run_drill
from streamssl.commands.drill_data import corrupt, slow_bucket
from streamssl.commands.evaluate import evaluate_knn, evaluate_retrieval
from streamssl.commands.inspect import stats, verify
from streamssl.commands.live import live
from streamssl.commands.monitor import monitor, parse_monitor
from streamssl.commands.pack import pack_shards
from streamssl.commands.pretrain import parse_pretrain, run_pretrain
from streamssl.commands.recipes import show_recipes
from streamssl.commands.status import find_place, parse_status, show_status
from streamssl.commands.view import view
from streamssl.demo import DemoConfig, demo
from streamssl.recipes import RECIPES

_OK, _USER_ERROR, _INTERRUPTED = 0, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # A line stays one line in a file or a pipe, whatever width is assumed there.
    console = Console(highlight=False, soft_wrap=True)
    try:
        return _dispatch(arguments, console)
    except UserError as error:
        print(f"streamssl: {error}", file=sys.stderr)
        return _USER_ERROR
    except StreamStopped as error:
        print(f"streamssl: {error}", file=sys.stderr)
        return _INTERRUPTED
    except StreamSSLError as error:
        print(f"streamssl: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("streamssl: interrupted", file=sys.stderr)
        return _INTERRUPTED


def _dispatch(arguments: list[str], console: Console) -> int:
    tree: Any = _COMMANDS
    path = "streamssl"
    while isinstance(tree, dict):
        word = arguments.pop(0) if arguments else "--help"
        if word in ("-h", "--help"):
            console.print(_usage(path, tree))
            return _OK
        if word not in tree:
            raise ConfigError(unknown(f"command `{path} {word}`", word, tree))
        path, tree = f"{path} {word}", tree[word]
    command: Callable[[list[str], Console], int] = tree
    return command(arguments, console)


def _pretrain(arguments: list[str], console: Console) -> int:
    """Train a recipe on shards; goes on where it stopped."""
    if not arguments or arguments[0] in ("-h", "--help"):
        console.print(_usage("streamssl pretrain", RECIPES))
        return _OK
    parsed = parse_pretrain(arguments)
    _prepare_ray(parsed.cluster)
    with _stop_on_signals(console) as stop:
        return _OK if run_pretrain(parsed, console, stop) else _INTERRUPTED


def _demo(arguments: list[str], console: Console) -> int:
    """The whole path on made images, in minutes on a CPU."""
    parsed = parse(DemoConfig, "streamssl demo", arguments)
    _prepare_ray(parsed.cluster)
    with _stop_on_signals(console) as stop:
        return _OK if demo(parsed, console, stop) else _INTERRUPTED


def _status(arguments: list[str], console: Console) -> int:
    """How a run on a cluster stands: nodes, actors, rates, decisions."""
    parsed = parse_status(arguments)
    if parsed.address is not None:
        _prepare_ray(parsed.address)
    place = find_place(parsed)
    _prepare_ray_of(place)
    show_status(place, console, watch=parsed.watch)
    return _OK


def _monitor(arguments: list[str], console: Console) -> int:
    """A Prometheus for runs, with rules and alerts."""
    parsed = parse_monitor(arguments)
    with _stop_on_signals(console, "ending Prometheus") as stop:
        monitor(parsed, console, stop)
    return _OK


def _kill_reader(arguments: list[str], console: Console) -> int:
    """Kill a reader of a run, and watch."""
    return _drill("kill-reader", arguments, console)


def _kill_trainer(arguments: list[str], console: Console) -> int:
    """Kill a trainer of a run, and watch."""
    return _drill("kill-trainer", arguments, console)


def _kill_node(arguments: list[str], console: Console) -> int:
    """Kill a node with all that is on it, and watch."""
    return _drill("kill-node", arguments, console)


def _hang(arguments: list[str], console: Console) -> int:
    """Stop a reader or a trainer for a while, and watch."""
    return _drill("hang", arguments, console)


def _drill(fault: Fault, arguments: list[str], console: Console) -> int:
    parsed, place = parse_drill(fault, arguments)
    _prepare_ray_of(place)
    return _OK if run_drill(fault, parsed, place, console) else 1


def _prepare_ray_of(place: RunPlace) -> None:
    """A Ray that a run started for itself listens on the loopback address alone."""
    _prepare_ray("local" if place.address.startswith("127.0.0.1:") else place.address)


def _prepare_ray(cluster: str) -> None:
    """Settle Ray's authentication before it starts: left open, it would write a token file.

    A Ray that is started here listens on the loopback address only. For any other cluster the
    environment of the user decides.
    """
    if cluster == "local":
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@contextlib.contextmanager
def _stop_on_signals(
    console: Console, ending: str = "stopping after this step"
) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM asks to end in order; the second one interrupts."""
    asked: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        console.print(f"{ending}; once more to leave at once")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _usage(path: str, tree: dict[str, Any]) -> str:
    lines = [f"usage: {path} {'RECIPE --data … --out …' if tree is RECIPES else 'COMMAND …'}", ""]
    for name, entry in tree.items():
        is_group = isinstance(entry, dict)
        text = ", ".join(entry) if is_group else (entry.__doc__ or "").partition("\n")[0]
        lines.append(f"  {name:<18} {text}".rstrip())
    return "\n".join(lines)


_COMMANDS: dict[str, Any] = {
    "pretrain": _pretrain,
    "recipes": show_recipes,
    "evaluate": {"knn": evaluate_knn, "retrieval": evaluate_retrieval},
    "shards": {"pack": pack_shards, "verify": verify, "stats": stats, "view": view},
    "drill": {
        "kill-reader": _kill_reader,
        "kill-trainer": _kill_trainer,
        "kill-node": _kill_node,
        "hang": _hang,
        "slow-bucket": slow_bucket,
        "corrupt": corrupt,
    },
    "status": _status,
    "live": live,
    "monitor": _monitor,
    "demo": _demo,
}


if __name__ == "__main__":
    sys.exit(main())
