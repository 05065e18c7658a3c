"""Look-ups in stores for a pack: files of a folder, one file, its bytes."""

from collections.abc import Callable
from typing import TypeVar

from shards.errors import ManifestError
from shards.records import ShardInfo
from shards.redaction import cause_to_show, redact, short
from shards.stores.failures.remedies import refusal
from shards.stores.range_reader import RangeReader
from shards.stores.retry import RetriesExhausted
from shards.stores.store import ListedFile, Store

T = TypeVar("T")


class StoreLookup:
    """Look-ups in any number of stores, through one reader.

    Raises ManifestError when a store does not answer or denies access, ShardUnreadable when it
    sends wrong bytes.
    """

    def __init__(self, reader: RangeReader | None = None) -> None:
        self._reader = reader or RangeReader()

    def files_below(self, folder: str) -> list[ListedFile] | None:
        """Return all files below `folder`, sorted by address; None if it is not a folder."""
        found = self._request(folder, lambda store: store.find(folder))
        if found is None:
            return None
        return sorted((e for e in found if not e.is_folder), key=lambda entry: entry.uri)

    def matching(self, pattern: str) -> list[ListedFile]:
        """Return the files that match a glob, sorted by address."""
        found = self._request(pattern, lambda store: store.glob(pattern))
        return sorted((e for e in found if not e.is_folder), key=lambda entry: entry.uri)

    def look_up(self, uri: str) -> ShardInfo | None:
        """Return the file of that name, if there is one."""
        listed = self._request(uri, lambda store: store.look_up(uri))
        if listed is None or listed.is_folder or listed.num_bytes is None:
            return None
        return ShardInfo(listed.uri, listed.num_bytes, listed.version)

    def read(self, uri: str) -> bytes | None:
        """Return all bytes of a file; None if it does not exist."""
        info = self.look_up(uri)
        return None if info is None else self._reader.read(info, 0, info.num_bytes)

    def _request(self, uri: str, request: Callable[[Store], T]) -> T:
        try:
            return request(self._reader.stores.open(uri))
        except RetriesExhausted as exhausted:
            if exhausted.failure.kind in ("refused", "certificate"):
                text = refusal(uri, exhausted.failure, exhausted.error)
                raise ManifestError(text) from cause_to_show(uri, exhausted.error)
            raise ManifestError(
                f"{redact(uri)} could not be read in {exhausted.num_attempts} attempts "
                f"({short(exhausted.error)}); it must exist and be readable; check address, "
                "credentials and network"
            ) from cause_to_show(uri, exhausted.error)
