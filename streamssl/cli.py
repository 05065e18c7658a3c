"""Entry point of the command line: argv in, exit code out.

Exit codes: 0 done, 1 failed, 2 the user can correct it, 130 stopped early.
SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2 let a run save and leave; a second one ends it at once.

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

Each command imports its own module, so that no command waits for the libraries of another:
`tests/streamssl/commands/test_imports.py` lists what each may load.
"""

import os
import select
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO, cast

from rich.console import Console

from shards.errors import ConfigError, StreamSSLError, StreamStopped, UserError
from shards.file_systems import explain_failure, is_storage_failure
from shards.redaction import notes
from streamssl.commands.signal_handlers import stop_on_signals
from streamssl.terminal import TerminalConsole, TerminalOutput, escape_warnings, print_error

_OK, _USER_ERROR, _INTERRUPTED = 0, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Without soft wrap a pipe would get lines that are broken at an assumed width; with markup a
    # folder called 'data [v2]' would be shown as 'data '.
    output = cast(TextIO, TerminalOutput(sys.stdout))
    console = TerminalConsole(file=output, highlight=False, soft_wrap=True, markup=False)
    escape_warnings()
    try:
        return _dispatch(arguments, console)
    except StreamSSLError as error:
        for line in (str(error), *notes(error)):
            print_error(line)
        if isinstance(error, StreamStopped):
            return _INTERRUPTED
        return _USER_ERROR if isinstance(error, UserError) else 1
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _output_is_closed():
            return 1
        if not (isinstance(error, PermissionError) or is_storage_failure(error)):
            raise
        print_error(explain_failure(error))
        _flush_or_drop()
        return _USER_ERROR
    except KeyboardInterrupt:
        print_error("interrupted")
        return _INTERRUPTED


