"""Shards as the source of a pack: joined where the members of samples lie apart."""

import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence

from shards.crops.chunk_cropper import check_subset
from shards.errors import ConfigError
from shards.inspect.layout_report import probe_layout
from shards.member_names import Keys
from shards.pack.image_entries import LabelMode
from shards.pack.pack_plan import PackSource
from shards.pack.reshard import ShardsSource
from shards.pack.sources.class_folders import describe_classes
from shards.pack.sources.join import Join, JoinedSource, check_can_join
from shards.pack.sources.member_index import MemberIndex, index_members
from shards.pack.store_lookup import StoreLookup
from shards.records import Sample, ShardInfo
from shards.redaction import redact
from shards.samples.admission_config import AdmissionConfig
from shards.samples.class_numbers import CLASSES_FILE
from shards.samples.labels import find_label, label_candidates
from shards.samples.subset_file import load_subset
from shards.stores.range_reader import RangeReader
from shards.stores.store import store_name
from shards.stream.manifest import Manifest
from shards.stream.manifest_listing import open_manifest
from shards.tars.chunk_reader import read_shard_head

# Bytes of the first shard in which a label must be found, if labels are required.
_HEAD_BYTES = 1 << 20
# Local shards up to this size are searched for members that lie apart, header by header; from
# others only a few parts are read.
_MAX_CHEAP_BYTES = 1 << 30
# Share of groups that complement an earlier group of their key by chance.
_MAX_CHANCE = 0.1


def open_shards(
    pattern: str, labels: LabelMode, subset: str | None, keys: Keys, join: Join
) -> PackSource:
    """Return the shards that match `pattern`, joined if `join` says so or the shards show it."""
    reader = RangeReader()
    manifest = open_manifest(pattern, reader, keys=keys)
    chosen = None if subset is None else load_subset(subset)
    if chosen is not None:
        check_subset(chosen, manifest.shards, reader)
    notes = list(_listing_notes(manifest))
    names = () if labels == "none" else _class_names(manifest.shards, reader, notes)
    if names:
        notes.append(describe_classes(names, f"from {CLASSES_FILE}"))
    if join == "yes" or (join == "auto" and _may_lie_apart(manifest, reader)):
        check_can_join(manifest.shards)
        index = index_members(manifest.shards, reader)
        num_joined = index.num_adjacent - len(index.groups)
        if num_joined > (0 if join == "yes" else _MAX_CHANCE * index.num_adjacent):
            return JoinedSource(
                name=redact(pattern),
                manifest=manifest,
                index=index,
                subset=chosen,
                class_names=names,
                skipped=Counter(reject.reason for reject in index.rejects),
                notes=(*notes, *_join_notes(index)),
            )
        if num_joined > 0:
            notes.append(
                f"{num_joined:,} of {index.num_adjacent:,} groups of members have the key of an "
                "earlier group that lacks these members; give --join yes to join them"
            )
        elif join == "yes":
            notes.append("the members of each sample are adjacent already: nothing is joined")
    if labels == "required":
        _check_labels(manifest.shards[0], reader)
    return ShardsSource(
        name=redact(pattern),
        manifest=manifest,
        subset=chosen,
        class_names=names,
        notes=tuple(notes),
    )


def _may_lie_apart(manifest: Manifest, reader: RangeReader) -> bool:
    """Return True if members seem to lie apart, or if reading all headers is cheap."""
    can_join = not any(shard.whole for shard in manifest.shards)
    is_near = all(store_name(shard.uri) == "file" for shard in manifest.shards)
    if can_join and is_near and manifest.num_bytes <= _MAX_CHEAP_BYTES:
        return True
    return probe_layout(manifest, reader, AdmissionConfig()).counts.lies_apart


def _listing_notes(manifest: Manifest) -> Iterator[str]:
    if any(shard.names.keys == "last_dot" for shard in manifest.shards):
        yield (
            "keys end at the last dot of a file name; their other dots become underscores, since "
            "WebDataset ends a key at the first dot"
        )
    if manifest.empty:
        yield f"{_first(manifest.empty)} holds 0 bytes: nothing is packed from it"
    if manifest.unfinished:
        yield (
            f"{_first(manifest.unfinished)} has no _stats.json beside it, as other shards have: "
            "its download is unfinished, and it is packed as far as it goes; pack again into "
            "another folder when it is complete"
        )


def _join_notes(index: MemberIndex) -> Iterator[str]:
    yield f"{len(index.groups):,} samples joined from {index.num_adjacent:,} groups of members"
    if index.num_without_image:
        lonely = next(group.key for group in index.groups if not group.has_image)
        yield f"{index.num_without_image:,} groups without an image, such as {lonely!r}, are kept"
    if index.repeated:
        yield (
            f"{len(index.repeated):,} keys have several samples, such as {min(index.repeated)!r}: "
            "their members are joined in file order; give --join no to keep the groups as they are"
        )
    if index.num_hidden:
        yield f"{index.num_hidden:,} hidden files, such as .DS_Store, are left out"
    if index.rejects:
        yield f"{len(index.rejects):,} members cannot be read, the first: {index.rejects[0].name}"


def _class_names(
    shards: Sequence[ShardInfo], reader: RangeReader, notes: list[str]
) -> tuple[str, ...]:
    """Return the class names beside the shards. Raises ConfigError if folders differ in them."""
    lookup = StoreLookup(reader)
    folders = sorted({posixpath.dirname(shard.uri) for shard in shards})
    found: dict[tuple[str, ...], str] = {}
    num_named = 0
    for folder in folders:
        # Packs are never written to a web server, and each look-up is a request.
        data = None if folder.startswith("http") else lookup.read(f"{folder}/{CLASSES_FILE}")
        names = tuple((data or b"").decode("utf-8-sig", "replace").splitlines())
        num_named += bool(names)
        if names:
            found.setdefault(names, redact(folder))
    if len(found) > 1:
        first, second = list(found.values())[:2]
        raise ConfigError(
            f"{first} and {second} have different {CLASSES_FILE}, so a class number means another "
            "class in each; pack each folder by itself, or give --labels none to keep the numbers "
            "without names"
        )
    if found and num_named < len(folders):
        notes.append(
            f"{CLASSES_FILE} of {next(iter(found.values()))} is not taken: other folders have none"
        )
        return ()
    return next(iter(found), ())


def _check_labels(shard: ShardInfo, reader: RangeReader) -> None:
    """Raise ConfigError if no sample at the start of a shard has a label."""
    found = read_shard_head(reader, shard, _HEAD_BYTES).found
    samples = [item for item in found if isinstance(item, Sample)]
    if any(find_label(sample) is not None for sample in samples):
        return
    candidates = {name for sample in samples for name in label_candidates(sample)}
    names = sorted(filter(str.isidentifier, candidates))
    others = f", only {', '.join(names[:8])}" if names else ""
    raise ConfigError(
        f"--labels required, but {redact(shard.uri)} has no label in a member cls, label or class, "
        f"nor in such a field of its JSON{others}; leave --labels out to pack without"
    )


def _first(uris: Sequence[str]) -> str:
    more = f" (and {len(uris) - 1:,} more)" if len(uris) > 1 else ""
    return f"{redact(uris[0])}{more}"
