"""World sizes: the numbers of ranks that can share a global batch."""

from shards.errors import ConfigError


def world_sizes(global_batch: int) -> list[int]:
    """Return the numbers of ranks that all get the same number of rows, rising."""
    small = [n for n in range(1, int(global_batch**0.5) + 1) if global_batch % n == 0]
    return sorted({*small, *(global_batch // n for n in small)})


def fitting_world_size(global_batch: int, num_ready: int) -> int:
    """Return the largest world size of at most `num_ready` ranks; 0 if none is ready."""
    return max((size for size in world_sizes(global_batch) if size <= num_ready), default=0)


def check_trainers(global_batch: int, num_trainers: int) -> None:
    """Raise ConfigError for a number of trainers that cannot all train at once."""
    fitting = world_sizes(global_batch)
    if num_trainers in fitting:
        return
    near = [size for size in fitting if size < num_trainers][-1:]
    near += [size for size in fitting if size > num_trainers][:1]
    listed = ", ".join(map(str, fitting[:16])) + (", ..." if len(fitting) > 16 else "")
    raise ConfigError(
        f"--trainers {num_trainers} cannot share a global batch of {global_batch}: every trainer "
        f"must see the same number of its rows, so it must be one of {listed}; give --trainers "
        f"{' or '.join(map(str, near))}, or another --batch-size"
    )
