"""Where a run runs: none of it changes what is learned."""

from dataclasses import dataclass

from shards.errors import ConfigError
from shards.stores.disk_cache import CacheConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where a run runs. None of it changes what is learned.

    `cluster`: "none" reads in threads of this process, "local" starts a Ray here, "auto" or
    "ray://HOST:10001" joins one. `metrics_port` 0 takes any free port of the loopback address.
    `cache` keeps what was read on a disk of every machine that reads.
    """

    cluster: str = "none"
    readers: int = 2
    metrics_port: int = 0
    cache: CacheConfig | None = None

    def __post_init__(self) -> None:
        if self.readers < 1:
            raise ConfigError(f"readers={self.readers}; it must be at least 1")
        if not 0 <= self.metrics_port <= 65_535:
            raise ConfigError(
                f"metrics_port={self.metrics_port}; it must be from 0 (any free port) to 65535"
            )
        if self.cluster not in ("none", "local", "auto") and "://" not in self.cluster:
            raise ConfigError(
                f"cluster={self.cluster!r}; it must be none, local, auto or an address such as "
                "ray://head:10001"
            )
