"""Writer of one shard: a plain tar without timestamps, equal bytes for equal samples."""

import os
import tarfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Final

from shards.errors import PackFailed
from shards.file_systems import flush_descriptor
from shards.pack.fetch import ImageFetcher
from shards.pack.pack_plan import PackConfig, ShardStats, ShardTask, SkippedSample
from shards.pack.pack_target import PackTarget, open_target
from shards.records import Reason, Reject, Sample
from shards.samples.admission import admit
from shards.samples.admission_config import AdmissionConfig
from shards.samples.predicate import apply_predicate, resolve_predicate
from shards.samples.subset import Subset
from shards.stores.image_download import DownloadConfig
from shards.tars.headers import BLOCK

Advance = Callable[[int], None]
_BUFFER: Final = 1 << 20
_PLAIN_NAME_BYTES: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class PackJob:
    """Settings that all tasks share. Sent to worker processes by pickle.

    `made_from` is the digest of the inputs. `scratch` is the local folder of drafts. Without
    `admission` each readable sample is kept.
    """

    target: str
    scratch: Path
    made_from: str
    config: PackConfig
    download: DownloadConfig
    admission: AdmissionConfig | None
    subset: Subset | None
    num_workers: int = 1


class ShardMaker:
    """Makes shards one by one, and keeps its connections. Use it as a context."""

    def __init__(self, job: PackJob, target: PackTarget | None = None) -> None:
        self._job = job
        self._target = target or open_target(job.target)
        self._fetcher = ImageFetcher(job.download, job.num_workers)
        self._filter = _SampleFilter(job.admission)

    def make(self, task: ShardTask, advance: Advance) -> ShardStats:
        """Write one shard to the target, and then its side-car, which proves that it is complete.

        Raises PackFailed or ShardUnreadable, and OSError if the target cannot be written to.
        """
        job = self._job
        name = shard_name(job.config, task.number)
        draft = job.scratch / f".{name}.part-{os.getpid()}"
        try:
            stats = self._write(task, draft, advance)
            self._target.put(name, draft)
        finally:
            draft.unlink(missing_ok=True)
        self._target.write(sidecar_name(job.config, task.number), stats.to_json())
        return stats

    def __enter__(self) -> "ShardMaker":
        return self

    def __exit__(self, *_: object) -> None:
        self._fetcher.close()

    def _write(self, task: ShardTask, draft: Path, advance: Advance) -> ShardStats:
        left_out: dict[str, list[str]] = {}
        lost: Counter[str] = Counter()
        num_read = num_unselected = num_hidden = 0
        leaps: set[int] = set()
        with ShardFile(draft) as file:
            for found in task.read(self._fetcher, self._job.subset):
                skipped = list(found.skipped)
                for sample in found.samples:
                    reason = self._filter.reject_reason(sample)
                    if reason is None:
                        file.add(sample.key, sample.fields)
                    else:
                        skipped.append(SkippedSample(sample.key, reason))
                for entry in skipped:
                    left_out.setdefault(entry.reason, []).append(entry.name)
                    lost[entry.reason] += entry.lost
                num_read += len(found.samples) + len(found.skipped)
                num_unselected += found.num_unselected
                num_hidden += found.num_hidden
                leaps.update(found.leaps)
                advance(found.units)
        _check_lost(shard_name(self._job.config, task.number), self._job.download, num_read, +lost)
        return ShardStats(
            made_from=f"{self._job.made_from}{task.variant}",
            number=task.number,
            num_samples=file.num_samples,
            num_bytes=file.num_bytes,
            digest=file.digest,
            num_renamed=file.num_renamed,
            num_unselected=num_unselected,
            num_hidden=num_hidden,
            leaps=tuple(sorted(leaps)),
            left_out=dict(sorted(left_out.items())),
        )


def shard_name(config: PackConfig, number: int) -> str:
    """'shard-000012.tar'."""
    return config.pattern.format(number)


def sidecar_name(config: PackConfig, number: int) -> str:
    """'shard-000012.json'."""
    return shard_name(config, number).removesuffix(".tar") + ".json"


