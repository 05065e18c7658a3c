"""Runs as child processes, each in its own process group, as a terminal starts them."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from streamssl.config.run_config import RunConfig, write_toml
from tests.tinyrun import read_log

TIMEOUT_SECONDS = 200.0


class Run:
    """One start of `streamssl pretrain`."""

    def __init__(
        self,
        config: RunConfig,
        data: Path | str,
        out: Path,
        *more: object,
        env: Mapping[str, str] | None = None,
        program: str = "streamssl.cli",
    ) -> None:
        self.out = out
        recipe = out.with_name(f"{out.name}.toml")
        write_toml(config, recipe)
        options = ["--data", data, "--out", out, "--readers", 1, *more]
        command = [sys.executable, "-m", program, "pretrain", recipe, *options]
        self.log = out.with_name(f"{out.name}.log")
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | dict(env or {}),
            )

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Poll quickly until `condition` holds; fail when the run ends before."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not condition():
            assert self.process.poll() is None, f"it ended before {what}:\n{self.text}"
            assert time.monotonic() < deadline, f"no {what} in {TIMEOUT_SECONDS} s:\n{self.text}"
            time.sleep(0.002)

    def wait_for_step(self, step: int) -> None:
        """Wait until the log holds this many steps."""
        path = self.out / "metrics.jsonl"
        self.wait_for(
            lambda: path.exists() and path.read_bytes().count(b"\n") >= step, f"step {step}"
        )

    def wait_for_draft(self) -> None:
        """Wait until a checkpoint is being written."""
        folder = self.out / "checkpoints"
        self.wait_for(
            lambda: folder.is_dir() and any(folder.glob(".draft-[0-9]*/*")), "checkpoint under way"
        )

    def metric(self, name: str, **labels: str) -> float:
        """Return a value of /metrics; 0 for an absent series."""
        url = re.findall(r"metrics at (\S+)", self.text)[-1]
        with urllib.request.urlopen(url, timeout=10) as answer:
            page = answer.read().decode()
        shown = ",".join(f'{key}="{value}"' for key, value in labels.items())
        wanted = f"streamssl_{name}" + (f"{{{shown}}}" if shown else "")
        for line in page.splitlines():
            found, _, value = line.rpartition(" ")
            if found == wanted:
                return float(value)
        return 0.0

    def end(self) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(TIMEOUT_SECONDS)

    def kill(self) -> None:
        """Kill the process with SIGKILL, as the out-of-memory killer does."""
        self.process.kill()
        assert self.end() == -signal.SIGKILL

    def readers(self) -> list[psutil.Process]:
        """Return the reader processes of a local Ray."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "ray::Reader" in " ".join(_command(child))]

    @property
    def text(self) -> str:
        return self.log.read_text()

    @property
    def last_step(self) -> int:
        log = read_log(self.out)
        return log[-1]["step"] if log else 0


@contextmanager
def started(
    config: RunConfig,
    data: Path | str,
    out: Path,
    *more: object,
    env: Mapping[str, str] | None = None,
    program: str = "streamssl.cli",
) -> Iterator[Run]:
    """Start a run, and kill its whole process group at exit."""
    run = Run(config, data, out, *more, env=env, program=program)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait(TIMEOUT_SECONDS)


def asked(*words: object) -> subprocess.CompletedProcess[str]:
    """Run another command of `streamssl`, and return its result."""
    command = [sys.executable, "-m", "streamssl.cli", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
    )


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
