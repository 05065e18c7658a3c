"""Shards whose samples lie apart, packed with the members of each key joined again.

A sample is planned, shuffled and read like a single image; its members are read as byte ranges of
the input shards.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from shards.errors import ConfigError
from shards.pack.fetch import ImageFetcher
from shards.pack.pack_plan import (
    PackConfig,
    PackPlan,
    PlannedRows,
    SamplesRead,
    ShardTask,
    SkippedSample,
    shard_bounds,
    shuffled,
)
from shards.pack.reshard import ShardsSource
from shards.pack.sources.member_index import MemberGroup, MemberIndex, StoredMember
from shards.records import Sample, ShardInfo
from shards.redaction import redact
from shards.samples.subset import Subset
from shards.stores.store import store_name
from shards.tars.cutter import MAX_SAMPLE_BYTES
from shards.tars.sparse_files import SparseMapError

Join = Literal["auto", "yes", "no"]

# Members of a sample that are no further apart are read with one request.
_MAX_GAP: Final = 1 << 16
# Samples that a subset list is applied to at once.
_NUM_SELECTED: Final = 64
# Bytes that could be copied while one sample is read.
_COST_PER_SAMPLE: Final = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class JoinedSource(ShardsSource):
    """Samples of input shards, joined by `index`, or those of them that `subset` selects."""

    index: MemberIndex

    @property
    def digest(self) -> str:
        """See `PackSource.digest`."""
        return self._digest_of("/joined")

    @property
    def unit(self) -> Literal["images", "bytes"]:
        return "images"

    def plan(self, config: PackConfig) -> PackPlan:
        """Assign the samples to shards."""
        groups = self.index.groups
        order = shuffled(len(groups), config.seed)
        sizes = np.array([group.num_bytes for group in groups], np.int64)
        bounds = shard_bounds(sizes[order], config.samples_per_shard, config.max_bytes)
        cost = int(sizes.sum()) + _COST_PER_SAMPLE * len(order)
        return JoinedPlan(self, order, bounds, cost)


class JoinedPlan(PlannedRows):
    """Plan in which shard n holds the samples of its rows."""

    def __init__(
        self, source: JoinedSource, order: NDArray[np.int64], bounds: NDArray[np.int64], cost: int
    ) -> None:
        super().__init__(order, bounds, cost)
        self._source = source

    def task(self, number: int, irregular: frozenset[int]) -> ShardTask:  # noqa: ARG002
        """See `PackPlan.task`."""
        groups = tuple(self._source.index.groups[row] for row in self._rows(number).tolist())
        used = {member.shard for group in groups for member in group.members}
        shards = {row: self._source.manifest.shards[row] for row in used}
        return JoinedTask(number, groups, shards)


@dataclass(frozen=True, slots=True)
class JoinedTask:
    """Samples of one shard, in order."""

    number: int
    groups: tuple[MemberGroup, ...]
    shards: Mapping[int, ShardInfo]
    variant: str = ""

    def read(self, fetcher: ImageFetcher, subset: Subset | None) -> Iterator[SamplesRead]:
        """See `ShardTask.read`."""
        read = partial(_read, fetcher, self.shards)
        is_far = any(store_name(shard.uri) != "file" for shard in self.shards.values())
        found = fetcher.in_order(read, self.groups) if is_far else map(read, self.groups)
        if subset is None:
            yield from found
            return
        while some := tuple(islice(found, _NUM_SELECTED)):
            yield _select(some, subset)


def check_can_join(shards: Sequence[ShardInfo]) -> None:
    """Raise ConfigError for shards whose members cannot be read one by one."""
    whole = next((redact(shard.uri) for shard in shards if shard.whole), None)
    if whole is None:
        return
    if whole.endswith((".tar", "/")):
        remedy = "copy the shards to a folder of this machine and pack that"
    else:
        tool = "zstd -d" if whole.endswith(".zst") else "gunzip -k"
        remedy = f"unpack each, such as `{tool} {shlex.quote(whole)}`, and pack the .tar"
    raise ConfigError(
        f"members of one sample lie apart in {whole}; only a plain .tar that can be read in ranges "
        f"is joined: {remedy}, or give --join no to keep the groups as they are"
    )


def _select(found: Sequence[SamplesRead], subset: Subset) -> SamplesRead:
    samples = [sample for one in found for sample in one.samples]
    chosen = subset.select(samples) if samples else ()
    kept = [sample for sample, is_in in zip(samples, chosen, strict=True) if is_in]
    skipped = [entry for one in found for entry in one.skipped]
    return SamplesRead(len(found), kept, skipped, len(samples) - len(kept))


def _read(
    fetcher: ImageFetcher, shards: Mapping[int, ShardInfo], group: MemberGroup
) -> SamplesRead:
    first = group.members[0]
    if group.num_bytes > MAX_SAMPLE_BYTES:
        return SamplesRead(1, skipped=(SkippedSample(group.key, "too_large"),))
    stored: dict[StoredMember, bytes] = {}
    for shard, start, stop, members in _spans(group.members):
        data = fetcher.reader.read(shards[shard], start, stop)
        for member in members:
            at = member.start - start
            stored[member] = data[at : at + member.num_bytes]
    try:
        fields = {
            member.extension: (
                member.sparse_map.fill(stored[member]) if member.sparse_map else stored[member]
            )
            for member in group.members
        }
    except SparseMapError:
        return SamplesRead(1, skipped=(SkippedSample(group.key, "broken_tar"),))
    return SamplesRead(1, samples=(Sample(first.shard, first.start, group.key, fields),))


def _spans(
    members: Sequence[StoredMember],
) -> Iterator[tuple[int, int, int, list[StoredMember]]]:
    """Yield byte ranges (shard, start, stop) that cover the members, with the members of each."""
    together: list[StoredMember] = []
    for member in sorted(members, key=lambda one: (one.shard, one.start)):
        last = together[-1] if together else None
        is_near = (
            last is not None
            and member.shard == last.shard
            and member.start - last.start - last.num_bytes <= _MAX_GAP
        )
        if not is_near and together:
            yield _span(together)
            together = []
        together.append(member)
    if together:
        yield _span(together)


def _span(members: list[StoredMember]) -> tuple[int, int, int, list[StoredMember]]:
    last = members[-1]
    return last.shard, members[0].start, last.start + last.num_bytes, members
