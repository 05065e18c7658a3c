"""Listing of shards: brace patterns, globs, folders and single names become sorted shards."""

import glob
import os
import posixpath
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from braceexpand import braceexpand

from shards.errors import ManifestError
from shards.member_names import is_hidden
from shards.records import ShardInfo
from shards.redaction import cause_to_show, redact, short
from shards.stores.failures.error_kinds import error_code
from shards.stores.failures.remedies import refusal
from shards.stores.retry import RetriesExhausted, RetryConfig
from shards.stores.store import ListedFile, Store, store_name
from shards.stores.store_clients import Stores
from shards.stores.uploads import UNFINISHED

_SHARD = re.compile(r"\.(tar|tar\.gz|tgz|tar\.zst)$", re.IGNORECASE)
_COMPRESSED = re.compile(r"\.(tar\.gz|tgz|tar\.zst)$", re.IGNORECASE)
_IMAGE = re.compile(r"\.(jpe?g|png|webp|tiff?|gif|bmp|avif|heic|jxl)$", re.IGNORECASE)
_GLOB = re.compile(r"[*\[]")
_PATTERN = re.compile(r"[*\[{?]")
# Fewer shards of a folder are looked up one by one: that is cheaper than a huge listing.
_MIN_NAMES_TO_LIST = 8
_NUM_THREADS = 16


def list_shards(pattern: str, stores: Stores | None = None) -> list[ShardInfo]:
    """Expand a brace pattern, a glob, a folder or a single shard into shards, sorted by URI.

    A path that exists is that path, whatever characters its name has. Hidden files of folders and
    globs are no shards. Shards of 0 bytes are listed, if there are others. Raises ManifestError
    when nothing matches, a named shard is missing, or access is refused.
    """
    stores = stores or Stores(RetryConfig())
    try:
        found = list(_list(stores, pattern))
        if not found and store_name(pattern) != "file" and _PATTERN.search(redact(pattern)):
            found = list(_list_literally(stores, pattern))
        shards = {shard.uri: shard for shard in _shards(stores, found)}
    except RetriesExhausted as exhausted:
        cause = cause_to_show(pattern, exhausted.error)
        raise ManifestError(_explain(pattern, exhausted)) from cause
    _check_no_table(pattern, [entry.uri for entry in found] or [pattern])
    if not shards:
        raise ManifestError(
            f"no shard matches {redact(pattern)!r}; give a folder, a glob such as 'dir/*.tar', "
            "a brace pattern such as 'dir/{0000..0099}.tar', or a single .tar file"
        )
    if not any(shard.num_bytes for shard in shards.values()):
        raise ManifestError(
            f"{redact(pattern)} holds 0 bytes in {len(shards)} shards; a shard is a tar of at "
            "least one sample: write it again, or name other shards"
        )
    return [shards[uri] for uri in sorted(shards)]


def _check_no_table(pattern: str, uris: Sequence[str]) -> None:
    """Refuse Parquet files, which hold images or their addresses but are no shards."""
    if any(redact(uri).lower().endswith(".parquet") for uri in uris):
        raise _table_error(redact(pattern))


def _table_error(name: str) -> ManifestError:
    return ManifestError(
        f"{name} holds Parquet, no shards; a shard is a tar of images: pack the images of the rows "
        f"with `{_pack_command(name)}`, and give OUT instead"
    )


def _image_error(name: str) -> ManifestError:
    return ManifestError(
        f"{name} holds images, no shards; a shard is a tar of images: pack them with "
        f"`{_pack_command(name)}`, and give OUT instead"
    )


def _pack_command(name: str) -> str:
    return shlex.join(["streamssl", "shards", "pack", name, "OUT"])


