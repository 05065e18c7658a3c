"""A Prometheus of one's own: started with the rules of `deploy/`, and told which runs there are.

The only file that starts a program: the Prometheus that is on the PATH, by its own name, without a
shell. It listens on the loopback address alone.
"""

import json
import os
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

RULES: Final = Path(__file__).parents[1] / "deploy" / "prometheus" / "streamssl.rules.yml"
# What a Ray on a head writes.
RAY_TARGETS: Final = Path("/tmp/ray/prom_metrics_service_discovery.json")
_LOOK_SECONDS = 1.0
_ANSWER_SECONDS = 2.0
_READY_SECONDS = 30.0
_END_SECONDS = 20.0

Addresses = Callable[[], Sequence[str]]
"""Where runs serve their metrics at this moment, such as http://127.0.0.1:9464."""
Known = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Watching:
    """By which rules a Prometheus watches, how often it scrapes, and where a Ray lists its own."""

    rules: Path = RULES
    scrape: str = "2s"
    ray_targets: Path = RAY_TARGETS


@contextmanager
def prometheus(
    folder: Path, port: int, targets: Path, watching: Watching | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A Prometheus that keeps its data in `folder` and scrapes what `targets` lists, while open.

    Raises ConfigError when there is none, or it does not start.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise ConfigError(
            "no program `prometheus` is on the PATH; install it (apt install prometheus), or use "
            "the files of cluster/deploy/compose/"
        )
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "prometheus.json"
    config.write_text(json.dumps(prometheus_config(targets, watching), indent=2))
    address = f"127.0.0.1:{port}"
    command = [
        program,
        f"--config.file={config}",
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


def follow(
    process: subprocess.Popen[bytes], targets: Path, addresses: Addresses, stop: Callable[[], bool]
) -> None:
    """Keep `targets` true until `stop()`. Raises StreamSSLError when Prometheus ends."""
    known: Known = {}
    while not stop():
        write_targets(targets, find_targets(addresses(), known))
        try:
            code = process.wait(_LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        raise StreamSSLError(
            f"prometheus ended with status {code}; its last words are in "
            f"{targets.parent / 'prometheus.log'}"
        )


def prometheus_config(targets: Path, watching: Watching | None = None) -> dict[str, Any]:
    """What is scraped, and how often. JSON is YAML."""
    watching = watching or Watching()
    files: list[dict[str, Any]] = [{"files": [str(targets)], "refresh_interval": "5s"}]
    ray: list[dict[str, Any]] = [{"files": [str(watching.ray_targets)], "refresh_interval": "15s"}]
    return {
        "global": {"scrape_interval": watching.scrape, "evaluation_interval": watching.scrape},
        "rule_files": [str(watching.rules)],
        "scrape_configs": [
            {"job_name": "streamssl", "file_sd_configs": files},
            {"job_name": "ray", "file_sd_configs": ray},
        ],
    }


def find_targets(
    addresses: Sequence[str], known: Known, answer_seconds: float = _ANSWER_SECONDS
) -> list[dict[str, Any]]:
    """What each run that answers says of itself; the others have ended, or not begun.

    One that is too busy to answer in time is what it was: `known` is what was said last.
    """
    for address in addresses:
        known[address] = _ask(address, known.get(address, []), answer_seconds)
    return [one for address in addresses for one in known[address]]


def write_targets(path: Path, targets: list[dict[str, Any]]) -> None:
    """All of it or nothing: Prometheus may be reading."""
    text = json.dumps(targets)
    if path.exists() and path.read_text() == text:
        return
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text)
    os.replace(draft, path)


def _ask(address: str, before: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{address}/sd", timeout=seconds) as answer:
            found: list[dict[str, Any]] = json.load(answer)
    except TimeoutError:
        return before
    except (OSError, ValueError) as error:  # it has ended, or somebody else has its port now
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
