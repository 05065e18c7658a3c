"""Index of shards whose samples lie apart: the members of each key, joined again.

`tar` writes a folder in the order of the file system, and some tools write all images before all
labels. The members of a sample are then not adjacent, and readers of shards take each group of
adjacent members for a sample of its own.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from shards.pack.pack_plan import SkippedSample
from shards.records import Reject, ShardInfo
from shards.redaction import redact
from shards.samples.image_member import image_extension
from shards.stores.range_reader import RangeReader
from shards.tars.cutter import MAX_EXPANSION, MAX_SAMPLE_BYTES, walk_members
from shards.tars.header_fields import padded
from shards.tars.headers import BLOCK, TarMember
from shards.tars.read_window import MIN_STEP, ReadWindow
from shards.tars.sparse_files import SparseMap

# Shards that are indexed at the same time; each is read once.
_NUM_SHARDS: Final = 8


class StoredMember(NamedTuple):
    """Place of the bytes of one member."""

    shard: int
    extension: str
    start: int
    num_bytes: int
    sparse_map: SparseMap | None = None


@dataclass(slots=True)
class MemberGroup:
    """Members that share a key and form one sample, in file order."""

    key: str
    members: list[StoredMember] = field(default_factory=list)

    def lacks(self, extension: str) -> bool:
        """Return True if no member has this extension."""
        return all(member.extension != extension for member in self.members)

    @property
    def has_image(self) -> bool:
        """True if the name of a member is that of an image, or says nothing."""
        names = (member.extension for member in self.members)
        return any(image_extension(name) or not name.replace(".", "").isalnum() for name in names)

    @property
    def num_bytes(self) -> int:
        """Bytes in a tar, headers included."""
        sizes = (m.sparse_map.num_bytes if m.sparse_map else m.num_bytes for m in self.members)
        return sum(BLOCK + padded(size) for size in sizes)


@dataclass(slots=True)
class MemberIndex:
    """Samples of all shards, in the order of their first members.

    `num_adjacent` groups of adjacent members were found. `repeated` keys have several samples.
    """

    groups: list[MemberGroup] = field(default_factory=list)
    num_adjacent: int = 0
    num_hidden: int = 0
    repeated: set[str] = field(default_factory=set)
    rejects: list[SkippedSample] = field(default_factory=list)

    @property
    def num_without_image(self) -> int:
        """Number of samples without an image."""
        return sum(not group.has_image for group in self.groups)


def index_members(shards: Sequence[ShardInfo], reader: RangeReader) -> MemberIndex:
    """Read the headers of all shards, and join the members of each key. Raises ShardUnreadable."""
    total = MemberIndex()
    with ThreadPoolExecutor(_NUM_SHARDS, "index") as pool:
        for found in pool.map(lambda row: _index(row, shards[row], reader), range(len(shards))):
            total.groups += found.groups
            total.num_adjacent += found.num_adjacent
            total.num_hidden += found.num_hidden
            total.repeated |= found.repeated
            total.rejects += found.rejects
    total.groups = _join_shards(total.groups)
    return total


def _index(row: int, shard: ShardInfo, reader: RangeReader) -> MemberIndex:
    index = MemberIndex()
    by_key: dict[str, list[MemberGroup]] = {}
    before: MemberGroup | None = None  # of the member before
    adjacent: tuple[str, set[str]] | None = None
    for member in _walk(shard, reader):
        if isinstance(member, Reject):
            name = f"{redact(shard.uri)} at byte {member.offset}"
            index.rejects.append(SkippedSample(name, member.reason))
            before = adjacent = None
            continue
        index.num_hidden += member.hidden
        if not member.regular:
            continue
        key, extension = member.key, member.extension
        if adjacent is None or adjacent[0] != key or extension in adjacent[1]:
            index.num_adjacent += 1
            adjacent = key, set()
        adjacent[1].add(extension)
        if (reason := _fault(member, shard.num_bytes)) is not None:
            index.rejects.append(SkippedSample(f"{redact(shard.uri)}: {member.name}", reason))
            continue
        groups = by_key.setdefault(key, [])
        if before is None or before.key != key or not before.lacks(extension):
            before = next((group for group in groups if group.lacks(extension)), None)
        if before is None:
            before = MemberGroup(key)
            groups.append(before)
            index.groups.append(before)
        place = member.data_start, member.num_bytes, member.sparse_map
        before.members.append(StoredMember(row, extension, *place))
    index.repeated = {key for key, groups in by_key.items() if len(groups) > 1}
    return index


def _walk(shard: ShardInfo, reader: RangeReader) -> Iterator[TarMember | Reject]:
    def read(start: int, stop: int) -> bytes:
        return reader.read(shard, start, stop)

    window = ReadWindow(read, shard.num_bytes, 0, MIN_STEP, MIN_STEP)
    return walk_members(window, 0, shard.num_bytes, shard.names)


def _fault(member: TarMember, size: int) -> str | None:
    """Return the reason to leave out a member."""
    if member.data_stop > size:
        return "truncated_tar"
    whole = member.num_bytes if member.sparse_map is None else member.sparse_map.num_bytes
    is_hollow = whole > MAX_EXPANSION * (member.end - member.start)
    return "too_large" if is_hollow or whole > MAX_SAMPLE_BYTES else None


def _join_shards(groups: list[MemberGroup]) -> list[MemberGroup]:
    """Join groups without an image to the only image of their key, in another shard.

    Only shards of side-cars are joined so, in which most groups have no image: in others an equal
    key is chance, because keys are often unique in one shard only.
    """
    images: dict[str, list[MemberGroup]] = {}
    num_lonely: Counter[int] = Counter()
    for group in groups:
        num_lonely[group.members[0].shard] += -1 if group.has_image else 1
        if group.has_image:
            images.setdefault(group.key, []).append(group)
    kept = []
    for group in groups:
        is_side_car = not group.has_image and num_lonely[group.members[0].shard] > 0
        owners = images.get(group.key, ()) if is_side_car else ()
        owner = owners[0] if len(owners) == 1 else None
        if owner is not None and all(owner.lacks(member.extension) for member in group.members):
            owner.members += group.members
        else:
            kept.append(group)
    return kept
