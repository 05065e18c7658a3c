"""What a writer does with a store: put whole objects, list, read and remove them."""

import posixpath
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from shards.errors import ManifestError, PackFailed
from shards.redaction import cause_to_show, redact, short
from shards.stores.retry import GivenUp, RetryConfig
from shards.stores.store_clients import Stores

# Lies beside shards that are not all there yet.
UNFINISHED: Final = "pack.unfinished.json"

# In these an object appears whole or not at all. Anywhere else it gets its name when it is whole.
_OBJECTS: Final = ("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "memory")
_DRAFT: Final = ".part"


class Uploads:
    """The objects directly in one folder of a store. Raises PackFailed when the store does not
    answer, and ManifestError when there is no such store."""

    def __init__(self, uri: str, retry: RetryConfig | None = None) -> None:
        self._root = uri.rstrip("/")
        self._protocol = uri.partition("://")[0]
        stores = Stores(retry or RetryConfig())
        self._store = stores.open(uri)
        self._filesystem: Any = stores.filesystem(uri)
        if self._protocol in ("http", "https"):
            raise ManifestError(
                f"{redact(uri)!r} is on the web; shards are written to a folder or to a store such "
                "as s3://bucket/prefix; give one of these"
            )

    def list(self) -> dict[str, int]:
        """Names in the folder, drafts apart, and how many bytes they have; folders end in a slash
        and have -1."""
        found: dict[str, int] = {}
        with self._explained("list"), _nothing_where_gone():
            for entry in self._store.members(self._root, ""):
                name = posixpath.basename(entry.uri.rstrip("/"))
                if entry.is_folder:
                    found[f"{name}/"] = -1
                elif name and not (name.startswith(".") and name.endswith(_DRAFT)):
                    found[name] = entry.num_bytes or 0
        return found

    def read(self, name: str) -> bytes | None:
        """All of an object; None where there is none."""
        data: bytes | None = None
        with self._explained("read"), _nothing_where_gone():
            data = self._store.ask(lambda: self._filesystem.cat_file(self._uri(name)))
        return data

    def put(self, name: str, file: Path) -> None:
        """Copy a whole file there."""
        self._appear(name, lambda uri: self._filesystem.put_file(str(file), uri))

    def write(self, name: str, data: bytes) -> None:
        """Put these bytes there."""
        self._appear(name, lambda uri: self._filesystem.pipe_file(uri, data))

    def _appear(self, name: str, write: Callable[[str], object]) -> None:
        """Let an object be there as a whole."""
        with self._explained("written to"):
            if self._protocol in _OBJECTS:
                self._store.ask(lambda: write(self._uri(name)))
                return
            draft = self._uri(f".{name}{_DRAFT}")
            self._store.ask(lambda: self._filesystem.makedirs(self._root, exist_ok=True))
            self._store.ask(lambda: write(draft))
            self._store.ask(lambda: self._filesystem.mv(draft, self._uri(name)))

    def remove(self, name: str) -> None:
        """Delete an object; nothing happens where there is none."""
        with self._explained("written to"), _nothing_where_gone():
            self._store.ask(lambda: self._filesystem.rm_file(self._uri(name)))

    def _uri(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except GivenUp as given_up:
            error = given_up.error
            raise PackFailed(
                f"{redact(self._root)} could not be {what} in {given_up.num_attempts} attempts "
                f"({short(error)}); a pack needs a store that it may list, read and write; check "
                "address, credentials and network, then start the same command again: it goes on "
                "where it was"
            ) from cause_to_show(self._root, error)


@contextmanager
def _nothing_where_gone() -> Iterator[None]:
    """What is not there is no trouble."""
    try:
        yield
    except GivenUp as given_up:
        if given_up.trouble.kind != "gone":
            raise
