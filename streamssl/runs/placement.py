"""Placement of a run: processes, nodes, ports and caches. It does not change what is learned."""

from dataclasses import dataclass, field
from typing import Final, Literal

from cluster.control.cluster_config import ClusterConfig
from cluster.monitoring.process_pages import DebugPorts
from cluster.protocol.node_pools import Pool, parse_pools
from shards.errors import ConfigError
from shards.stores.disk_cache import CacheConfig

_LOG_EVERY: Final = 10

DecodePlace = Literal["readers", "trainers"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Processes, nodes, ports and caches of a run. They do not change what is learned.

    `cluster`: "none" reads in threads of this process and trains in it, "local" starts a Ray here,
    "auto" or "ray://HOST:10001" joins one. The number of readers follows the trainers, from
    `readers` to `max_readers`. `reader_pools` and `trainer_pools` select nodes by their labels, in
    order of preference; `trainer_gpus` are the GPUs of each trainer, None: one if there are any.
    `metrics_port` 0 takes any free port of the loopback address. `cache` is a disk cache on each
    machine that reads. `decode` selects the actors that crop; "auto" measures the faster ones,
    None: as this run began, or trainers with the engine dali-gpu, otherwise readers. `prices`:
    dollars per hour of a node, by pool. `tensorboard`: write the log for TensorBoard, too.
    `debug_ports`: ports at which each process of a cluster serves its pages; None: no pages. On a
    GPU of this process, numbers of a step are read when they have come, at most `log_every` steps
    later; None: 10, or 1 where each step must be read (see `steps_to_read`).
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
    log_every: int | None = None
    control_config: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def reader_limit(self) -> int:
        """The largest number of readers."""
        return self.readers if self.max_readers is None else self.max_readers

    def steps_to_read(self, max_skipped_steps: int) -> int:
        """Return `log_every` of a run with this budget of steps that may be left out.

        Raises ConfigError if the run must read each step.
        """
        if self.log_every is None or self.log_every == 1:
            return self.log_every or (1 if max_skipped_steps else _LOG_EVERY)
        if max_skipped_steps:
            raise ConfigError(
                f"--log-every {self.log_every} with --max-skipped-steps {max_skipped_steps}; a "
                "step that may be left out is read before its update: leave --log-every out, or "
                "give --max-skipped-steps 0"
            )
        return self.log_every

    def __post_init__(self) -> None:
        for name in ("readers", "trainers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1")
        self._check_log_every()
        if self.reader_limit < self.readers:
            raise ConfigError(
                f"readers={self.readers}..{self.reader_limit}; the second number must be at least "
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

    def _check_log_every(self) -> None:
        if self.log_every is None:
            return
        if self.log_every < 1:
            raise ConfigError(
                f"--log-every {self.log_every}; it must be at least 1, which reads the numbers of "
                f"each step before the next one; leave it out for {_LOG_EVERY}"
            )
        if self.cluster != "none" and self.log_every > 1:
            raise ConfigError(
                f"--log-every {self.log_every} with cluster={self.cluster!r}; trainers on Ray read "
                "each step, since all of them must agree on it: leave --log-every out, or give "
                "--cluster none"
            )

    def _check_alone(self) -> None:
        given = {
            "--trainers": self.trainers > 1,
            "--readers as a range": self.reader_limit > self.readers,
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
