"""A run as a process of its own, in a process group of its own, as a terminal starts it."""

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

PATIENCE = 200.0  # seconds until a drill gives up waiting


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
        """Look again and again, since the moment matters; fail when the run ends before it."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"it ended before {what}:\n{self.text}"
            assert time.monotonic() < deadline, f"no {what} in {PATIENCE} s:\n{self.text}"
            time.sleep(0.002)

    def wait_for_step(self, step: int) -> None:
        """Until this many steps are written down."""
        path = self.out / "metrics.jsonl"
        self.wait_for(
            lambda: path.exists() and path.read_bytes().count(b"\n") >= step, f"step {step}"
        )

    def wait_for_draft(self) -> None:
        """Until a checkpoint is being written."""
        folder = self.out / "checkpoints"
        self.wait_for(
            lambda: folder.is_dir() and any(folder.glob(".draft-[0-9]*/*")), "checkpoint under way"
        )

    def metric(self, name: str, **labels: str) -> float:
        """What the run says on /metrics; 0 for what it does not say."""
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
        """Wait for the end; its exit code."""
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """As the out-of-memory killer does it."""
        self.process.kill()
        assert self.end() == -signal.SIGKILL

    def readers(self) -> list[psutil.Process]:
        """The reader processes of a local Ray."""
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
    """A run that is not left behind, nor is anything that it started."""
    run = Run(config, data, out, *more, env=env, program=program)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            os.killpg(run.process.pid, signal.SIGKILL)
            run.process.wait(PATIENCE)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
