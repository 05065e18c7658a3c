"""Where a run runs: none of it changes what is learned."""

from dataclasses import dataclass, field
from typing import Literal

from cluster.control.cluster_config import ClusterConfig
from cluster.monitoring.process_pages import DebugPorts
from cluster.protocol.node_pools import Pool, parse_pools
from shards.errors import ConfigError
from shards.stores.disk_cache import CacheConfig

DecodePlace = Literal["readers", "trainers"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where a run runs. None of it changes what is learned.

    `cluster`: "none" reads in threads of this process and trains in it, "local" starts a Ray here,
    "auto" or "ray://HOST:10001" joins one. There are as many readers as the trainers need, from
    `readers` to `max_readers`. `reader_pools` and `trainer_pools` name nodes by their labels, in
    order of preference; `trainer_gpus` is what each trainer takes, None: one where there are any.
    `metrics_port` 0 takes any free port of the loopback address. `cache` keeps what was read on a
    disk of every machine that reads. `decode`: who crops the images; "auto" measures who should,
    None: as this run began, or trainers where the engine is dali-gpu, else readers. `prices`: of
    an hour of a node, by pool, in dollars. `tensorboard`: a copy of the log for it. `debug_ports`:
    where every process of a cluster serves pages of its own, None: nowhere. `patience` is that of
    Control with all the others.
    """

    cluster: str = "none"
    readers: int = 2
    max_readers: int | None = None
    trainers: int = 1
    reader_pools: tuple[str, ...] = ()
    trainer_pools: tuple[str, ...] = ()
    trainer_gpus: int | None = None
    metrics_port: int = 0
    cache: CacheConfig | None = None
    decode: DecodePlace | Literal["auto"] | None = None
    prices: tuple[tuple[Pool, float], ...] = ()
    tensorboard: bool = False
    debug_ports: DebugPorts | None = None
    patience: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def most(self) -> int:
        """The largest number of readers."""
        return self.readers if self.max_readers is None else self.max_readers

    def __post_init__(self) -> None:
        for name in ("readers", "trainers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1")
        if self.most < self.readers:
            raise ConfigError(
                f"readers={self.readers}..{self.most}; the second number must be at least "
                "the first: give for example --readers 4..200"
            )
        if not 0 <= self.metrics_port <= 65_535:
            raise ConfigError(
                f"metrics_port={self.metrics_port}; it must be from 0 (any free port) to 65535"
            )
        if self.cluster not in ("none", "local", "auto") and "://" not in self.cluster:
            raise ConfigError(
                f"cluster={self.cluster!r}; it must be none, local, auto or an address such as "
                "ray://head:10001"
            )
        if self.cluster == "none":
            self._check_alone()
        parse_pools(self.reader_pools)
        parse_pools(self.trainer_pools)

    def _check_alone(self) -> None:
        """One process is no cluster."""
        given = {
            "--trainers": self.trainers > 1,
            "--readers as a range": self.most > self.readers,
            "--reader-pool": bool(self.reader_pools),
            "--trainer-pool": bool(self.trainer_pools),
            "--decode": self.decode is not None,
            "--debug-ports": self.debug_ports is not None,
        }
        for name, is_given in given.items():
            if is_given:
                raise ConfigError(
                    f"{name} with cluster='none', which is this process alone; give --cluster "
                    "local to start a Ray here, or auto to join one"
                )
