"""The front door: argv in, exit code out.

0 done, 1 it failed, 2 the user can mend it, 130 stopped early.

streamssl pretrain RECIPE --data SHARDS --out FOLDER [overrides]
streamssl evaluate knn --run FOLDER --train SHARDS --test SHARDS
streamssl shards pack|verify|stats …
streamssl demo
"""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from shards.admission import AdmissionConfig
from shards.entries import entries_from_folder, entries_from_list
from shards.errors import ConfigError, StreamSSLError, UserError
from shards.manifest import open_manifest
from shards.pack import PackConfig, pack
from shards.sources import RangeReader, redact
from shards.survey import Survey, survey
from streamssl.config import RunConfig, read_toml
from streamssl.demo import DemoConfig, demo
from streamssl.evaluation.evaluate import Encoder, knn_of_run
from streamssl.evaluation.knn import KnnConfig
from streamssl.parsing import parse, unknown
from streamssl.recipes import RECIPES
from streamssl.run import Placement, pretrain

_OK, _USER_ERROR, _INTERRUPTED = 0, 2, 130


@dataclass(frozen=True, kw_only=True, slots=True)
class Pretrain:
    """Train a recipe on shards. Starting again with the same --out goes on where it stopped."""

    data: str
    """A folder, a glob, a brace pattern such as 's3://bucket/{0000..0999}.tar', a single tar, or a
    folder of pictures (packed first)."""
    out: Path
    """The run folder; if it holds a run, that run goes on."""
    cluster: str = "none"
    """none: threads of this process; local: a Ray started here; auto or ray://HOST:10001: a Ray
    that runs."""
    readers: int = 2
    """How many readers, each on one core."""
    metrics_port: int = 0
    """Port of /metrics on the loopback address; 0 takes any free one."""
    run: Annotated[RunConfig, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateKnn:
    """Score the encoder of a run by k-NN: neighbours from --train, accuracy on --test."""

    run: Path
    """A run folder (its newest checkpoint), or one checkpoint."""
    train: str
    """Labelled shards whose pictures are the neighbours."""
    test: str
    """Labelled shards that are scored."""
    ks: tuple[int, ...] = (20, 200)
    """How many neighbours vote; one accuracy for each."""
    temperature: float = 0.1
    """How sharply votes are weighed; smaller is sharper."""
    size: int | None = None
    """Side of the pictures in pixels; None: the run's largest crop."""
    baselines: bool = False
    """Score raw pixels and the untrained encoder too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """Make shards from a folder of pictures (sub-folders are labels) or a text file of paths."""

    source: Annotated[Path, tyro.conf.Positional]
    """A folder of pictures, or a text file with one path a line."""
    out: Annotated[Path, tyro.conf.Positional]
    """A new or empty folder for the shards."""
    labels: Literal["auto", "none"] = "auto"
    """auto: sub-folders are classes; none: no labels."""
    pack: Annotated[PackConfig, tyro.conf.arg(name="")] = field(default_factory=PackConfig)


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Read every shard once."""

    data: Annotated[str, tyro.conf.Positional]
    """A folder, glob, brace pattern or single tar."""
    depth: Literal["headers", "pixels"] = "pixels"
    """pixels decodes every picture; headers is quicker."""
    threads: int = 2
    """How many threads read and decode."""
    json: bool = False
    """Print one JSON object instead of a table."""
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise ConfigError(f"threads={self.threads}; it must be at least 1")


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
    name = arguments[0]
    default = _recipe(name)
    given = Pretrain(data=tyro.MISSING, out=tyro.MISSING, run=default)
    parsed = parse(Pretrain, f"streamssl pretrain {name}", arguments[1:], given)
    placement = Placement(
        cluster=parsed.cluster, readers=parsed.readers, metrics_port=parsed.metrics_port
    )
    _prepare_ray(parsed.cluster)
    with _stop_on_signals(console) as stop:
        summary = pretrain(parsed.run, parsed.data, parsed.out, placement, console, stop)
    if not summary.finished:
        console.print(f"stopped at step {summary.step}; the same command goes on from there")
        return _INTERRUPTED
    console.print(
        f"done: {summary.num_samples:,} pictures at {summary.pictures_per_second:,.0f}/s, data "
        f"wait {summary.data_wait_share:.1%}; {summary.checkpoint}"
    )
    return _OK


def _recipe(name: str) -> RunConfig:
    """A recipe by name, or the config.toml of an earlier run."""
    if name in RECIPES:
        return RECIPES[name]()
    if name.endswith(".toml"):
        return read_toml(Path(name))
    raise ConfigError(unknown(f"recipe {name!r}", name, RECIPES) + ", or the config.toml of a run")


def _evaluate_knn(arguments: list[str], console: Console) -> int:
    """Score the encoder of a run by k-NN on labelled shards."""
    parsed = parse(EvaluateKnn, "streamssl evaluate knn", arguments)
    encoders: tuple[Encoder, ...] = ("trained",)
    if parsed.baselines:
        encoders = ("raw pixels", "untrained", "trained")
    config = KnnConfig(ks=parsed.ks, temperature=parsed.temperature)
    scores = knn_of_run(parsed.run, parsed.train, parsed.test, encoders, config, parsed.size)
    console.print(
        f"k-NN accuracy in % at step {scores.step}: {scores.num_train:,} training and "
        f"{scores.num_test:,} test pictures"
    )
    table = Table()
    table.add_column("encoder")
    for k in parsed.ks:
        table.add_column(f"k={k}", justify="right")
    for encoder, accuracy in scores.accuracy.items():
        table.add_row(encoder, *(f"{accuracy[k]:.1f}" for k in parsed.ks))
    console.print(table)
    return _OK


def _pack(arguments: list[str], console: Console) -> int:
    """Make shards from a folder of pictures or a list of files."""
    parsed = parse(Pack, "streamssl shards pack", arguments)
    if parsed.source.is_file():
        source = entries_from_list(parsed.source)
    else:
        source = entries_from_folder(parsed.source, parsed.labels)
    report = pack(source, parsed.out, parsed.pack)
    done = "are there already, made from the same files" if report.reused else "written"
    console.print(
        f"{report.num_samples:,} samples in {report.num_shards} shards ({report.num_bytes:,} "
        f"bytes) in {report.out}: {done}"
    )
    for reason, count in sorted(report.skipped.items()):
        console.print(f"skipped {count:,}: {reason}")
    return _OK


def _verify(arguments: list[str], console: Console) -> int:
    """Find what is wrong with shards; exit status 1 if anything is."""
    parsed = parse(Look, "streamssl shards verify", arguments)
    found = _survey(parsed, console)
    if parsed.json:
        print(json.dumps(_survey_fields(found)))
        return 1 if found.rejects else _OK
    total = sum(found.rejects.values())
    console.print(f"{found.num_samples:,} samples in {found.num_shards} shards, {total:,} rejected")
    for reason, count in found.rejects.most_common():
        first = found.examples[reason]
        where = f"shard {first.shard}, byte {first.offset}, key {first.key!r}"
        console.print(f"  {reason:<14} {count:>8,}   first: {where}: {first.detail}")
    return 1 if found.rejects else _OK


def _stats(arguments: list[str], console: Console) -> int:
    """Count sizes, formats and rejects of shards."""
    parsed = parse(Look, "streamssl shards stats", arguments)
    found = _survey(parsed, console)
    if parsed.json:
        print(json.dumps(_survey_fields(found)))
        return _OK
    table = Table(title=redact(parsed.data), title_justify="left", show_header=False)
    for name, value in _survey_fields(found).items():
        shown = json.dumps(value) if isinstance(value, dict) else f"{value:,}"
        table.add_row(name.replace("_", " "), shown)
    console.print(table)
    return _OK


def _survey(parsed: Look, console: Console) -> Survey:
    reader = RangeReader()
    manifest = open_manifest(parsed.data, reader)
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    shown = console.is_terminal and not parsed.json
    with Bar(*columns, console=console, transient=True, disable=not shown) as bar:
        task = bar.add_task("reading", total=manifest.num_bytes)
        return survey(
            manifest,
            reader,
            parsed.admission,
            depth=parsed.depth,
            num_threads=parsed.threads,
            progress=lambda num_bytes: bar.advance(task, num_bytes),
        )


def _survey_fields(found: Survey) -> dict[str, Any]:
    sides = sorted(found.sides)
    num = len(sides)
    return {
        "shards": found.num_shards,
        "bytes": found.num_bytes,
        "samples": found.num_samples,
        "pictures": num,
        "rejected": sum(found.rejects.values()),
        "reject_reasons": dict(found.rejects),
        "formats": dict(found.formats),
        "members": dict(found.extensions),
        "megapixels": round(found.num_pixels / 1e6, 1),
        "mean_picture_bytes": round(found.picture_bytes / num) if num else 0,
        "shorter_side_p5": sides[num // 20] if num else 0,
        "shorter_side_p50": sides[num // 2] if num else 0,
        "shorter_side_p95": sides[num * 19 // 20] if num else 0,
    }


def _demo(arguments: list[str], console: Console) -> int:
    """The whole path on made pictures, in minutes on a CPU."""
    parsed = parse(DemoConfig, "streamssl demo", arguments)
    _prepare_ray(parsed.cluster)
    with _stop_on_signals(console) as stop:
        return _OK if demo(parsed, console, stop) else _INTERRUPTED


def _prepare_ray(cluster: str) -> None:
    """Settle Ray's authentication before it starts: left open, it would write a token file.

    A Ray that is started here listens on the loopback address only. For any other cluster the
    environment of the user decides.
    """
    if cluster == "local":
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@contextlib.contextmanager
def _stop_on_signals(console: Console) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM asks the trainer to save and leave; the second one interrupts."""
    asked: list[int] = []

    def handle(number: int, _: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        console.print("stopping after this step; once more to leave at once")

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
    "evaluate": {"knn": _evaluate_knn},
    "shards": {"pack": _pack, "verify": _verify, "stats": _stats},
    "demo": _demo,
}


if __name__ == "__main__":
    sys.exit(main())