def find_unfinished(shards: Sequence[ShardInfo], stores: Stores) -> tuple[str, ...]:
    """Return the shards without the `_stats.json` that img2dataset writes after each, if others
    have one."""
    folders: dict[str, list[str]] = {}
    for shard in shards:
        if not shard.uri.startswith("http"):  # each look-up is a request
            folders.setdefault(posixpath.dirname(shard.uri), []).append(shard.uri)
    unfinished: list[str] = []
    for folder, uris in folders.items():
        store = stores.open(uris[0])
        probes = {uris[0], uris[len(uris) // 2], uris[-1]}
        try:
            if not any(_look_up_each(store, [_stats_file(uri) for uri in sorted(probes)])):
                continue
            present = {entry.uri for entry in store.list_folder(folder, "")}
        except RetriesExhausted:
            continue  # the shards may be readable all the same: S3 refuses what it does not list
        present = {posixpath.basename(uri) for uri in present}
        unfinished += [u for u in uris if posixpath.basename(_stats_file(u)) not in present]
    return tuple(unfinished)


def _stats_file(uri: str) -> str:
    return f"{_SHARD.sub('', uri)}_stats.json"


def _list(stores: Stores, pattern: str) -> Iterator[ListedFile]:
    plain: list[str] = []
    names = [pattern] if _exists(pattern) else _expand(pattern)
    for name in names:
        store = stores.open(name) if len(names) == 1 or _is_glob(name) else None
        if store is not None and _is_glob(name) and not _exists(name):
            matches = [entry for entry in store.glob(_escape(name)) if not _hidden(entry)]
            _check_finished(store, {posixpath.dirname(entry.uri) for entry in matches})
            yield from _with_sizes(store, matches)
        elif store is not None and (found := _find(store, name)) is not None:
            yield from _with_sizes(store, found)
        else:
            plain.append(name)
    yield from _look_up_names(stores, plain)


def _expand(pattern: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    folder, rest = _existing_folder(pattern)
    try:
        return [f"{folder}{name}" for name in braceexpand(rest)]
    except ValueError as error:
        raise ManifestError(
            f"the braces of {redact(pattern)!r} do not match; write {{0000..0099}} or {{a,b}}"
        ) from cause_to_show(pattern, error)


def _list_literally(stores: Stores, name: str) -> Iterator[ListedFile]:
    """List a folder or a shard of a store whose name has the characters of a pattern."""
    store = stores.open(name)
    try:
        found = _find(store, name)
        if found is not None:
            yield from _with_sizes(store, found)
        elif (entry := store.look_up(name)) is not None:
            yield entry
    except RetriesExhausted as exhausted:
        if exhausted.failure.kind not in ("gone", "refused", "bad_request"):
            raise  # some stores refuse such a name


def _exists(name: str) -> bool:
    """Return True for the name of a local file or folder, whatever characters it has."""
    return store_name(name) == "file" and os.path.exists(_local_path(name))


def _escape(pattern: str) -> str:
    """Escape the local folders that exist: 'data [v2]/*.tar' -> 'data [[]v2]/*.tar'."""
    folder, rest = _existing_folder(pattern)
    return f"{glob.escape(folder)}{rest}"


def _existing_folder(pattern: str) -> tuple[str, str]:
    """Split a local pattern after the last folder that exists; other stores have none."""
    if store_name(pattern) != "file":
        return "", pattern
    folder, slash, rest = _local_path(pattern).rpartition("/")
    while folder and not os.path.isdir(folder):
        folder, slash, part = folder.rpartition("/")
        rest = f"{part}/{rest}"
    return f"{folder}{slash}", rest


def _local_path(name: str) -> str:
    return os.path.expanduser(name.removeprefix("file://"))


def _hidden(entry: ListedFile) -> bool:
    """Return True for a file such as '._00000.tar', which macOS puts beside a shard."""
    return is_hidden(posixpath.basename(redact(entry.uri)))


def _is_glob(name: str) -> bool:
    return bool(_GLOB.search(redact(name))) or ("?" in name and store_name(name) == "file")


def _find(store: Store, name: str) -> list[ListedFile] | None:
    """Return the shards below `name`; None if it is not a folder."""
    # A web server would answer the test for a folder with the whole shard.
    if _SHARD.search(redact(name)) and store_name(name) != "file":
        return None
    found = store.find(name)
    unfinished = [e.uri for e in found or () if posixpath.basename(e.uri) == UNFINISHED]
    _check_finished(store, map(posixpath.dirname, unfinished))
    if found is None:
        return None
    shards = [e for e in found if _SHARD.search(redact(e.uri)) and not _hidden(e)]
    if not shards and any(_IMAGE.search(redact(e.uri)) and not _hidden(e) for e in found):
        raise _image_error(redact(name))
    if not shards and any(redact(e.uri).lower().endswith(".parquet") for e in found):
        raise _table_error(redact(name))
    return shards


def _check_finished(store: Store, folders: Iterable[str]) -> None:
    """Refuse folders in which `streamssl shards pack` has not finished."""
    marks = [f"{folder}/{UNFINISHED}" for folder in sorted(folders)]
    # Skipped for web servers: packs are never written there, and each look-up is a request.
    found = _look_up_each(store, [mark for mark in marks if not mark.startswith("http")])
    unfinished = [posixpath.dirname(entry.uri) for entry in found if entry is not None]
    if unfinished:
        raise ManifestError(
            f"{redact(unfinished[0])} holds an unfinished pack; its shards can be read when "
            "all are written: start the same `streamssl shards pack` again, it goes on where it was"
        )


def _with_sizes(store: Store, listed: Iterable[ListedFile]) -> Iterator[ListedFile]:
    """Add the sizes that listings of web servers do not contain."""
    entries = list(listed)
    unknown = [entry.uri for entry in entries if entry.num_bytes is None and not entry.is_folder]
    sizes = dict(zip(unknown, _look_up_each(store, unknown), strict=True))
    return (sizes.get(entry.uri) or entry for entry in entries)


def _look_up_names(stores: Stores, names: list[str]) -> Iterator[ListedFile]:
    """Yield the file of each name; a folder with many of them is listed once."""
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(posixpath.dirname(name), []).append(name)
    missing: list[str] = []
    for folder, members in folders.items():
        store = stores.open(members[0])
        if len(members) >= _MIN_NAMES_TO_LIST and not folder.startswith("http"):
            prefix = posixpath.commonprefix([posixpath.basename(name) for name in members])
            listed = {posixpath.basename(e.uri): e for e in store.list_folder(folder, prefix)}
            found = [listed.get(posixpath.basename(name)) for name in members]
        else:
            found = _look_up_each(store, members)
        missing += [name for name, entry in zip(members, found, strict=True) if entry is None]
        yield from (entry for entry in found if entry is not None)
    if len(names) == len(missing) == 1:
        raise ManifestError(
            f"{redact(names[0])} does not exist; give a folder, a glob, a brace pattern or a "
            "shard that does"
        )
    if missing:
        raise ManifestError(
            f"{len(missing)} of {len(names)} shards do not exist, the first is "
            f"{redact(missing[0])}; every name of a pattern must be there: correct the pattern, or "
            "give a glob such as '*.tar' for those that are there"
        )


def _look_up_each(store: Store, uris: list[str]) -> list[ListedFile | None]:
    if len(uris) < 2:
        return [store.look_up(uri) for uri in uris]
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        try:
            return list(pool.map(store.look_up, uris))
        except KeyboardInterrupt:
            store.client.stop()  # the pool waits for its threads
            raise


def _shards(stores: Stores, listed: Iterable[ListedFile]) -> Iterator[ShardInfo]:
    for entry in listed:
        name = redact(entry.uri)
        if entry.is_folder:
            raise ManifestError(
                f"{name} is a folder; a shard is a .tar file: give the folder itself, "
                "or a pattern of its files"
            )
        if entry.num_bytes is None:
            raise ManifestError(
                f"{name} has no known length; the server must answer with Content-Length: "
                "copy the shard to a store that does"
            )
        compressed = _COMPRESSED.search(name) is not None
        whole = compressed or not stores.open(entry.uri).can_range(entry.uri)
        yield ShardInfo(entry.uri, entry.num_bytes, entry.version, whole=whole)


def _explain(pattern: str, exhausted: RetriesExhausted) -> str:
    name, kind = redact(pattern), exhausted.failure.kind
    reason = short(exhausted.error, pattern)
    if kind in ("refused", "certificate") or "credential" in reason.lower():
        return refusal(pattern, exhausted.failure, exhausted.error)
    if error_code(exhausted.error) in ("NoSuchBucket", "ContainerNotFound"):
        return (
            f"there is no bucket {store_name(pattern)!r}; give the name of one that "
            "exists: check its spelling"
        )
    if kind == "gone":
        return f"{name!r} does not exist; give a folder, glob, brace pattern or .tar that does"
    return f"{name!r} could not be listed ({reason}); check the address and the network"
