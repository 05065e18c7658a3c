"""Which numbers of ranks a global batch can be shared by."""

from shards.errors import ConfigError


def worlds(global_batch: int) -> list[int]:
    """The numbers of ranks that all see the same number of rows, rising."""
    small = [n for n in range(1, int(global_batch**0.5) + 1) if global_batch % n == 0]
    return sorted({*small, *(global_batch // n for n in small)})


def fitting_world(global_batch: int, num_ready: int) -> int:
    """The largest world of at most `num_ready` ranks; 0 if nobody is ready."""
    return max((world for world in worlds(global_batch) if world <= num_ready), default=0)


def check_trainers(global_batch: int, num_trainers: int) -> None:
    """Raise ConfigError for a number of trainers of which some could only ever stand by."""
    fitting = worlds(global_batch)
    if num_trainers in fitting:
        return
    near = [world for world in fitting if world < num_trainers][-1:]
    near += [world for world in fitting if world > num_trainers][:1]
    listed = ", ".join(map(str, fitting[:16])) + (", ..." if len(fitting) > 16 else "")
    raise ConfigError(
        f"--trainers {num_trainers} cannot share a global batch of {global_batch}: every trainer "
        f"must see the same number of its rows, so it must be one of {listed}; give --trainers "
        f"{' or '.join(map(str, near))}, or another --batch-size"
    )
