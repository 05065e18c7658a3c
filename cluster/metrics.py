"""What Prometheus sees, on a loopback port. The only file that knows prometheus_client.

Counters are cumulative since the process started; labels are bounded (stages, reasons), never a
key, a shard or a URL.
"""

import threading
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from shards.errors import ConfigError
from shards.records import ChunkCrops, Reject

_STEP_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)


class Metrics:
    """The readings of one run. `registry` is injected so that tests get a fresh one."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        self.samples = Counter(
            "streamssl_samples",
            "Samples that passed a stage: read, unselected (by a list), cropped, trained on.",
            ["stage"],
            registry=self.registry,
        )
        self.rejects = Counter(
            "streamssl_rejects",
            "Samples that were rejected, by reason, in the order of the stream.",
            ["reason"],
            registry=self.registry,
        )
        self.reader_seconds = Counter(
            "streamssl_reader_busy_seconds",
            "Seconds that readers spent on a stage, summed over readers.",
            ["stage"],
            registry=self.registry,
        )
        self.crop_bytes = Counter(
            "streamssl_crop_bytes",
            "Bytes of crops that readers handed over.",
            registry=self.registry,
        )
        self.lost_readers = Counter(
            "streamssl_readers_lost",
            "Readers that died and were replaced.",
            registry=self.registry,
        )
        self.data_wait = Counter(
            "streamssl_data_wait_seconds",
            "Seconds that the trainer waited for a batch.",
            registry=self.registry,
        )
        self.step_seconds = Histogram(
            "streamssl_step_seconds",
            "Seconds of a training step, the wait for its batch not included.",
            buckets=_STEP_BUCKETS,
            registry=self.registry,
        )
        self.loss = Gauge("streamssl_loss", "Loss of the newest step.", registry=self.registry)
        self.lr = Gauge(
            "streamssl_learning_rate", "Learning rate of the newest step.", registry=self.registry
        )
        self.step = Gauge("streamssl_train_step", "The newest step.", registry=self.registry)
        self._counters = self._make_counters() | {
            "samples": self.samples,
            "busy_seconds": self.reader_seconds,
            "crop_bytes": self.crop_bytes,
            "readers_lost": self.lost_readers,
        }
        self._gauges = self._make_gauges()
        self._seen: dict[tuple[str, str], float] = {}

    def _make_counters(self) -> dict[str, Counter]:
        """Those of the control plane alone."""
        texts = {
            "taken_bytes": ("Bytes of crops that trainers took from readers.", ""),
            "reader_blocked_seconds": ("Seconds that readers waited, by what for.", "on"),
            "trainers_lost": ("Trainers that died, hung or were taken away.", ""),
            "leases_reissued": ("Chunks that were given to another reader, and why.", "reason"),
            "results_refused": ("Results of leases that held no more, and why.", "reason"),
            "beats_refused": ("Words of trainers that were refused, and why.", "reason"),
            "generations": ("Groups of trainers that were formed.", ""),
            "recoveries": ("Losses of trainers after which a step was finished again.", ""),
            "recovery_seconds": ("Seconds from those losses to the next finished step.", ""),
        }
        return {
            name: Counter(
                f"streamssl_{name}", text, [label] if label else [], registry=self.registry
            )
            for name, (text, label) in texts.items()
        }

    def _make_gauges(self) -> dict[str, Gauge]:
        texts = {
            "control_term": ("How many Controls the run has had.", ""),
            "world_size": ("Trainers that share a batch at this moment.", ""),
            "actors": ("Actors that run, by role.", "role"),
            "actors_wanted": ("Actors that there shall be, by role.", "role"),
            "held_bytes": ("Bytes of crops in the memory of readers.", ""),
            "health": ("Newest reading of what shows whether features collapse.", "reading"),
            "collapsing": ("1 while that reading has been beyond its limit.", "reading"),
        }
        return {
            name: Gauge(f"streamssl_{name}", text, [label] if label else [], registry=self.registry)
            for name, (text, label) in texts.items()
        }

    def cluster(self, readings: Mapping[tuple[str, str], float]) -> None:
        """Take over what Control counted, by name and label. A new Control counts from 0 again."""
        for (name, label), value in readings.items():
            if name in self._gauges:
                gauge = self._gauges[name]
                (gauge.labels(label) if label else gauge).set(value)
                continue
            before = self._seen.get((name, label), 0.0)
            self._seen[name, label] = value
            counter = self._counters[name]
            new = value - before if value >= before else value
            (counter.labels(label) if label else counter).inc(new)

    def chunk_cropped(self, result: ChunkCrops) -> None:
        """Count one chunk that a reader finished. Called from any thread."""
        self.samples.labels("read").inc(len(result.offsets) + result.num_unselected)
        self.samples.labels("unselected").inc(result.num_unselected)
        self.samples.labels("cropped").inc(int(result.kept.sum()))
        self.reader_seconds.labels("read").inc(result.read_seconds)
        self.reader_seconds.labels("crop").inc(result.crop_seconds)
        self.crop_bytes.inc(result.num_bytes)

    def step_trained(
        self,
        *,
        step: int,
        loss: float,
        lr: float,
        num_samples: int,
        step_seconds: float,
        data_wait_seconds: float,
        rejects: Sequence[Reject],
    ) -> None:
        """Count one training step."""
        self.samples.labels("trained").inc(num_samples)
        for reject in rejects:
            self.rejects.labels(reject.reason).inc()
        self.data_wait.inc(data_wait_seconds)
        self.step_seconds.observe(step_seconds)
        self.loss.set(loss)
        self.lr.set(lr)
        self.step.set(step)

    def health(self, readings: Mapping[str, float], crossed: Collection[str]) -> None:
        """Take over the newest readings by name, and which of them are beyond their limits."""
        for name, value in readings.items():
            self._gauges["health"].labels(name).set(value)
            self._gauges["collapsing"].labels(name).set(name in crossed)


class MetricsServer:
    """Serves /metrics on 127.0.0.1 while it is open. Port 0 takes any free one."""

    def __init__(self, metrics: Metrics, port: int = 0) -> None:
        try:
            started: tuple[WSGIServer, threading.Thread] = start_http_server(
                port, addr="127.0.0.1", registry=metrics.registry
            )
        except OSError as error:
            raise ConfigError(
                f"/metrics cannot be served on port {port} ({error.strerror}); "
                "give another --metrics-port, or 0 for any free one"
            ) from error
        self._server, self._thread = started
        self.url = f"http://127.0.0.1:{self._server.server_port}/metrics"

    def __enter__(self) -> "MetricsServer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
