"""Run desk: answers `streamssl status` and `streamssl drill` about a run on a cluster, as JSON.

Commands ask the driver and never join the Ray of a run: whoever joins a Ray runs what it sends.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, get_args

from ray.exceptions import RayError

from cluster.driver.fault_drill import Fault
from cluster.driver.fault_injection import choose_target, do_nothing, inject, run_on
from cluster.monitoring.http_server import HttpResponse, Page
from cluster.protocol.actor_rpc import CONTROL, ActorClient, Unreachable
from cluster.protocol.run_status import Status
from cluster.protocol.status_json import status_to_json
from shards.errors import ConfigError

_ANSWER_SECONDS = 5.0
_JSON = "application/json"


class RunDesk:
    """Pages for commands of the run's user; they answer while the run is connected to Ray.

    GET /status                      the status, from Control
    POST /drill?fault=…&name=…       break the named target, or the first that fits
    POST /continue?name=…            end the hang of a target
    """

    def __init__(self) -> None:
        self._is_open = False
        self._resume: dict[str, Callable[[], None]] = {}

    @contextmanager
    def open(self) -> Iterator[None]:
        """Answer while the context lasts."""
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False

    @property
    def pages(self) -> dict[str, Page]:
        """The pages, for a server."""
        return {
            "/status": self._status,
            "POST /drill": self._drill,
            "POST /continue": self._continue,
        }

    def _read(self) -> Status:
        """Return the status. Raises Unreachable."""
        if not self._is_open:  # a call would start a Ray of its own
            raise Unreachable("the run is not connected to Ray: it begins, or ends")
        found: Status = ActorClient(CONTROL).call("status", seconds=_ANSWER_SECONDS)
        return found

    def _status(self, _: Mapping[str, str]) -> HttpResponse:
        try:
            return HttpResponse(status_to_json(self._read()).encode(), _JSON)
        except Unreachable as error:
            return _refused(503, error)

    def _drill(self, query: Mapping[str, str]) -> HttpResponse:
        fault: Any = query.get("fault", "")
        if fault not in get_args(Fault):
            return _refused(400, f"fault={fault!r}; it must be one of {', '.join(get_args(Fault))}")
        try:
            target = choose_target(self._read(), fault, query.get("name", ""))
            run_on(target.node, do_nothing)  # a worker process takes seconds to start
            began = time.monotonic()
            resume = inject(target, fault)
        except ConfigError as error:
            return _refused(409, error)
        except (Unreachable, RayError) as error:
            return _refused(503, error)
        self._resume[target.names[0]] = resume
        fields = {"target": target.to_json(), "seconds": time.monotonic() - began}
        return HttpResponse(json.dumps(fields).encode(), _JSON)

    def _continue(self, query: Mapping[str, str]) -> HttpResponse:
        resume = self._resume.pop(query.get("name", ""), None)
        if resume is not None and self._is_open:
            try:
                resume()
            except RayError as error:
                return _refused(503, f"the hang could not be ended ({error})")
        return HttpResponse(b"{}", _JSON)


def _refused(status: int, why: object) -> HttpResponse:
    return HttpResponse(f"{why}\n".encode(), status=status)
