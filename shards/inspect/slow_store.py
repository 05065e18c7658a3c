"""Drill: read local shards through a slow and faulty server, and compare what was read.

A server on the loopback address first serves the shards normally. Then it is slow, answers 503 and
breaks off, with the configured probability. The samples must be the same both times.
"""

import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from shards.errors import ConfigError
from shards.records import Chunk, Sample
from shards.stores.range_reader import RangeReader
from shards.stream.manifest import Manifest
from shards.stream.manifest_listing import open_manifest
from shards.stream.order import Order, OrderConfig
from shards.tars.chunk_reader import read_chunk

_PIECE_BYTES = 1 << 16
_SMALLEST_CHUNK = 1 << 14


@dataclass(frozen=True, kw_only=True, slots=True)
class SlowConfig:
    """Faults of the server: every request is delayed; a share is refused or broken off."""

    delay_seconds: float = 0.1
    bytes_per_second: float = 5e6
    broken: float = 0.2
    num_chunks: int = 32
    num_readers: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.delay_seconds >= 0 and self.bytes_per_second > 0):
            raise ConfigError(
                f"delay_seconds={self.delay_seconds}, bytes_per_second={self.bytes_per_second}; "
                "the first must be at least 0, the second above it"
            )
        if not 0 <= self.broken <= 0.5:
            raise ConfigError(
                f"broken={self.broken}; it is the share of requests that fail, from 0 to 0.5: "
                "readers give up on a store that fails more often than it answers"
            )
        if self.num_chunks < 1 or self.num_readers < 1:
            raise ConfigError(
                f"num_chunks={self.num_chunks}, num_readers={self.num_readers}; both must be at "
                "least 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SlowReport:
    """Faults of the server, reactions of the readers, and the cost in seconds.

    `num_differing` chunks differ from those of the normal server.
    """

    num_chunks: int
    num_samples: int
    normal_seconds: float
    slow_seconds: float
    faults: Mapping[str, int]
    retries: Mapping[str, int]
    throttles: int
    num_differing: int


def drill_slow(paths: Sequence[Path], config: SlowConfig) -> SlowReport:
    """Read the same chunks from a normal and from a faulty server. Raises StreamSSLError."""
    with _serve(paths, config) as server:
        manifest = open_manifest(server.urls, RangeReader())
        chunks = _spread(manifest, config.num_chunks)
        normal, normal_seconds, _ = _read(manifest, chunks, config)
        server.is_faulty = True
        slow, slow_seconds, reader = _read(manifest, chunks, config)
        counts = reader.counters
        return SlowReport(
            num_chunks=len(chunks),
            num_samples=sum(num for num, _ in slow),
            normal_seconds=normal_seconds,
            slow_seconds=slow_seconds,
            faults=dict(server.faults),
            retries=dict(counts.retries),
            throttles=counts.throttles,
            num_differing=sum(a != b for a, b in zip(normal, slow, strict=True)),
        )


def _spread(manifest: Manifest, num_chunks: int) -> list[Chunk]:
    """Return at most `num_chunks` chunks, spread evenly; small chunks if there is little data."""
    chunk_bytes = manifest.suggest_chunk_bytes()
    while chunk_bytes > max(manifest.num_bytes // num_chunks, _SMALLEST_CHUNK):
        chunk_bytes //= 2
    config = OrderConfig(seed=0, chunk_bytes=chunk_bytes, chunks_per_block=1)
    order = Order(manifest.shards, manifest.digest, config)
    total = order.num_chunks
    num = min(num_chunks, total)
    return [order.chunk(index * total // num) for index in range(num)]


def _read(
    manifest: Manifest, chunks: Sequence[Chunk], config: SlowConfig
) -> tuple[list[tuple[int, str]], float, RangeReader]:
    """Return (samples, digest) of every chunk, the seconds, and the reader with its counters."""
    reader = RangeReader()

    def read(chunk: Chunk) -> tuple[int, str]:
        found = read_chunk(reader, manifest.shards[chunk.shard], chunk).found
        samples = [item for item in found if isinstance(item, Sample)]
        digest = hashlib.blake2b()
        for sample in samples:
            digest.update(sample.key.encode())
            for data in sample.fields.values():
                digest.update(data)
        return len(samples), digest.hexdigest()

    began = time.monotonic()
    with ThreadPoolExecutor(config.num_readers) as pool:
        results = list(pool.map(read, chunks))
    return results, time.monotonic() - began, reader


class _SlowServer(ThreadingHTTPServer):
    """HTTP server for these files on the loopback address."""

    daemon_threads = True

    def __init__(self, paths: Sequence[Path], config: SlowConfig) -> None:
        super().__init__(("127.0.0.1", 0), _SlowHandler)
        self.files = {f"/{number:06d}/{path.name}": path for number, path in enumerate(paths)}
        self.config, self.is_faulty = config, False
        self.faults: Counter[str] = Counter()
        self._random = random.Random(config.seed)
        self._lock = threading.Lock()

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{self.server_port}{name}" for name in self.files]

    def next_fault(self) -> str:
        """Draw and count the fault of one request."""
        with self._lock:
            faulty = self._random.random() < self.config.broken
            fault = self._random.choice(("refused with 503", "broken off")) if faulty else "slow"
            self.faults[fault] += 1
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that disconnect."""


class _SlowHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _SlowServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        path = self.server.files.get(self.path)
        if path is None:
            self.send_error(404)
            return
        size = path.stat().st_size
        first, stop = self._range(size)
        fault = self.server.next_fault() if self.server.is_faulty and with_body else ""
        if fault:
            time.sleep(self.server.config.delay_seconds)
        if fault == "refused with 503":
            self.send_error(503)
            return
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{path.stat().st_mtime_ns:x}-{size:x}"')
        self.send_header("Content-Length", str(stop - first))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{size}")
        self.end_headers()
        if with_body:
            self._send(path, first, stop, fault)

    def _range(self, size: int) -> tuple[int, int]:
        unit, _, given = self.headers.get("Range", "").partition("=")
        first, _, last = given.partition("-")
        if unit != "bytes" or not first.isdigit():
            return 0, size
        return int(first), min(int(last) + 1 if last.isdigit() else size, size)

    def _send(self, path: Path, first: int, stop: int, fault: str) -> None:
        end = first + (stop - first) // 2 if fault == "broken off" else stop
        with path.open("rb") as file:
            file.seek(first)
            while first < end:
                piece = file.read(min(_PIECE_BYTES, end - first))
                if fault:
                    time.sleep(len(piece) / self.server.config.bytes_per_second)
                self.wfile.write(piece)
                first += len(piece)
        self.close_connection = fault == "broken off"

    def log_message(self, *args: object) -> None:
        """Write no log: the report has the counts."""


@contextmanager
def _serve(paths: Sequence[Path], config: SlowConfig) -> Iterator[_SlowServer]:
    server = _SlowServer(paths, config)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
