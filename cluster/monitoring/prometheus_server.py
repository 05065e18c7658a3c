"""Prometheus of the user: started with the rules of `deploy/`, and given the runs to scrape.

Only this file starts a program: the `prometheus` on the PATH, by its own name, without a shell. It
listens on the loopback address only.
"""

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shards.errors import ConfigError, StreamSSLError
from shards.files import write_atomic

RULES: Final = Path(__file__).parents[1] / "deploy" / "prometheus" / "streamssl.rules.yml"
# Targets that the head node of a Ray cluster writes.
RAY_TARGETS: Final = Path("/tmp/ray/prom_metrics_service_discovery.json")
_POLL_SECONDS = 1.0
_ANSWER_SECONDS = 2.0
_READY_SECONDS = 30.0
_END_SECONDS = 20.0

Addresses = Callable[[], Sequence[str]]
"""Returns the addresses of the runs at this moment, such as http://127.0.0.1:9464."""
KnownTargets = dict[str, list[dict[str, Any]]]
"""The newest answer of each address."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrometheusConfig:
    """Rules of a Prometheus, its scrape interval, and the file in which Ray lists its targets."""

    rules: Path = RULES
    scrape: str = "2s"
    ray_targets: Path = RAY_TARGETS


@contextmanager
def open_prometheus(
    folder: Path, port: int, targets: Path, config: PrometheusConfig | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Prometheus that keeps its data in `folder` and scrapes the targets of a file.

    Raises ConfigError if there is none, or it does not start.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise ConfigError(
            "no program `prometheus` is on the PATH; install it (apt install prometheus), or use "
            "the files of cluster/deploy/compose/"
        )
    folder.mkdir(parents=True, exist_ok=True)
    config_file = folder / "prometheus.json"
    config_file.write_text(json.dumps(prometheus_fields(targets, config), indent=2))
    address = f"127.0.0.1:{port}"
    command = [
        program,
        f"--config.file={config_file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    log = folder / "prometheus.log"
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        _await_ready(process, f"http://{address}/-/ready", log)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def update_targets(
    process: subprocess.Popen[bytes], targets: Path, addresses: Addresses, stop: Callable[[], bool]
) -> None:
    """Keep the file `targets` current until `stop()`. Raises StreamSSLError if Prometheus ends."""
    known: KnownTargets = {}
    while not stop():
        write_targets(targets, find_targets(addresses(), known))
        try:
            code = process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        raise StreamSSLError(
            f"prometheus ended with status {code}; read the end of "
            f"{targets.parent / 'prometheus.log'}"
        )


def prometheus_fields(targets: Path, config: PrometheusConfig | None = None) -> dict[str, Any]:
    """Return the configuration of Prometheus; it reads JSON, because JSON is YAML."""
    config = config or PrometheusConfig()
    files: list[dict[str, Any]] = [{"files": [str(targets)], "refresh_interval": "5s"}]
    ray: list[dict[str, Any]] = [{"files": [str(config.ray_targets)], "refresh_interval": "15s"}]
    return {
        "global": {"scrape_interval": config.scrape, "evaluation_interval": config.scrape},
        "rule_files": [str(config.rules)],
        "scrape_configs": [
            {"job_name": "streamssl", "file_sd_configs": files},
            {"job_name": "ray", "file_sd_configs": ray},
        ],
    }


def find_targets(
    addresses: Sequence[str], known: KnownTargets, answer_seconds: float = _ANSWER_SECONDS
) -> list[dict[str, Any]]:
    """Return the targets that each run reports; a run that does not listen has none.

    For a run that is too busy to answer in time, its last answer in `known` counts.
    """
    for address in addresses:
        known[address] = _request_targets(address, known.get(address, []), answer_seconds)
    return [one for address in addresses for one in known[address]]


def write_targets(path: Path, targets: list[dict[str, Any]]) -> None:
    """Replace the file if it changes. Prometheus may read it at any moment."""
    text = json.dumps(targets)
    if not path.exists() or path.read_text() != text:
        write_atomic(path, text)


def _request_targets(
    address: str, before: list[dict[str, Any]], seconds: float
) -> list[dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{address}/sd", timeout=seconds) as answer:
            found: list[dict[str, Any]] = json.load(answer)
    except TimeoutError:
        return before
    except (OSError, ValueError) as error:  # the run ended, or another program has its port
        return before if isinstance(getattr(error, "reason", None), TimeoutError) else []
    return found if isinstance(found, list) else []


def _await_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=_ANSWER_SECONDS).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise ConfigError(
        f"prometheus did not start; see {log}: if its port is taken, give another --port"
    )