def _output_is_closed() -> bool:
    """Return True if the reader of the output left, as `head` does; the rest is then dropped."""
    output = select.poll()
    output.register(sys.stdout, 0)  # errors are reported without being asked for
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _flush_or_drop() -> None:
    """Write the rest of the output; drop it if that is what failed, so that the exit is quiet."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _dispatch(arguments: list[str], console: Console) -> int:
    tree: Any = _COMMANDS
    path = "streamssl"
    while isinstance(tree, dict):
        word = arguments.pop(0) if arguments else "--help"
        if word in ("-h", "--help"):
            texts = {
                name: ", ".join(entry) if isinstance(entry, dict) else _summary(entry)
                for name, entry in tree.items()
            }
            console.print(_usage(f"{path} COMMAND …", texts))
            return _OK
        if word not in tree:
            from streamssl.commands.argument_parser import unknown

            raise ConfigError(unknown(f"command `{path} {word}`", word, tree))
        path, tree = f"{path} {word}", tree[word]
    command: Callable[[list[str], Console], int] = tree
    return command(arguments, console)


def _usage(call: str, texts: Mapping[str, str]) -> str:
    lines = [f"  {name:<18} {text}".rstrip() for name, text in texts.items()]
    return "\n".join([f"usage: {call}", "", *lines])


def _summary(documented: Any) -> str:
    return (documented.__doc__ or "").partition("\n")[0]


# One function for each command; the first line of its docstring is its help.


def _pretrain(arguments: list[str], console: Console) -> int:
    """Train a recipe on shards; continues a run that was stopped."""
    if not arguments or arguments[0] in ("-h", "--help"):
        from streamssl.recipes import RECIPES

        texts = {name: _summary(build) for name, build in RECIPES.items()}
        console.print(_usage("streamssl pretrain RECIPE --data … --out …", texts))
        return _OK
    from streamssl.commands.pretrain import parse_pretrain, run_pretrain

    parsed = parse_pretrain(arguments)
    _prepare_ray(parsed.cluster)
    with stop_on_signals(console) as stop:
        return _OK if run_pretrain(parsed, console, stop) else _INTERRUPTED


def _recipes(arguments: list[str], console: Console) -> int:
    """List the recipes; with a name, show its notes and settings."""
    from streamssl.commands.recipes import show_recipes

    return show_recipes(arguments, console)


def _knn(arguments: list[str], console: Console) -> int:
    """Score the encoder of a run by k-NN on labelled shards."""
    from streamssl.commands.evaluate import evaluate_knn

    return evaluate_knn(arguments, console)


def _retrieval(arguments: list[str], console: Console) -> int:
    """Score the encoder of a run by retrieval among labelled shards."""
    from streamssl.commands.evaluate import evaluate_retrieval

    return evaluate_retrieval(arguments, console)


def _pack(arguments: list[str], console: Console) -> int:
    """Make shards from images, lists of addresses, or other shards."""
    from streamssl.commands.pack import pack_shards

    return pack_shards(arguments, console)


def _verify(arguments: list[str], console: Console) -> int:
    """Find defects of shards; exit code 1 if there are any."""
    from streamssl.commands.inspect import verify

    return verify(arguments, console)


def _stats(arguments: list[str], console: Console) -> int:
    """Count sizes, formats and rejects of shards."""
    from streamssl.commands.inspect import stats

    return stats(arguments, console)


def _view(arguments: list[str], console: Console) -> int:
    """Write a contact sheet of samples, or of the crops of a batch."""
    from streamssl.commands.view import view

    return view(arguments, console)


def _status(arguments: list[str], console: Console) -> int:
    """Show nodes, actors, rates and decisions of a run on a cluster."""
    from streamssl.commands.status import find_access, find_end, parse_status, show_status

    parsed = parse_status(arguments)
    if end := find_end(parsed):
        console.print(end)
        return _OK
    if parsed.address is not None:
        _prepare_ray(parsed.address)
    show_status(parsed, find_access(parsed), console)
    return _OK


def _live(arguments: list[str], console: Console) -> int:
    """Show the page of a run that ended, from its folder."""
    from streamssl.commands.live import live

    return live(arguments, console)


def _monitor(arguments: list[str], console: Console) -> int:
    """Start a Prometheus for runs, with rules and alerts."""
    from streamssl.commands.monitor import monitor, parse_monitor

    parsed = parse_monitor(arguments)
    with stop_on_signals(console, "ending Prometheus") as stop:
        monitor(parsed, console, stop)
    return _OK


def _kill_reader(arguments: list[str], console: Console) -> int:
    """Kill a reader of a run and report the recovery."""
    return _drill("kill-reader", arguments, console)


def _kill_trainer(arguments: list[str], console: Console) -> int:
    """Kill a trainer of a run and report the recovery."""
    return _drill("kill-trainer", arguments, console)


def _kill_node(arguments: list[str], console: Console) -> int:
    """Kill a node with its actors and report the recovery."""
    return _drill("kill-node", arguments, console)


def _hang(arguments: list[str], console: Console) -> int:
    """Suspend a reader or a trainer for a while and report the recovery."""
    return _drill("hang", arguments, console)


def _drill(fault: Any, arguments: list[str], console: Console) -> int:
    from streamssl.commands.drill import parse_drill, run_drill

    parsed, access = parse_drill(fault, arguments)
    return _OK if run_drill(fault, parsed, access, console) else 1


def _slow_bucket(arguments: list[str], console: Console) -> int:
    """Read local shards through a server that is slow and fails."""
    from streamssl.commands.drill_data import slow_bucket

    return slow_bucket(arguments, console)


def _corrupt(arguments: list[str], console: Console) -> int:
    """Damage copies of local shards and report which images are lost."""
    from streamssl.commands.drill_data import corrupt

    return corrupt(arguments, console)


def _demo(arguments: list[str], console: Console) -> int:
    """Show the whole path on synthetic images, in minutes on a CPU."""
    from streamssl.commands.argument_parser import parse
    from streamssl.demo import DemoConfig, demo

    parsed = parse(DemoConfig, "streamssl demo", arguments)
    _prepare_ray(parsed.cluster)
    with stop_on_signals(console) as stop:
        return _OK if demo(parsed, console, stop) else _INTERRUPTED


_COMMANDS: dict[str, Any] = {
    "pretrain": _pretrain,
    "recipes": _recipes,
    "evaluate": {"knn": _knn, "retrieval": _retrieval},
    "shards": {"pack": _pack, "verify": _verify, "stats": _stats, "view": _view},
    "drill": {
        "kill-reader": _kill_reader,
        "kill-trainer": _kill_trainer,
        "kill-node": _kill_node,
        "hang": _hang,
        "slow-bucket": _slow_bucket,
        "corrupt": _corrupt,
    },
    "status": _status,
    "live": _live,
    "monitor": _monitor,
    "demo": _demo,
}


def _prepare_ray(cluster: str) -> None:
    """Print who else may call the Ray of a run; called before its import. Raises ConfigError."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if cluster != "none":
        from cluster.ray_access import access_warnings

        for line in access_warnings(cluster):
            print_error(line)


if __name__ == "__main__":
    sys.exit(main())
