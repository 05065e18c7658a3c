"""Settings of a stream: batch size, order, and how far readers may work ahead."""

from dataclasses import dataclass

from shards.errors import ConfigError
from shards.stream.lookahead import LookaheadBounds

# More batches than this help no trainer: small crops would fill `max_bytes` with later epochs, and
# rejects, which take no bytes, would never fill it.
_MAX_BATCHES_AHEAD = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamConfig:
    """Order, batches and bounds of a stream.

    `chunk_bytes` and `chunks_per_block` are computed from the data if they are None. `max_bytes`
    bounds the crops that are held or in progress. At most `num_lookahead_blocks` incomplete blocks
    are in progress.
    """

    batch_size: int = 256
    chunk_bytes: int | None = None
    chunks_per_block: int | None = None
    max_bytes: int = 2 << 30
    num_lookahead_blocks: int = 2

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(
                f"batch_size={self.batch_size}; it must be at least 1; raise --stream.batch-size"
            )
        if self.num_lookahead_blocks < 1:
            raise ConfigError(
                f"num_lookahead_blocks={self.num_lookahead_blocks}; it must be at least 1; raise "
                "--stream.num-lookahead-blocks"
            )

    @property
    def lookahead_bounds(self) -> LookaheadBounds:
        """Bounds on the chunks that are requested ahead of the next batch."""
        return LookaheadBounds(
            max_bytes=self.max_bytes,
            max_slots=_MAX_BATCHES_AHEAD * self.batch_size,
            num_blocks=self.num_lookahead_blocks,
        )
