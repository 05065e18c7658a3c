"""Images, or other shards, become tar shards: in a folder or in any store, all or resumably.

The shards are what the `webdataset` library reads and writes: a sample is `<key>.<ext>` with the
image's own bytes, never encoded anew, and `<key>.cls` with its class number where it has one.
The same input gives the same bytes, whoever writes them, wherever, after whatever interruption.

Beside every shard lies a side-car, which is written behind it and says what became of it. While
shards are missing `pack.unfinished.json` lies there, and whoever lists shards refuses the place;
`pack.json` comes last.
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
from shards.samples.predicate import resolve_predicate
from shards.stores.image_download import DownloadConfig
from shards.stores.uploads import UNFINISHED

CLASSES_FILE: Final = "classes.txt"
REPORT_FILE: Final = "pack.json"
# Side-cars are small, and a store takes its time over each.
_NUM_READS: Final = 16
# A process takes more than a second to start, and single images are packed fast without it.
_WORTH_A_WORKER: Final = 1 << 32


@dataclass(frozen=True, kw_only=True, slots=True)
class PackReport:
    """What lies in `out`. `skipped` maps a reason to how many images were left out for it.

    `digest` is of all shards' digests, in order; `num_bytes` their length. `num_renamed` samples
    have another key because it was taken, `num_unselected` were not in the subset list. `reused`
    says that everything was there already; `num_found` how many shards were.
    """

    out: str
    num_samples: int
    num_shards: int
    num_bytes: int
    digest: str
    num_renamed: int = 0
    num_unselected: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    reused: bool = False
    num_found: int = 0


class PackProgress:
    """What a caller may want to see of a pack; does nothing. To be derived from."""

    def begin(self, num_units: int, unit: str) -> None:
        """So much work lies ahead, in images or in bytes of the input."""

    def advance(self, num_units: int) -> None:
        """So much of it was done."""

    def message(self, text: str) -> None:
        """Something worth a line."""


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

    What an earlier call finished of the same input is left as it is, all of it or some shards.
    With `admission` is left out what it rejects, without it what cannot be read. `num_workers`
    processes work side by side; None: a core each, where there is enough work. Raises UserError
    when `out` holds anything else, or when the source has no image; PackFailed and
    ShardUnreadable for what may go better another time.
    """
    config, download = config or PackConfig(), download or DownloadConfig()
    if admission is not None and admission.predicate:
        resolve_predicate(admission.predicate)
    target = open_target(str(out))
    rules = {} if admission is None else {"admission": asdict(admission)}
    # What was bounded otherwise is another content.
    inputs = describe(source, config, max_image_bytes=download.max_bytes, **rules)
    work = _PackRun(source, str(out), config, target, inputs, progress or PackProgress())
    try:
        with target.hold(work.progress.message) as scratch:
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
            f"{redact(str(out))} cannot be written to ({error.strerror or error}); a pack needs a "
            "place with room that it may write to: make room there, or give another one"
        ) from error


class _PackRun:
    """One call of `pack`: what is there, what is missing, and the last steps."""

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
        """Look at what is there, and mark the place as unfinished. Whether all is there already.

        Raises UserError when it is something else.
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
        """The report of the complete pack that is there."""
        saved = self._check_inputs(self._target.read(REPORT_FILE))
        try:
            whole = all(
                self._files[shard["name"]] == shard["num_bytes"] for shard in saved["shards"]
            )
            if whole:
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
        """Make the shards that are missing; all of them, in order."""
        plan = self._source.plan(self._config)
        made = self._find(plan)
        self._num_found = len(made)
        if num_workers is None:
            worth = 1 + plan.cost() // _WORTH_A_WORKER
            num_workers = min(len(os.sched_getaffinity(0)), worth)
        try:
            while wanted := self._missing(plan, made):
                self.progress.begin(sum(map(plan.units, wanted)), self._source.unit)
                job = replace(job, num_workers=min(num_workers, len(wanted)))
                irregular = _irregular(made)
                tasks = (plan.task(number, irregular) for number in wanted)
                for stats in make_shards(job, self._target, tasks, self.progress.advance):
                    made[stats.number] = stats
        except KeyboardInterrupt:
            self.progress.message(
                f"{len(made)} of {plan.num_shards} shards are finished; the same command goes on"
            )
            raise
        return [made[number] for number in range(plan.num_shards)]

    def finish(self, made: list[ShardStats]) -> PackReport:
        """The last files; with them the pack is complete."""
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
        """The shards whose side-cars say that they are complete, and of this pack."""

        def look(number: int) -> ShardStats | None:
            stats = ShardStats.from_json(
                self._target.read(sidecar_name(self._config, number)) or b""
            )
            name = shard_name(self._config, number)
            if stats is None or stats.number != number or stats.num_bytes != self._files.get(name):
                return None
            return stats if stats.made_from.startswith(self.made_from) else None

        there = [n for n in range(plan.num_shards) if sidecar_name(self._config, n) in self._files]
        with ThreadPoolExecutor(_NUM_READS) as pool:
            return {stats.number: stats for stats in pool.map(look, there) if stats is not None}

    def _missing(self, plan: PackPlan, made: Mapping[int, ShardStats]) -> list[int]:
        """Shards that are not there, or were cut before an input was known to be irregular."""
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
            "nor the beginning of one; shards go into a new or empty folder; name another, or "
            "remove this one"
        )


def _irregular(made: Mapping[int, ShardStats]) -> frozenset[int]:
    """Input shards that must be walked through: a chunk of theirs cannot be told from the next."""
    return frozenset(row for stats in made.values() for row in stats.leaps)


def _to_json(fields: Mapping[str, Any]) -> bytes:
    return json.dumps(fields, indent=2).encode() + b"\n"


def _no_image_message(source: PackSource, skipped: Mapping[str, int]) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(skipped.items()))
    return (
        f"no image found in {source.name} ({reasons or 'it is empty'}); at least one file must "
        f"be an image that can be read; check the path"
    )