class _SampleFilter:
    """Decides, as a run does before it decodes the image, if a sample is left out."""

    def __init__(self, admission: AdmissionConfig | None) -> None:
        self._admission = admission
        name = admission.predicate if admission else ""
        self._predicate = resolve_predicate(name) if name else None

    def reject_reason(self, sample: Sample) -> Reason | None:
        """Return the reason to leave a sample out; None if it is kept."""
        if self._admission is None:
            return None
        image = admit(sample, self._admission)
        if isinstance(image, Reject):
            return image.reason
        rejected = apply_predicate(self._predicate, sample, image) if self._predicate else None
        return rejected[0] if rejected else None


def _check_lost(name: str, download: DownloadConfig, num_read: int, lost: Counter[str]) -> None:
    """Raise PackFailed if the network lost too many images: it may be down."""
    if lost.total() > download.max_lost_fraction * num_read:
        reasons = ", ".join(f"{count} {reason}" for reason, count in lost.most_common())
        raise PackFailed(
            f"{lost.total()} of {num_read} images of {name} were lost to the network "
            f"({reasons}), at most {download.max_lost_fraction:.0%} may be; start the same command "
            "again when the network is back, it goes on where it was, or raise "
            "--download.max-lost-fraction"
        )


class ShardFile:
    """Tar that is written sample by sample. Leaving its context without an error completes it.

    Headers are plain USTAR, with a PAX header for a name that does not fit. A key that the shard
    has already gets a number, and dots of a file name become underscores: WebDataset ends a key at
    the first dot.
    """

    def __init__(self, path: Path) -> None:
        self.num_samples = self.num_renamed = self.num_bytes = 0
        self._keys: dict[str, int] = {}
        self._digest = blake2b(digest_size=16)
        self._path = path
        self._file = open(path, "wb", buffering=_BUFFER)  # noqa: SIM115 - closed by __exit__

    @property
    def digest(self) -> str:
        """32 hex digits over all bytes written."""
        return self._digest.hexdigest()

    def add(self, key: str, fields: Mapping[str, bytes]) -> None:
        """Append a sample: a member `<key>.<extension>` for each field."""
        folder, slash, name = key.rpartition("/")
        key = self._unique_key(folder + slash + name.replace(".", "_"))
        for extension, data in fields.items():
            self._write(_header(f"{key}.{extension}" if extension else key, len(data)))
            self._write(data)
            self._write(bytes(-len(data) % BLOCK))
        self.num_samples += 1

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                end = self.num_bytes + 2 * BLOCK
                self._write(bytes(2 * BLOCK + -end % tarfile.RECORDSIZE))
                self._file.flush()
                # The side-car proves that these bytes are complete, even after a power failure.
                flush_descriptor(self._file.fileno(), self._path)
        finally:
            self._file.close()

    def _unique_key(self, key: str) -> str:
        """Return `key`, or the first of key-2, key-3, … that the shard does not have."""
        free, number = key, self._keys.get(key, 0)
        while free in self._keys:
            number += 1
            free = f"{key}-{number}"
        self._keys[free] = 1
        if free != key:
            self._keys[key] = number
            self.num_renamed += 1
        return free

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.num_bytes += len(data)


def _header(name: str, num_bytes: int) -> bytes:
    """Return the header of a regular file, after a PAX header if its name needs one."""
    encoded = name.encode("utf-8", "surrogateescape")
    if name.isascii() and len(encoded) <= _PLAIN_NAME_BYTES and num_bytes < 8**11:
        block = encoded.ljust(_PLAIN_NAME_BYTES, b"\0") + _BEFORE_SIZE + b"%011o\0" % num_bytes
        total = sum(block) + _SUM_AFTER_SIZE
        return block + _TIME + b"%06o\0 " % total + _AFTER_SUM
    info = tarfile.TarInfo(name)
    info.mode, info.size = 0o444, num_bytes
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _template() -> bytes:
    info = tarfile.TarInfo("x")
    info.mode = 0o444
    return info.tobuf(tarfile.USTAR_FORMAT)


# Constant parts of a header; variable are name [0, 100), size [124, 136), checksum [148, 156).
_BEFORE_SIZE: Final = _template()[100:124]
_TIME: Final = _template()[136:148]
_AFTER_SUM: Final = _template()[156:]
_SUM_AFTER_SIZE: Final = sum(_TIME) + 8 * ord(" ") + sum(_AFTER_SUM)
