"""What flows: the few frozen types that carry everything from a shard's name to a batch of crops.

A sample's identity is (shard row in the manifest, byte offset of its first tar header). It does not
depend on keys being unique, on the chunk size, or on who reads it.

Shape letters: N samples, V views of one size, S pixels, G global batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from shards.errors import CursorMismatch

Reason = Literal[
    "no_image",  # the sample has no member that could be an image
    "empty",  # the image member has no bytes
    "not_an_image",  # the bytes are of no format that is read here
    "broken_header",  # the format is known, the header cannot be read
    "too_small",  # a side is shorter than `AdmissionConfig.min_side`
    "too_large",  # more pixels than `AdmissionConfig.max_pixels`, or a sample of over 512 MiB
    "too_many_bytes",  # the encoded image is over `AdmissionConfig.max_bytes`
    "format",  # a format that `AdmissionConfig.formats` leaves out
    "aspect_ratio",  # one side is over `AdmissionConfig.max_aspect_ratio` times the other
    "animated",  # more than one frame, where `AdmissionConfig.animated` refuses that
    "alpha",  # transparency, where `AdmissionConfig.alpha` refuses that
    "cmyk",  # printing colours, where `AdmissionConfig.cmyk` refuses them
    "bit_depth",  # over eight bits a channel, where `AdmissionConfig.sixteen_bit` refuses that
    "icc_profile",  # a colour profile, where `AdmissionConfig.icc_profile` refuses one
    "blank",  # less entropy than `AdmissionConfig.min_entropy`
    "predicate",  # the user's predicate said no
    "predicate_failed",  # the user's predicate raised
    "kills_decoder",  # a process died while it decoded this image
    "truncated",  # the end of the image is missing
    "undecodable",  # the decoder gave up
    "truncated_tar",  # the tar ends in the middle of the sample
    "broken_tar",  # there is no tar header where one must be
]


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One tar: where it is, how long it is, and which version of it was listed."""

    uri: str
    num_bytes: int
    version: str  # an etag, or "<mtime>-<size>" where the store has none
    source: int = 0  # which of the patterns of a mixture it belongs to
    whole: bool = False  # compressed, or on a server without ranges: all of it is one chunk


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes [start, stop) of shard number `shard`; the samples whose first header starts there.

    `walked` asks for the tar to be walked from byte 0, where nothing is ambiguous.
    """

    shard: int
    start: int
    stop: int
    walked: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """A chunk and the epoch of its source in which its turn comes.

    `quarantine` holds digests of images that are known to kill decoders; knowing them only saves
    finding them again, so two turns that differ in it alone are equal.
    """

    chunk: Chunk
    epoch: int
    quarantine: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(frozen=True, slots=True)
class Sample:
    """Members of a tar that share a key. `fields` maps a lower-case extension to its bytes."""

    shard: int
    offset: int
    key: str
    fields: Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class Reject:
    """A sample that will not be trained on, and why."""

    shard: int
    offset: int
    key: str
    reason: Reason
    detail: str = ""


class ChunkResult(Protocol):
    """What the order must know of what a chunk gives, whatever that is; see `ChunkCrops`."""

    @property
    def chunk(self) -> Chunk: ...
    @property
    def epoch(self) -> int: ...
    @property
    def offsets(self) -> NDArray[np.int64]: ...
    @property
    def kept(self) -> NDArray[np.bool_]: ...
    @property
    def rejects(self) -> tuple[Reject, ...]: ...
    @property
    def num_unselected(self) -> int: ...
    @property
    def needs_walk(self) -> bool: ...
    @property
    def killers(self) -> tuple[str, ...]: ...
    @property
    def num_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ChunkCrops:
    """All that one chunk gives in one epoch: what a reader hands over.

    `offsets` (num_samples,) int64 lists every sample of the chunk in file order, rejects included;
    `kept` (num_samples,) bool says which have a row in `crops`; `crops` holds, for every view
    group, a uint8 array (kept.sum(), V, S, S, 3) in RGB; of a job that only verifies, one array
    (kept.sum(),) of `ImageHeader`. `num_unselected` samples are no part of the data, because a subset
    list leaves them out. `needs_walk`: what is inside a member of the
    chunk could be taken for samples in a later one (see `tar`). `killers`: digests of images that
    killed a decoder. `labels` (kept.sum(),) int64 as in `labels`, or None where nobody asks.
    """

    chunk: Chunk
    epoch: int
    offsets: NDArray[np.int64]
    kept: NDArray[np.bool_]
    crops: tuple[NDArray[np.uint8], ...]
    rejects: tuple[Reject, ...]
    read_seconds: float = 0.0
    crop_seconds: float = 0.0
    num_unselected: int = 0
    needs_walk: bool = False
    killers: tuple[str, ...] = ()
    labels: NDArray[np.int64] | None = None

    @property
    def num_bytes(self) -> int:
        return bytes_of(self.crops)


def bytes_of(rows: Sequence[NDArray[Any]]) -> int:
    """What crops take, or encoded images in their place."""
    return sum(
        sum(len(image.data) for image in array) if array.dtype == object else array.nbytes
        for array in rows
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The place in the stream after a batch: all that a loader must save. Under 2 kB as JSON.

    `block` counts on through all epochs; `slot` counts raw samples of the block, rejects included,
    so a reject moves nobody else. `journal` is how many entries the journal had. `num_samples` and
    the others count what was decided since the start of the run.
    """

    manifest: str
    order: str
    block: int = 0
    slot: int = 0
    journal: int = 0
    num_samples: int = 0
    num_rejects: int = 0
    num_unselected: int = 0
    reject_reasons: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """The cursor that `to_json` gave. Raises CursorMismatch for anything else."""
        try:
            return cls(**saved)
        except TypeError as error:
            names = ", ".join(sorted(saved))
            raise CursorMismatch(
                f"the checkpoint's place in the data has the fields {names}, not those of this "
                "version; resume with the version that wrote it, or give a new --out"
            ) from error


@dataclass(frozen=True, slots=True)
class CropBatch:
    """One global batch, with the place in the stream that follows it.

    `crops`: for every view group a uint8 array (G, V, S, S, 3) in RGB. `ids`: int64 (G, 2), shard
    row and header offset. `epochs`: int64 (G,), a batch may cross into the next epoch. `rejects`
    and `num_unselected`: what was decided against, or left out, while this batch was formed.
    `labels` (G,) int64 as in `labels`, or None where nobody asks.
    """

    crops: tuple[NDArray[np.uint8], ...]
    ids: NDArray[np.int64]
    epochs: NDArray[np.int64]
    cursor: Cursor
    rejects: tuple[Reject, ...] = ()
    num_unselected: int = 0
    labels: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def digest(self) -> str:
        """128-bit digest of which samples, of which epoch, in which order: 32 hex digits."""
        rows = np.concatenate([self.epochs[:, None], self.ids], axis=1).astype("<i8")
        return blake2b(rows.tobytes(), digest_size=16).hexdigest()
