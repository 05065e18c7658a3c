"""A folder of pictures, a list of files, or pictures made by formula become tar shards.

The shards are what the `webdataset` library reads and writes: a sample is `<key>.<ext>` with the
picture's own bytes, never encoded anew, and `<key>.cls` with its class number where it has one.
The same input gives the same bytes. The output folder appears when it is complete, or not at all.
"""

import json
import os
import re
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from webdataset.writer import TarWriter

from shards.entries import Entry, PackSource
from shards.errors import ConfigError, UserError
from shards.picture import PictureError, inspect

CLASSES_FILE = "classes.txt"
REPORT_FILE = "pack.json"
# The layout of what is written; raised when the same input would give other bytes.
_LAYOUT = 1
_MAX_STEM = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class PackConfig:
    """How samples are dealt to shards. A shard is closed by whichever limit it would pass first.

    `seed` decides the order, so that shards are not sorted by class; None keeps the source's order.
    """

    samples_per_shard: int = 1000
    """A shard is closed when it holds so many."""
    max_bytes: int = 1 << 28
    """Or when it would pass so many bytes."""
    seed: int | None = 0
    """Decides the order; None keeps the source's."""
    pattern: str = "shard-{:06d}.tar"
    """Name of a shard, with one number."""

    def __post_init__(self) -> None:
        if self.samples_per_shard < 1 or self.max_bytes < 1:
            raise ConfigError(
                f"samples_per_shard={self.samples_per_shard} and max_bytes={self.max_bytes}; "
                f"a shard holds at least 1 sample and 1 byte; raise them"
            )
        if not _is_pattern(self.pattern):
            raise ConfigError(
                f"the shard pattern {self.pattern!r} does not number the shards; allowed is a "
                f"file name with one number that ends in .tar, such as 'shard-{{:06d}}.tar'"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class PackReport:
    """What lies in `out`. `skipped` maps a reason to how many files were left out for it.

    `digest` is of all shards' bytes, in order; `num_bytes` their length. `reused` says that the
    folder was there already, made from the same input, and nothing was written.
    """

    out: Path
    num_samples: int
    num_shards: int
    num_bytes: int
    digest: str
    skipped: Mapping[str, int] = field(default_factory=dict)
    reused: bool = False


def pack(source: PackSource, out: Path, config: PackConfig | None = None) -> PackReport:
    """Write `source` as shards into the folder `out`, with classes.txt and pack.json beside them.

    An `out` that an earlier call made from the same input is left as it is. Raises UserError when
    `out` holds anything else, or when the source has no picture.
    """
    config = config or PackConfig()
    inputs = _describe(source, config)
    final = out.resolve()
    if _is_taken(final):
        return _reuse(out, inputs)
    # A sibling, so that the last step is one rename on one file system.
    building = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    shutil.rmtree(building, ignore_errors=True)
    try:
        building.mkdir(parents=True)
        report = _write(source, building, out, config)
        _write_beside(building, source, report, inputs)
        os.replace(building, final)
    except OSError:
        if _is_taken(final):  # somebody else was faster
            return _reuse(out, inputs)
        raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return report


def _write(source: PackSource, folder: Path, out: Path, config: PackConfig) -> PackReport:
    writer, skipped = _ShardWriter(folder, config), Counter(source.skipped)
    try:
        for key, entry in _in_order(source, config):
            fields = _read_fields(entry, skipped)
            if fields is not None:
                writer.write(key, fields)
    finally:
        writer.close()
    if writer.num_samples == 0:
        raise UserError(_no_picture_message(source, skipped))
    return writer.report(out, skipped)


class _ShardWriter:
    """Deals samples to numbered shards and keeps count. Every header field is fixed: no clock."""

    def __init__(self, folder: Path, config: PackConfig) -> None:
        self.folder = folder
        self.config = config
        self.num_samples = self.num_shards = self.num_bytes = 0
        self._digest = blake2b(digest_size=16)
        self._tar: TarWriter | None = None
        self._file: BinaryIO
        self._samples_in_shard = self._bytes_in_shard = 0

    def write(self, key: str, fields: Mapping[str, bytes]) -> None:
        length = sum(_tar_length(len(data)) for data in fields.values())
        full = self._samples_in_shard >= self.config.samples_per_shard
        if full or self._bytes_in_shard + length > self.config.max_bytes:
            self.close()
        if self._tar is None:
            # An open file, not a path: the library would take "pipe:..." for a command.
            self._file = open(self._path(self.num_shards), "wb")  # noqa: SIM115
            self._tar = TarWriter(self._file, user="", group="", encoder=False, mtime=0)
        self._tar.write({"__key__": key, **fields})
        self._samples_in_shard += 1
        self._bytes_in_shard += length
        self.num_samples += 1

    def close(self) -> None:
        """Finish the open shard, if there is one."""
        if self._tar is None:
            return
        self._tar.close()
        self._file.close()
        self._tar = None
        with open(self._path(self.num_shards), "rb") as shard:
            while block := shard.read(1 << 20):
                self._digest.update(block)
                self.num_bytes += len(block)
        self.num_shards += 1
        self._samples_in_shard = self._bytes_in_shard = 0

    def report(self, out: Path, skipped: Mapping[str, int]) -> PackReport:
        return PackReport(
            out=out,
            num_samples=self.num_samples,
            num_shards=self.num_shards,
            num_bytes=self.num_bytes,
            digest=self._digest.hexdigest(),
            skipped=dict(sorted(skipped.items())),
        )

    def _path(self, number: int) -> Path:
        return self.folder / self.config.pattern.format(number)


def _in_order(source: PackSource, config: PackConfig) -> Iterator[tuple[str, Entry]]:
    """Every entry with its key, shuffled. A key tells the place in the source, in any order."""
    num = len(source.entries)
    order = np.arange(num)
    if config.seed is not None:
        key = blake2b(f"pack/{config.seed}/{num}".encode(), digest_size=16).digest()
        order = np.random.Generator(np.random.Philox(key=np.frombuffer(key, "<u8"))).permutation(
            num
        )
    for number in order.tolist():
        entry = source.entries[number]
        yield f"{number:08d}{_safe_stem(entry.name)}", entry


def _safe_stem(name: str) -> str:
    """'cats/My cát.v2.jpg' -> '-My_cat_v2': no dot, slash, space or accent may be in a key."""
    stem = Path(name).stem
    plain = unicodedata.normalize("NFKD", stem).encode("ascii", "ignore").decode()
    safe = re.sub(r"[^A-Za-z0-9-]+", "_", plain).strip("_-")[:_MAX_STEM]
    return f"-{safe}" if safe else ""


def _read_fields(entry: Entry, skipped: Counter[str]) -> dict[str, bytes] | None:
    """The members of one sample by extension; None where `skipped` counts why there is none."""
    try:
        data = entry.read()
        inspect(data)
    except OSError:
        skipped["unreadable"] += 1
        return None
    except PictureError as error:
        skipped[error.reason] += 1
        return None
    fields = {entry.extension: data}
    if entry.label is not None:
        fields["cls"] = str(entry.label).encode()
    return fields


def _describe(source: PackSource, config: PackConfig) -> dict[str, Any]:
    """What decides the bytes that are written: two packs that agree in it are the same."""
    digest = blake2b(digest_size=16)
    for entry in source.entries:
        row = [entry.name, entry.version, entry.extension, entry.label]
        digest.update(json.dumps(row).encode() + b"\n")
    digest.update(json.dumps(source.class_names).encode())
    return {"layout": _LAYOUT, **asdict(config), "source": digest.hexdigest()}


def _reuse(out: Path, inputs: dict[str, Any]) -> PackReport:
    """The report of the complete pack in `out`, if it was made from these inputs."""
    try:
        saved = json.loads((out / REPORT_FILE).read_text())
        counts = saved["report"]
        shards = [out / inputs["pattern"].format(n) for n in range(counts["num_shards"])]
        same = saved["inputs"] == inputs
        same = same and sum(path.stat().st_size for path in shards) == counts["num_bytes"]
    except (OSError, ValueError, TypeError, KeyError):
        same = False
    if not same:
        raise UserError(
            f"{out} exists and is not a complete pack of these pictures with these settings; "
            f"shards go into a new or empty folder; name another, or remove this one"
        )
    return PackReport(out=out, reused=True, **counts)


def _is_taken(out: Path) -> bool:
    return any(out.iterdir()) if out.is_dir() else out.exists()


def _write_beside(
    folder: Path, source: PackSource, report: PackReport, inputs: dict[str, Any]
) -> None:
    if source.class_names:
        lines = (" ".join(name.splitlines()) + "\n" for name in source.class_names)
        with open(folder / CLASSES_FILE, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(lines)
    counts = {k: v for k, v in asdict(report).items() if k not in ("out", "reused")}
    text = json.dumps({"report": counts, "inputs": inputs}, indent=2)
    (folder / REPORT_FILE).write_text(text + "\n")


def _no_picture_message(source: PackSource, skipped: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    return (
        f"no picture found in {source.name} ({reasons or 'it is empty'}); at least one file must "
        f"be a picture that can be read; check the path"
    )


def _tar_length(num_bytes: int) -> int:
    """What a member takes in a tar: a header block and whole blocks of data, in bytes."""
    return 512 + -(-num_bytes // 512) * 512


def _is_pattern(pattern: str) -> bool:
    try:
        names = {pattern.format(number) for number in (0, 1)}
    except (IndexError, KeyError, ValueError):
        return False
    return len(names) == 2 and all("/" not in n and n.endswith(".tar") for n in names)
