"""What can go wrong, on one page.

    StreamSSLError
      UserError                 the user's to mend: found, allowed, remedy; exit status 2
        ConfigError             a setting that cannot work
        ManifestError           no shard matches, a listing fails, credentials are refused
        CursorMismatch          a saved place that belongs to other data or another order
        BudgetExceeded          too many samples were rejected; carries the table of reasons
      DecoderLost               a process that crops in isolation cannot run at all
      ShardUnreadable           a shard could not be read after every retry
        ShardChanged            a shard is not the object that the manifest names
        NotATar                 the bytes are not a tar
      PackFailed                shards could not be packed to the end
      StreamEnded               the stream stopped before the trainer had its steps
      StreamStopped             whoever waited for the stream was asked to stop

A bad *sample* is no exception: it is a `records.Reject`, counted and paid from a budget.
"""

from collections.abc import Mapping


class StreamSSLError(Exception):
    """The root; nothing else is raised from one plane into another."""


class UserError(StreamSSLError):
    """The user's to mend. The message says what was found, what is allowed, and the remedy."""


class ConfigError(UserError):
    """A setting, or a combination of settings, that cannot work."""


class ManifestError(UserError):
    """The list of shards cannot be made."""


class CursorMismatch(UserError):
    """A saved cursor does not belong to this manifest or this order."""


class DecoderLost(StreamSSLError):
    """A process that crops in isolation cannot run, whatever the image."""


class ShardUnreadable(StreamSSLError):
    """A shard could not be read after every retry."""


class ShardChanged(ShardUnreadable):
    """A shard's size or version is not what the manifest says."""


class NotATar(ShardUnreadable):
    """The bytes of a shard are not a tar archive."""


class BudgetExceeded(UserError):
    """More samples were rejected than the budget allows; `reasons` maps a reason to its count."""

    def __init__(self, message: str, reasons: Mapping[str, int]) -> None:
        table = "".join(f"\n  {reason:<16} {count}" for reason, count in sorted(reasons.items()))
        super().__init__(message + table)
        self._message, self.reasons = message, dict(reasons)

    def __reduce__(self) -> tuple[type["BudgetExceeded"], tuple[str, dict[str, int]]]:
        return type(self), (self._message, self.reasons)  # as it comes from another process


class PackFailed(StreamSSLError):
    """Shards could not be packed to the end; what is finished stays, and is gone on with."""


class StreamEnded(StreamSSLError):
    """The stream stopped before the trainer had all its steps."""


class StreamStopped(StreamSSLError):
    """Whoever waited for the stream was asked to stop; what was trained so far is whole."""
