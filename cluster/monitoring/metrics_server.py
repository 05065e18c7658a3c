"""MetricsServer: what a run serves on the loopback address, and to whom it is of use.

/metrics   for Prometheus
/state     the same and more as JSON, see `state`
/sd        where to scrape, for the http_sd_configs of a Prometheus: here, and the processes of a
           cluster that serve pages of their own, see `cluster.monitoring.process_pages`
/healthz   "ok" while the run lives
"""

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster.monitoring.http_server import Answer, HttpServer, Page
from cluster.monitoring.metrics_hub import Metrics
from cluster.monitoring.run_state import Ended
from cluster.protocol.run_status import Status
from shards.errors import StreamSSLError, StreamStopped

_TICK_SECONDS = 1.0
# A run that failed waits so long for a Prometheus that came by so recently to hear of it.
_LAST_WORD_SECONDS = 20.0
_RECENT_SECONDS = 60.0


class MetricsServer:
    """Serves `metrics` on 127.0.0.1 while it is open, and `pages` besides, by path.

    Port 0 takes any free one. `address_file` says where, as long as it is open. When a run fails,
    its last numbers are of most interest: who scrapes it gets them once more before it closes.
    """

    def __init__(
        self,
        metrics: Metrics,
        port: int = 0,
        pages: Mapping[str, Page] | None = None,
        address_file: Path | None = None,
    ) -> None:
        self._metrics, self._address_file = metrics, address_file
        self._closed, self._scraped = threading.Event(), threading.Event()
        self._last_scrape = float("-inf")
        self._server = HttpServer(
            {
                "/metrics": self._scrape,
                "/state": metrics.state_page,
                "/sd": self._targets,
                "/healthz": lambda _: Answer(b"ok\n"),
                **(pages or {}),
            },
            port,
        )
        self.page = f"http://{self._server.address}/"
        self.url = f"{self.page}metrics"
        self._ticking = threading.Thread(target=self._tick_on, name="metrics", daemon=True)
        self._ticking.start()
        if address_file is not None:
            address_file.write_text(f"http://{self._server.address}")

    def _scrape(self, query: Mapping[str, str]) -> Answer:
        answer = self._metrics.metrics_page(query)
        self._last_scrape = time.monotonic()
        self._scraped.set()
        return answer

    def _targets(self, _: Mapping[str, str]) -> Answer:
        run = self._metrics.run
        labels = {} if run is None else {"run": run.name}
        found = [{"targets": [self._server.address], "labels": labels}]
        if (status := self._metrics.status) is not None:
            found += process_targets(status, labels)
        return Answer(json.dumps(found).encode(), "application/json")

    def _tick_on(self) -> None:
        while not self._closed.wait(_TICK_SECONDS):
            self._metrics.tick()

    def __enter__(self) -> "MetricsServer":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._metrics.ended = Ended(at=time.time(), error=str(error) if error else "")
        if isinstance(error, StreamSSLError) and not isinstance(error, StreamStopped):
            self._wait_for_a_scrape()
        self._closed.set()
        self._ticking.join()
        self._server.__exit__()
        if self._address_file is not None:
            self._address_file.unlink(missing_ok=True)

    def _wait_for_a_scrape(self) -> None:
        if time.monotonic() - self._last_scrape < _RECENT_SECONDS:
            self._scraped.clear()
            self._scraped.wait(_LAST_WORD_SECONDS)


def process_targets(status: Status, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """The processes that serve pages at this moment: a group for each role and pool."""
    groups: dict[tuple[str, str], list[str]] = {}
    for role, address in status.pages.items():
        groups[role, ""] = [address]
    for actor in status.actors:
        if actor.pages:
            groups.setdefault((actor.role, actor.pool), []).append(actor.pages)
    found = []
    for (role, pool), addresses in groups.items():
        more = {"scope": "process", "role": role} | ({"pool": pool} if pool else {})
        found.append({"targets": addresses, "labels": {**labels, **more}})
    return found
