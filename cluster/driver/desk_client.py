"""Desk client: asks the driver of a run on this machine, over HTTP with the token of the run.

Imports no Ray, and unpickles nothing: an answer is JSON, and is checked.
"""

import http.client
import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from cluster.driver.fault_drill import DrillTarget
from cluster.protocol.run_status import Status
from cluster.protocol.status_json import status_from_json
from shards.errors import ConfigError

_SECONDS = 60.0  # a drill waits for a new process on the node of its target
_MAX_BYTES = 64 << 20
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d{1,5})")
_BUSY = 503


@dataclass(frozen=True, slots=True)
class DeskClient:
    """Client of the desk at an address such as http://127.0.0.1:9464, where the run listens."""

    address: str
    token: str

    def __post_init__(self) -> None:
        found = _ADDRESS.fullmatch(self.address)
        if found is None or not 0 < int(found[1]) < 1 << 16:
            raise ConfigError(
                f"{self.address!r} is no address of a run; it must be http://127.0.0.1:PORT: start "
                "the run again, which writes its address"
            )

    def status(self) -> Status:
        """Return the status of the run. Raises ConfigError if it does not answer."""
        found = self.try_status()
        if found is None:
            raise ConfigError(
                "no Control of this run answers; a run has one while its command runs: start that "
                "again, or name another run"
            )
        return found

    def try_status(self) -> Status | None:
        """Return the status, None while Control does not answer. Raises ConfigError."""
        code, text = self._ask("GET", "/status")
        if code == _BUSY:
            return None
        try:
            return status_from_json(self._answer(code, text))
        except ValueError as error:
            raise self._unknown(error) from error

    def drill(self, fault: str, name: str) -> tuple[DrillTarget, float]:
        """Break a target; return it, and how long ago that was in seconds. Raises ConfigError."""
        code, text = self._ask("POST", f"/drill?{urlencode({'fault': fault, 'name': name})}")
        fields = self._json(code, text)
        try:
            return DrillTarget.from_json(fields["target"]), float(fields["seconds"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise self._unknown(error) from error

    def resume(self, target: DrillTarget) -> None:
        """End a hang. Raises ConfigError."""
        code, text = self._ask("POST", f"/continue?{urlencode({'name': target.names[0]})}")
        self._answer(code, text)

    def _json(self, code: int, text: str) -> dict[str, Any]:
        try:
            fields = json.loads(self._answer(code, text))
        except (ValueError, RecursionError) as error:
            raise self._unknown(error) from error
        return fields if isinstance(fields, dict) else {}

    def _answer(self, code: int, text: str) -> str:
        if code == http.client.OK:
            return text
        if code == http.client.NOT_FOUND:
            raise ConfigError(
                "this run trains in one process and has no Control; status and drills are for runs "
                f"that were started with --cluster: its page is at {self.address}/"
            )
        raise ConfigError(" ".join(text.split())[:400] or f"the run answers with status {code}")

    def _ask(self, method: str, path: str) -> tuple[int, str]:
        port = int(self.address.rpartition(":")[2])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
        try:
            connection.request(method, path, headers={"Authorization": f"Bearer {self.token}"})
            answer = connection.getresponse()
            return answer.status, answer.read(_MAX_BYTES).decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise ConfigError(
                f"no run answers at {self.address} ({error or type(error).__name__}); a run "
                "answers while its command runs: start that again, or name another run"
            ) from error
        finally:
            connection.close()

    def _unknown(self, error: object) -> ConfigError:
        return ConfigError(
            f"what answers at {self.address} is no run of this version ({error}); start the run "
            "again with the version that asks"
        )
