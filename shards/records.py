"""Records: the frozen types that carry data from a shard to a batch of crops.

The id of a sample is (shard row in the manifest, byte offset of its first tar header). It does not
depend on unique keys, on the chunk size, or on the reader.

Shape letters: N samples, V views of one size, S pixels, G global batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from numbers import Integral
from typing import Any, Final, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from shards.errors import CursorMismatch
from shards.member_names import WEBDATASET_NAMES, NameRule

Reason = Literal[
    "no_image",  # the sample has no member that could be an image
    "empty",  # the image member has no bytes
    "not_an_image",  # the bytes have no supported format
    "broken_header",  # the format is supported, the header cannot be read
    "too_small",  # a side is shorter than `AdmissionConfig.min_side`
    "too_large",  # more pixels than `AdmissionConfig.max_pixels`, or a sample of over 512 MiB
    "too_many_bytes",  # the encoded image is over `AdmissionConfig.max_bytes`
    "format",  # a format that is not in `AdmissionConfig.formats`
    "aspect_ratio",  # one side is over `AdmissionConfig.max_aspect_ratio` times the other
    "animated",  # more than one frame, where `AdmissionConfig.animated` refuses that
    "alpha",  # transparency, where `AdmissionConfig.alpha` refuses that
    "cmyk",  # printing colours, where `AdmissionConfig.cmyk` refuses them
    "bit_depth",  # over eight bits a channel, where `AdmissionConfig.sixteen_bit` refuses that
    "icc_profile",  # a colour profile, where `AdmissionConfig.icc_profile` refuses one
    "blank",  # less entropy than `AdmissionConfig.min_entropy`
    "predicate",  # the user's predicate returned False
    "predicate_failed",  # the user's predicate raised
    "kills_decoder",  # a process crashed while it decoded this image
    "truncated",  # the end of the image is missing
    "undecodable",  # the decoder failed
    "truncated_tar",  # the tar ends in the middle of the sample
    "broken_tar",  # there is no tar header where one must be
]


@dataclass(frozen=True, slots=True)
class ShardInfo:
    """One tar: its address, its length, the version that was listed, and its rule of names."""

    uri: str
    num_bytes: int
    version: str  # an etag, or "<mtime>-<size>" where the store has none
    source: int = 0  # number of the pattern in a mixture
    whole: bool = False  # one chunk: compressed, or on a server without ranges
    names: NameRule = WEBDATASET_NAMES


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes [start, stop) of shard `shard`, and the samples whose first header starts there.

    With `walked`, headers are followed from byte 0 of the tar, which is unambiguous.
    """

    shard: int
    start: int
    stop: int
    walked: bool = False


@dataclass(frozen=True, slots=True)
class Turn:
    """A chunk and the epoch of its source in which it is read.

    `quarantine` holds digests of images that crash decoders. It only saves time, so it does not
    count for equality.
    """

    chunk: Chunk
    epoch: int
    quarantine: frozenset[str] = field(default=frozenset(), compare=False)


@dataclass(frozen=True, slots=True)
class Sample:
    """Members of a tar with the same key. `fields` maps a lower-case extension to its bytes.

    `names` maps an extension to the name of its member in the tar, where that is known.
    """

    shard: int
    offset: int
    key: str
    fields: Mapping[str, bytes]
    names: Mapping[str, str] = field(default_factory=dict, compare=False)

    def member(self, extension: str) -> str:
        """Return the name in the tar of the member with this extension."""
        name = f"{self.key}.{extension}" if extension else self.key
        return self.names.get(extension, name)


@dataclass(frozen=True, slots=True)
class Reject:
    """A sample that is left out, with the reason.

    `member` is the name in the tar of the member at fault; empty if it is not a single member.
    """

    shard: int
    offset: int
    key: str
    reason: Reason
    detail: str = ""
    member: str = ""

    @property
    def place(self) -> str:
        """Place in the shard, such as "byte 512, key 'a/7', member 'a/7.jpg'"."""
        member = f", member {self.member!r}" if self.member else ""
        return f"byte {self.offset}, key {self.key!r}{member}"


