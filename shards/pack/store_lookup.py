"""What a packer asks of a store besides shards: the files of a folder, one file, all of it."""

from collections.abc import Callable
from typing import TypeVar

from shards.errors import ManifestError
from shards.records import ShardInfo
from shards.redaction import cause_to_show, redact, short
from shards.stores.range_reader import RangeReader
from shards.stores.retry import GivenUp
from shards.stores.store import Listed, Store

T = TypeVar("T")


class Lookups:
    """Any number of stores, through one reader. Raises ManifestError when one does not answer, or
    refuses to, and ShardUnreadable when it answers but does not send what it should."""

    def __init__(self, reader: RangeReader | None = None) -> None:
        self._reader = reader or RangeReader()

    def files_below(self, folder: str) -> list[Listed] | None:
        """All files below `folder`, sorted by address; None where it is no folder."""
        found = self._ask(folder, lambda store: store.find(folder))
        if found is None:
            return None
        return sorted((e for e in found if not e.is_folder), key=lambda entry: entry.uri)

    def look_up(self, uri: str) -> ShardInfo | None:
        """The file of that name; None where there is none."""
        listed = self._ask(uri, lambda store: store.look_up(uri))
        if listed is None or listed.is_folder or listed.num_bytes is None:
            return None
        return ShardInfo(listed.uri, listed.num_bytes, listed.version)

    def read(self, uri: str) -> bytes | None:
        """All of a file; None where there is none."""
        info = self.look_up(uri)
        return None if info is None else self._reader.read(info, 0, info.num_bytes)

    def _ask(self, uri: str, request: Callable[[Store], T]) -> T:
        try:
            return request(self._reader.stores.open(uri))
        except GivenUp as given_up:
            raise ManifestError(
                f"{redact(uri)} could not be read in {given_up.num_attempts} attempts "
                f"({short(given_up.error)}); it must be there, and readable; check address, "
                "credentials and network"
            ) from cause_to_show(uri, given_up.error)
