"""Folder of a run: its lock, its settings, and shards packed from local images."""

import fcntl
import json
import shlex
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from shards.access import raise_denied
from shards.errors import ConfigError
from shards.file_systems import cannot_write, is_storage_failure, lock_file
from shards.files import write_atomic
from shards.member_names import is_hidden
from shards.pack.image_entries import is_image
from shards.pack.pack import pack
from shards.pack.sources.folder_entries import entries_from_folder
from shards.pack.sources.image_metadata import METADATA_NAMES
from shards.samples.class_numbers import CLASSES_FILE
from shards.stream.manifest_file import write_manifest
from shards.stream.order import Order
from streamssl.config.run_config import RunConfig, check_same, read_toml, write_toml
from streamssl.runs.file_names import JOURNAL, MANIFEST
from streamssl.runs.pack_progress import show_packing
from streamssl.runs.run_data import DataConfig, OpenedData, write_data


def check_out(out: Path) -> None:
    """Raise ConfigError unless `out` is the folder of a run, or can become one."""
    taken = next((path for path in (out, *out.parents) if path.exists()), out)
    if not taken.is_dir():
        raise ConfigError(f"{taken} is a file; --out is the folder of a run: give another one")
    if taken != out or (out / "config.toml").exists():
        return
    # An interrupted start leaves packed shards and hidden files; they belong to the run.
    foreign = [path for path in out.iterdir() if not path.name.startswith((".", "shards"))]
    if foreign:
        raise ConfigError(
            f"{out} is not empty and not a run (it has no config.toml); give a new --out, or the "
            "folder of a run to resume"
        )


@contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Create and lock `out`; remove it afterwards if it stays empty. Raises ConfigError."""
    missing = [path for path in (out, *out.parents) if not path.exists()]
    is_new = not (out / ".lock").exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as error:
        raise_denied(error, out)
        if is_storage_failure(error):
            raise cannot_write(error, out, "or give another --out") from error
        raise ConfigError(f"{out} cannot be written to ({error}); give another --out") from error
    with lock:
        try:
            lock_file(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB, out)
        except BlockingIOError as error:
            raise ConfigError(
                f"another process trains into {out} at this moment; wait until it ends, or give "
                "another --out"
            ) from error
        try:
            yield
        finally:
            with suppress(OSError):  # somebody else removed it, or wrote into it
                if is_new and [path.name for path in out.iterdir()] == [".lock"]:
                    (out / ".lock").unlink()
                    for folder in missing:
                        folder.rmdir()


def write_folder(out: Path, config: RunConfig, data: OpenedData) -> None:
    """Save settings, data and manifest. The settings come first: they make the folder a run.

    Raises UserError when they cannot be written.
    """
    try:
        write_toml(config, out / "config.toml")
        write_data(data.config, out / "data.toml")
        write_manifest(data.manifest, out / MANIFEST)
        if data.class_numbers is not None:
            text = "".join(f"{name}\n" for name in data.class_numbers.names)
            write_atomic(out / CLASSES_FILE, text)
    except OSError as error:
        raise cannot_write(error, out) from error


def is_same_start(out: Path, config: RunConfig, order: Order) -> bool:
    """Return True if an earlier start without a checkpoint had the same settings and data."""
    try:
        check_same(read_toml(out / "config.toml"), config)
        header = json.loads((out / JOURNAL).read_text().partition("\n")[0])
    except (ConfigError, OSError, ValueError, RecursionError) as error:
        raise_denied(error, out / JOURNAL)
        return False
    return isinstance(header, dict) and header.get("order") == order.digest


def prepare_data(data: DataConfig, out: Path, console: Console) -> DataConfig:
    """Return `data`, in which local folders of images are replaced by shards packed into `out`."""
    several = len(data.patterns) > 1
    patterns = [
        _prepare(pattern, out / (f"shards-{number}" if several else "shards"), console)
        for number, pattern in enumerate(data.patterns)
    ]
    return replace(data, patterns=tuple(patterns))


def _prepare(pattern: str, target: Path, console: Console) -> str:
    folder = Path(pattern).expanduser()
    if "://" in pattern or not folder.is_dir():
        return pattern if "://" in pattern else str(folder)
    found = _count_kinds(folder)
    if found["shard"]:
        if found["image"]:
            command = shlex.join(
                ["streamssl", "shards", "pack", pattern, "OUT", "--kind", "folder"]
            )
            console.print(
                f"data: {found['image']:,} files of images beside the shards of {pattern} are not "
                f"read: `{command}` packs them",
                highlight=False,
                markup=False,
            )
        return str(folder)
    if found["table"] and not found["image"]:
        return str(folder)  # the listing of shards names tables with a remedy
    with show_packing(console) as progress:
        report = pack(entries_from_folder(folder), target, num_workers=None, progress=progress)
    done = "already packed into" if report.reused else "packed into"
    skipped = f", {sum(report.skipped.values())} files skipped" if report.skipped else ""
    console.print(
        f"{pattern} holds images and no tar: {report.num_samples} images {done} {target} "
        f"({report.num_shards} shards{skipped})",
        highlight=False,
        markup=False,
    )
    return str(target)


def _count_kinds(folder: Path) -> Counter[str]:
    """Count the shards, the tables and the images below a folder."""
    kinds: Counter[str] = Counter()
    for path in folder.rglob("*"):
        name = path.name.lower()
        if is_hidden(name):
            continue
        kinds["shard"] += name.endswith((".tar", ".tar.gz", ".tgz", ".tar.zst"))
        kinds["table"] += name.endswith(".parquet") and name not in METADATA_NAMES
        kinds["image"] += is_image(name)
    return kinds
