"""Folder of a store that is written to: put whole objects, list, read and remove them."""

import posixpath
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from shards.errors import ManifestError, PackFailed
from shards.redaction import cause_to_show, redact, short
from shards.stores.failures.remedies import refusal
from shards.stores.retry import RetriesExhausted, RetryConfig
from shards.stores.store_clients import Stores

# Name of the file that marks a folder with missing shards.
UNFINISHED: Final = "pack.unfinished.json"

# In these stores an object appears whole or not at all; in others it is uploaded as a draft and
# then renamed.
_OBJECT_STORES: Final = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory")
_DRAFT: Final = ".part"


class StoreFolder:
    """Objects directly in one folder of a store.

    Raises PackFailed when the store does not answer, and ManifestError for an unknown store.
    """

    def __init__(self, uri: str, retry: RetryConfig | None = None) -> None:
        self._root = uri.rstrip("/")
        self._protocol = uri.partition("://")[0]
        self._store = Stores(retry or RetryConfig()).open(uri)
        if self._protocol in ("http", "https"):
            raise ManifestError(
                f"{redact(uri)!r} is on the web; shards are written to a folder or to a store such "
                "as s3://bucket/prefix; give one of these"
            )

    def list(self) -> dict[str, int]:
        """Return names and sizes, without drafts; folders end in a slash and have size -1."""
        found: dict[str, int] = {}
        with self._explained("listed"), _ignore_missing():
            for entry in self._store.list_folder(self._root, ""):
                name = posixpath.basename(entry.uri.rstrip("/"))
                if entry.is_folder:
                    found[f"{name}/"] = -1
                elif name and not (name.startswith(".") and name.endswith(_DRAFT)):
                    found[name] = entry.num_bytes or 0
        return found

    def read(self, name: str) -> bytes | None:
        """Return all bytes of an object; None if it does not exist."""
        data: bytes | None = None
        with self._explained("read"), _ignore_missing():
            data = self._store.client.call(lambda: self._store.filesystem.cat_file(self._uri(name)))
        return data

    def put(self, name: str, file: Path) -> None:
        """Upload a local file."""
        self._put(name, lambda uri: self._store.filesystem.put_file(str(file), uri))

    def write(self, name: str, data: bytes) -> None:
        """Upload bytes."""
        self._put(name, lambda uri: self._store.filesystem.pipe_file(uri, data))

    def remove(self, name: str) -> None:
        """Delete an object, if it exists."""
        with self._explained("written to"), _ignore_missing():
            self._store.client.call(lambda: self._store.filesystem.rm_file(self._uri(name)))

    def _put(self, name: str, write: Callable[[str], object]) -> None:
        """Create an object that readers see whole or not at all."""
        call = self._store.client.call
        with self._explained("written to"):
            if self._protocol in _OBJECT_STORES:
                call(lambda: write(self._uri(name)))
                return
            draft = self._uri(f".{name}{_DRAFT}")
            call(lambda: self._store.filesystem.makedirs(self._root, exist_ok=True))
            call(lambda: write(draft))
            call(lambda: self._store.filesystem.mv(draft, self._uri(name)))

    def _uri(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Convert a final failure to PackFailed with a remedy."""
        try:
            yield
        except RetriesExhausted as exhausted:
            error = exhausted.error
            if exhausted.failure.kind in ("refused", "certificate"):
                raise PackFailed(
                    f"{refusal(self._root, exhausted.failure, error)}; a pack must be able to "
                    "list, read and write its store; then start the same command again: it goes "
                    "on where it was"
                ) from cause_to_show(self._root, error)
            raise PackFailed(
                f"{redact(self._root)} could not be {what} in {exhausted.num_attempts} attempts "
                f"({short(error)}); a pack must be able to list, read and write its store; check "
                "address, credentials and network, then start the same command again: it goes on "
                "where it was"
            ) from cause_to_show(self._root, error)


@contextmanager
def _ignore_missing() -> Iterator[None]:
    try:
        yield
    except RetriesExhausted as exhausted:
        if exhausted.failure.kind != "gone":
            raise
