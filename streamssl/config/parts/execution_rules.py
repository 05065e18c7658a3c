"""Rules of the settings that decide how an encoder runs."""

from shards.errors import ConfigError

# Batch norm needs two samples.
_MIN_ROWS = 2


def check_execution(compile: bool, recompute: bool, micro_batches: int, batch_size: int) -> None:
    """Raise ConfigError for settings that exclude each other, and for uneven micro-batches."""
    if compile and recompute:
        raise ConfigError(
            "compile=True with recompute=True; a compiled encoder decides itself what it computes "
            "again: give --no-compile or --no-recompute"
        )
    if micro_batches < 1:
        raise ConfigError(f"micro_batches={micro_batches}; it must be at least 1; raise it")
    if micro_batches > 1 and not _fits(micro_batches, batch_size):
        fitting = max(n for n in range(1, micro_batches) if n == 1 or _fits(n, batch_size))
        raise ConfigError(
            f"micro_batches={micro_batches} with batch_size={batch_size}; the batch must divide "
            f"into equal parts of at least {_MIN_ROWS} images: give --micro-batches {fitting}, or "
            "another --stream.batch-size"
        )


def _fits(num: int, batch_size: int) -> bool:
    return batch_size % num == 0 and batch_size // num >= _MIN_ROWS
