"""Errors of all planes.

    StreamSSLError
      UserError                 the user can correct it: found, allowed, remedy; exit status 2
        ConfigError             a setting that cannot work
        AccessDenied            the system refuses access to a file, which is not damaged
        StorageFailed           a disk is full, fails, or lost the folder that is written to
        ManifestError           no shard matches, a listing fails, credentials are refused
        CursorMismatch          a saved cursor that belongs to other data or another order
        BudgetExceeded          too many samples were rejected; carries the table of reasons
      DecoderLost               the process that isolates decoder crashes cannot run
      ShardUnreadable           a shard could not be read after all retries
        ShardChanged            a shard is not the object in the manifest
        NotATar                 the bytes are not a tar
      PackFailed                packing could not finish
      StreamEnded               the stream ended before the trainer had all its steps
      StreamStopped             a wait for the stream was interrupted by a request to stop

A bad *sample* is not an exception but a `records.Reject`, counted against a budget.
"""

from collections.abc import Mapping
from typing import Any


class StreamSSLError(Exception):
    """Base class of all errors that one plane raises into another."""


class UserError(StreamSSLError):
    """An error that the user can correct. The message states found, allowed and remedy."""


class ConfigError(UserError):
    """A setting, or a combination of settings, that cannot work."""


class AccessDenied(UserError):
    """The system refuses access to a file or a folder; the message says what its owner can do."""


class StorageFailed(UserError):
    """A file cannot be written: no room, a disk that fails, or a folder that is gone."""


class ManifestError(UserError):
    """The list of shards cannot be created."""


class CursorMismatch(UserError):
    """A saved cursor does not belong to this manifest or this order."""


class DecoderLost(StreamSSLError):
    """The process that isolates decoder crashes cannot run, for any image."""


class ShardUnreadable(StreamSSLError):
    """A shard could not be read after all retries."""


class ShardChanged(ShardUnreadable):
    """The size or version of a shard differs from the manifest."""


class NotATar(ShardUnreadable):
    """The bytes of a shard are not a tar archive."""


class BudgetExceeded(UserError):
    """More samples were rejected than the budget allows.

    `reasons` maps a reason to its count, `first` to the first reject in words.
    """

    def __init__(
        self, message: str, reasons: Mapping[str, int], first: Mapping[str, str] | None = None
    ) -> None:
        examples = first or {}
        rows = [
            f"\n  {reason:<16} {count}"
            + (f"   first: {examples[reason]}" if reason in examples else "")
            for reason, count in sorted(reasons.items())
        ]
        super().__init__(message + "".join(rows))
        self._message, self.reasons, self._first = message, dict(reasons), dict(examples)

    def __reduce__(self) -> tuple[type["BudgetExceeded"], tuple[Any, ...]]:
        return type(self), (self._message, self.reasons, self._first)  # for pickle


class PackFailed(StreamSSLError):
    """Packing could not finish; finished shards stay, and the same command continues."""


class StreamEnded(StreamSSLError):
    """The stream stopped before the trainer had all its steps."""


class StreamStopped(StreamSSLError):
    """A wait for the stream was interrupted by a request to stop; finished steps are kept."""
