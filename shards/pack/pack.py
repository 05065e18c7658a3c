"""Packing of images, or of other shards, as tar shards in a folder or any store; resumable.

The shards have the layout of the `webdataset` library: a sample is `<key>.<ext>` with the
unchanged bytes of the image, and `<key>.cls` with its class number, if it has one. The same input
gives the same bytes for any number of workers, any target and any interruption.

After each shard its side-car is written, with its statistics. While shards are missing, the target
holds `pack.unfinished.json`, and listings of shards refuse it; `pack.json` is written last.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from shards.errors import UserError
from shards.pack.entry_plan import ImagesSource as ImagesSource
from shards.pack.pack_plan import PackConfig as PackConfig
from shards.pack.pack_plan import PackPlan, PackSource, ShardStats, describe
from shards.pack.pack_target import PackTarget, open_target
from shards.pack.shard_maker import PackJob, shard_name, sidecar_name
from shards.pack.worker_pool import make_shards
from shards.redaction import redact
from shards.samples.admission_config import AdmissionConfig
from shards.samples.class_numbers import CLASSES_FILE
from shards.samples.predicate import resolve_predicate
from shards.stores.image_download import DownloadConfig
from shards.stores.uploads import UNFINISHED

REPORT_FILE: Final = "pack.json"
# Concurrent reads of side-cars: they are small, and a store answers each slowly.
_NUM_READS: Final = 16
# Work in bytes for which one more process is started: its start takes more than a second.
_BYTES_PER_WORKER: Final = 1 << 32


@dataclass(frozen=True, kw_only=True, slots=True)
class PackReport:
    """Totals of a pack. `skipped` counts the images that were left out, by reason.

    `digest` covers the digests of all shards, in order. `num_renamed` samples have a new key
    because theirs was taken, `num_unselected` are not in the subset list, `num_hidden` files are
    those of operating systems. `reused` is True if the pack was complete already; `num_found`
    shards were complete already.
    """

    out: str
    num_samples: int
    num_shards: int
    num_bytes: int
    digest: str
    num_renamed: int = 0
    num_unselected: int = 0
    num_hidden: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    reused: bool = False
    num_found: int = 0


class PackProgress:
    """Handler of progress reports that ignores them; subclasses show them."""

    def begin(self, num_units: int, unit: str) -> None:
        """Receive the total work, in images or in bytes of the input."""

    def advance(self, num_units: int) -> None:
        """Receive the work done since the last call."""

    def message(self, text: str) -> None:
        """Receive a message for the user."""


def pack(
    source: PackSource,
    out: Path | str,
    config: PackConfig | None = None,
    *,
    download: DownloadConfig | None = None,
    admission: AdmissionConfig | None = None,
    num_workers: int | None = 1,
    progress: PackProgress | None = None,
) -> PackReport:
    """Write `source` as shards to `out`, with classes.txt and pack.json beside them.

    Shards that an earlier call finished from the same input are kept. Samples that cannot be read
    are left out, with `admission` also those that it rejects. `num_workers` processes run side by
    side; None chooses by the amount of work, at most one for each core. Raises UserError when
    `out` holds anything else, or when the source has no image; PackFailed and ShardUnreadable for
    failures that may pass.
    """
    config, download = config or PackConfig(), download or DownloadConfig()
    if admission is not None and admission.predicate:
        resolve_predicate(admission.predicate)
    target = open_target(str(out))
    rules = {} if admission is None else {"admission": asdict(admission)}
    # A size limit decides which images are packed, so it is part of the inputs.
    inputs = describe(source, config, max_image_bytes=download.max_bytes, **rules)
    work = _PackRun(source, str(out), config, target, inputs, progress or PackProgress())
    try:
        with target.hold(work.progress.message) as scratch:
            for note in source.notes:
                work.progress.message(note)
            if work.begin():
                return work.reuse()
            job = PackJob(
                target=str(out),
                scratch=scratch,
                made_from=work.made_from,
                config=config,
                download=download,
                admission=admission,
                subset=source.subset,
            )
            return work.finish(work.make_all(job, num_workers))
    except OSError as error:
        raise UserError(
            f"{redact(str(out))} cannot be written to ({error.strerror or error}); a pack needs "
            "free space and write permission: free space there, or give another place"
        ) from error


class _PackRun:
    """One call of `pack`: finds finished shards, makes the missing ones, writes the report."""

    def __init__(
        self,
        source: PackSource,
        out: str,
        config: PackConfig,
        target: PackTarget,
        inputs: dict[str, Any],
        progress: PackProgress,
    ) -> None:
        self._source, self._out, self._config, self._target = source, redact(out), config, target
        self._inputs, self.progress = inputs, progress
        self.made_from = blake2b(json.dumps(inputs).encode(), digest_size=16).hexdigest()
        self._num_found = 0

    def begin(self) -> bool:
        """Mark the target as unfinished. Return True if it holds a complete pack already.

        Raises UserError when it holds anything else.
        """
        self._files = self._target.list()
        if UNFINISHED in self._files:
            self._check_inputs(self._target.read(UNFINISHED))
            return False
        if REPORT_FILE in self._files:
            return True
        if self._files:
            raise self._refusal()
        self._target.write(UNFINISHED, _to_json({"inputs": self._inputs}))
        return False

    def reuse(self) -> PackReport:
        """Return the report of the complete pack in the target."""
        saved = self._check_inputs(self._target.read(REPORT_FILE))
        try:
            is_complete = all(
                self._files[shard["name"]] == shard["num_bytes"] for shard in saved["shards"]
            )
            if is_complete:
                return PackReport(
                    out=self._out,
                    reused=True,
                    num_found=len(saved["shards"]),
                    **saved["report"],
                )
        except (KeyError, TypeError):
            pass
        raise self._refusal()

    def make_all(self, job: PackJob, num_workers: int | None) -> list[ShardStats]:
        """Make the missing shards. Return the statistics of all shards, in order."""
        plan = self._source.plan(self._config)
        made = self._find(plan)
        self._num_found = len(made)
        if num_workers is None:
            max_workers = 1 + plan.cost() // _BYTES_PER_WORKER
            num_workers = min(len(os.sched_getaffinity(0)), max_workers)
        try:
            while missing := self._missing(plan, made):
                self.progress.begin(sum(map(plan.units, missing)), self._source.unit)
                job = replace(job, num_workers=min(num_workers, len(missing)))
                irregular = _irregular(made)
                tasks = (plan.task(number, irregular) for number in missing)
                for stats in make_shards(job, self._target, tasks, self.progress.advance):
                    made[stats.number] = stats
        except KeyboardInterrupt:
            self.progress.message(
                f"{len(made)} of {plan.num_shards} shards are finished; the same command goes on"
            )
            raise
        return [made[number] for number in range(plan.num_shards)]

    def finish(self, made: list[ShardStats]) -> PackReport:
        """Write the last files, which complete the pack."""
        report = self._report(made)
        if not report.num_samples:
            for name in (*self._names(len(made)), UNFINISHED):
                self._target.remove(name)
            raise UserError(_no_image_message(self._source, report.skipped))
        if self._source.class_names:
            lines = (" ".join(name.splitlines()) + "\n" for name in self._source.class_names)
            text = "".join(lines).encode("utf-8", "backslashreplace")
            self._target.write(CLASSES_FILE, text)
        counts = asdict(report)
        for name in ("out", "reused", "num_found"):
            del counts[name]
        shards = [
            {"name": shard_name(self._config, shard.number), "num_samples": shard.num_samples,
             "num_bytes": shard.num_bytes, "digest": shard.digest}
            for shard in made
        ]  # fmt: skip
        fields = {"report": counts, "inputs": self._inputs, "shards": shards}
        self._target.write(REPORT_FILE, _to_json(fields))
        self._target.remove(UNFINISHED)
        return report

    def _find(self, plan: PackPlan) -> dict[int, ShardStats]:
        """Return the complete shards of this pack, by their side-cars."""

        def read(number: int) -> ShardStats | None:
            stats = ShardStats.from_json(
                self._target.read(sidecar_name(self._config, number)) or b""
            )
            name = shard_name(self._config, number)
            if stats is None or stats.number != number or stats.num_bytes != self._files.get(name):
                return None
            return stats if stats.made_from.startswith(self.made_from) else None

        found = [n for n in range(plan.num_shards) if sidecar_name(self._config, n) in self._files]
        with ThreadPoolExecutor(_NUM_READS) as pool:
            return {stats.number: stats for stats in pool.map(read, found) if stats is not None}

    def _missing(self, plan: PackPlan, made: Mapping[int, ShardStats]) -> list[int]:
        """Return the shards that were not made, or before an input was known to be irregular."""
        irregular = _irregular(made)
        return [
            number
            for number in range(plan.num_shards)
            if number not in made
            or made[number].made_from != self.made_from + plan.variant(number, irregular)
        ]

    def _report(self, made: list[ShardStats]) -> PackReport:
        skipped = Counter(self._source.skipped)
        digest = blake2b(digest_size=16)
        for shard in made:
            skipped.update({reason: len(names) for reason, names in shard.left_out.items()})
            digest.update(bytes.fromhex(shard.digest))
        return PackReport(
            out=self._out,
            num_samples=sum(shard.num_samples for shard in made),
            num_shards=len(made),
            num_bytes=sum(shard.num_bytes for shard in made),
            digest=digest.hexdigest(),
            num_renamed=sum(shard.num_renamed for shard in made),
            num_unselected=sum(shard.num_unselected for shard in made),
            num_hidden=sum(shard.num_hidden for shard in made),
            skipped=dict(sorted(skipped.items())),
            num_found=self._num_found,
        )

    def _names(self, num_shards: int) -> list[str]:
        numbers = range(num_shards)
        names = [shard_name(self._config, number) for number in numbers]
        return names + [sidecar_name(self._config, number) for number in numbers]

    def _check_inputs(self, data: bytes | None) -> dict[str, Any]:
        try:
            saved: dict[str, Any] = json.loads(data or b"")
            if saved["inputs"] == self._inputs:
                return saved
        except (ValueError, TypeError, KeyError):
            pass
        raise self._refusal()

    def _refusal(self) -> UserError:
        return UserError(
            f"{self._out} exists and is not a complete pack of these images with these settings, "
            "nor an unfinished one; shards go into a new or empty folder; name another, or "
            "remove this one"
        )


def _irregular(made: Mapping[int, ShardStats]) -> frozenset[int]:
    """Return the input shards that must be read from byte 0: a member is longer than a chunk."""
    return frozenset(row for stats in made.values() for row in stats.leaps)


def _to_json(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, indent=2).encode() + b"\n"


def _no_image_message(source: PackSource, skipped: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    return (
        f"no image found in {source.name} ({reasons or 'it is empty'}); at least one file must "
        f"be a readable image; check the path"
    )
