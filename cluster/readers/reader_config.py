"""Settings of a reader."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class ReaderConfig:
    """Work ahead of a reader.

    `num_ahead` chunks are read while another one is cropped: a request to a bucket takes about
    100 ms, and small crops of a chunk take less. They may take `ahead_bytes` together; a chunk that
    does not fit is read when its turn comes. A reader without an answer of Control for
    `orphan_seconds` ends.
    """

    num_ahead: int = 3
    ahead_bytes: int = 64 << 20
    orphan_seconds: float = 600.0