class CropArray(Protocol):
    """An array of crops, uint8 (N, V, S, S, 3): of NumPy, or of a library that holds it on a GPU.

    All of them offer DLPack.
    """

    @property
    def shape(self) -> Any: ...
    @property
    def nbytes(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Any: ...
    def __dlpack__(self, *, stream: Any = None) -> Any: ...
    def __dlpack_device__(self) -> tuple[Any, int]: ...


class ChunkResult(Protocol):
    """The part of a chunk's result that the order needs; for the fields see `ChunkCrops`."""

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
    def crashed_images(self) -> tuple[str, ...]: ...
    @property
    def num_bytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class ChunkCrops:
    """The result of one chunk in one epoch, made by a reader.

    `offsets` (num_samples,) int64 lists every sample of the chunk in file order, rejects included.
    `kept` (num_samples,) bool marks those with a row in `crops`. `crops` holds a uint8 array
    (kept.sum(), V, S, S, 3) in RGB for every view group; a job that only verifies gives one array
    (kept.sum(),) of `ImageHeader`. `num_unselected` samples are outside the subset list.
    `needs_walk`: content of a member could be mistaken for samples in a later chunk (see `tars`).
    `crashed_images`: digests of images that crashed a decoder. `labels` (kept.sum(),) int64 as in
    `samples.labels`, or None without labels.
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
    crashed_images: tuple[str, ...] = ()
    labels: NDArray[np.int64] | None = None

    @property
    def num_bytes(self) -> int:
        return bytes_of(self.crops)


def bytes_of(rows: Sequence[CropArray]) -> int:
    """Return the bytes of crops, or of the encoded images in their place."""
    return sum(
        sum(len(image.data) for image in array)
        if isinstance(array, np.ndarray) and array.dtype == object
        else array.nbytes
        for array in rows
    )


_CURSOR_NUMBERS: Final = (
    *("block", "slot", "journal", "num_samples", "num_rejects", "num_unselected"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """The position in the stream after a batch: all that a loader must save. Under 2 kB as JSON.

    `block` counts through all epochs. `slot` counts samples of the block, rejects included, so a
    reject does not move other samples. `journal` is the number of known journal entries. The other
    fields count samples since the start of the run.
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
        """Restore a cursor from `to_json`. Raises CursorMismatch for other fields or values."""
        try:
            cursor = cls(**saved)
        except TypeError as error:
            names = ", ".join(map(str, saved)) if isinstance(saved, Mapping) else repr(saved)
            raise CursorMismatch(
                f"the cursor of the checkpoint has the fields {names}, not those of this version; "
                "resume with the version that wrote it, or give a new --out"
            ) from error
        reasons = cursor.reject_reasons
        numbers = {name: getattr(cursor, name) for name in _CURSOR_NUMBERS}
        numbers |= reasons if isinstance(reasons, Mapping) else {"reject_reasons": None}
        for name, found in numbers.items():
            if not isinstance(found, Integral):
                raise CursorMismatch(
                    f"the cursor of the checkpoint has {name}={found!r}, which must be a whole "
                    "number, so the file is damaged: remove this checkpoint to resume from the one "
                    "before it"
                )
        return cursor


@dataclass(frozen=True, slots=True)
class CropBatch:
    """One global batch, and the cursor that follows it.

    `crops`: for every view group a uint8 array (G, V, S, S, 3) in RGB; a stream of images that are
    verified and not cropped gives one array (G,) of `ImageHeader`. `ids`: int64 (G, 2), shard
    row and header offset. `epochs`: int64 (G,); a batch may span two epochs. `rejects` and
    `num_unselected`: samples left out between the previous batch and this one. `labels` (G,) int64
    as in `samples.labels`, or None without labels.
    """

    crops: tuple[CropArray, ...]
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
        """32 hex digits over the epochs and ids of the samples, in their order."""
        rows = np.concatenate([self.epochs[:, None], self.ids], axis=1).astype("<i8")
        return blake2b(rows.tobytes(), digest_size=16).hexdigest()
