"""Server of a run's metrics on the loopback address.

/metrics   for Prometheus
/state     the same and more as JSON, see `cluster.monitoring.run_state`
/sd        scrape targets for the http_sd_configs of a Prometheus: this server, and the processes of
           a cluster that serve their own pages, see `cluster.monitoring.process_pages`
/healthz   "ok" while the run lives
"""

import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.monitoring.http_server import HttpResponse, HttpServer, Page
from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.run_state import RunOutcome
from cluster.monitoring.steady_clock import steady_time
from cluster.protocol.run_status import Status
from shards.errors import StreamSSLError, StreamStopped
from shards.files import write_atomic

_TICK_SECONDS = 1.0
# A failed run waits this long for one more scrape, if a Prometheus scraped it recently.
_LAST_SCRAPE_SECONDS = 20.0
_RECENT_SECONDS = 60.0


class MetricsServer:
    """Serves a hub on 127.0.0.1 while it is open, and further `pages` by path.

    Port 0 takes any free port. `address_file` holds the address while the server is open. `token`
    opens pages to commands of the user, see `page_access`. When a
    run fails, its last numbers matter most: the server waits for one more scrape before it closes.
    """

    def __init__(
        self,
        hub: MetricsHub,
        port: int = 0,
        pages: Mapping[str, Page] | None = None,
        address_file: Path | None = None,
        token: str = "",
    ) -> None:
        self._hub, self._address_file = hub, address_file
        self._closed, self._scraped = threading.Event(), threading.Event()
        self._last_scrape = float("-inf")
        self._server = HttpServer(
            {
                "/metrics": self._scrape,
                "/state": hub.state_page,
                "/sd": self._targets,
                "/healthz": lambda _: HttpResponse(b"ok\n"),
                **(pages or {}),
            },
            port,
            token=token,
        )
        self.address = f"http://{self._server.address}"
        self.page = f"{self.address}/"
        self.url = f"{self.page}metrics"
        self._ticking = threading.Thread(target=self._tick_on, name="metrics", daemon=True)
        self._ticking.start()
        if address_file is not None:
            with suppress(OSError):  # a full disk: the address is printed, too
                write_atomic(address_file, self.address)

    def _scrape(self, query: Mapping[str, str]) -> HttpResponse:
        response = self._hub.metrics_page(query)
        self._last_scrape = time.monotonic()
        self._scraped.set()
        return response

    def _targets(self, _: Mapping[str, str]) -> HttpResponse:
        run = self._hub.run
        labels = {} if run is None else {"run": run.name}
        found = [{"targets": [self._server.address], "labels": labels}]
        if (status := self._hub.status) is not None:
            found += process_targets(status, labels)
        return HttpResponse(json.dumps(found).encode(), "application/json")

    def _tick_on(self) -> None:
        while not self._closed.wait(_TICK_SECONDS):
            self._hub.tick()

    def __enter__(self) -> "MetricsServer":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self._hub.outcome = RunOutcome(at=steady_time(), error=str(error) if error else "")
        if isinstance(error, StreamSSLError) and not isinstance(error, StreamStopped):
            self._wait_for_a_scrape()
        self._closed.set()
        self._ticking.join()
        self._hub.keep_totals()
        self._server.__exit__()
        if self._address_file is not None:
            with suppress(OSError):
                self._address_file.unlink()

    def _wait_for_a_scrape(self) -> None:
        if time.monotonic() - self._last_scrape < _RECENT_SECONDS:
            self._scraped.clear()
            self._scraped.wait(_LAST_SCRAPE_SECONDS)


def process_targets(status: Status, labels: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the processes that serve pages now: a target group for each role and pool."""
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
