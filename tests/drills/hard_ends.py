"""Hard ends: faults that end the command of a run, after which the same command continues it.

Each checks that the end was one sentence, that no step before the last commit was lost, and that
the remedy in the sentence works. A fault belongs to a group, so that a soak can leave groups out.
"""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Final

import psutil

from streamssl import checkpoint
from tests.drills.jumping_clock import jump
from tests.drills.processes import Run

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_SAVED = (0, 130)  # exit codes of a run that has saved
_HOUR = 3600.0

Start = Callable[[], AbstractContextManager[Run]]


class Starts:
    """Starts of one run: on the cluster, or on a Ray of its own, one after the other. A context."""

    def __init__(self, on_cluster: Start, alone: Start) -> None:
        self._on_cluster, self._alone = on_cluster, alone
        self._open = ExitStack()
        self.number = 0

    def begin(self, *, alone: bool = False, steps: int = 3) -> Run:
        """Start the command again, and wait until it has done more steps."""
        run = self.begin_only(alone=alone)
        run.wait_for_step(run.last_step + steps)
        return run

    def begin_only(self, *, alone: bool = False) -> Run:
        """Start the command again."""
        self._open.close()
        self.number += 1
        return self._open.enter_context(self._alone() if alone else self._on_cluster())

    def __enter__(self) -> "Starts":
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()


class HardEnds:
    """Faults of these `groups`, in an order that `rng` decides; none again before all others.

    `run` trains on the cluster before and after each. `disk` is a folder on a small disk of which
    the run folder is a part, None if there is none. `clock` is the file of `jumping_clock`.
    """

    def __init__(
        self,
        starts: Starts,
        out: Path,
        rng: random.Random,
        groups: tuple[str, ...],
        *,
        save_every: int,
        clock: Path,
        disk: Path | None = None,
    ) -> None:
        self._starts, self._out, self._rng = starts, out, rng
        self._save_every, self._clock, self._disk = save_every, clock, disk
        self.run = starts.begin(steps=10)
        self.done: Counter[str] = Counter()
        known = {**self._faults(), **({} if disk is None else {"disks": [self._fill_disk]})}
        self._deeds = [deed for group in groups for deed in known.get(group, [])]
        self._deck: list[Callable[[], None]] = []

    def _faults(self) -> dict[str, list[Callable[[], None]]]:
        return {
            "signals": [self._signal(number) for number in SIGNALS],
            "kills": [self._kill_command, self._kill_raylet],
            "clocks": [self._jump(2 * _HOUR), self._jump(-2 * _HOUR)],
            "damage": [self._damage(name) for name in _SURVIVED | _REFUSED],
        }

    def next(self) -> None:
        """Break the run once; it trains on the cluster again afterwards."""
        if not self._deeds:
            return
        self._deck = self._deck or self._rng.sample(self._deeds, len(self._deeds))
        deed = self._deck.pop()
        deed()
        self.done[deed.__name__.strip("_").replace("_", " ")] += 1
        self._check_text()

    def _signal(self, number: signal.Signals) -> Callable[[], None]:
        """Return a signal to the process group, as scancel and a closed terminal send it."""

        def send() -> None:
            self._stop()
            run = self._starts.begin(alone=True)
            os.killpg(run.process.pid, number)
            self._check_saved(run)
            self.run = self._starts.begin()

        send.__name__ = f"{number.name}_to_the_group"
        return send

    def _kill_command(self) -> None:
        before = self.run.last_step
        self.run.kill()
        self._go_on(before)

    def _kill_raylet(self) -> None:
        """Kill the raylet under the driver, as the out-of-memory killer does."""
        self._stop()
        run = self._starts.begin(alone=True)
        children = psutil.Process(run.process.pid).children(recursive=True)
        before = run.last_step
        for child in children:
            with suppress(psutil.Error):
                if child.name() == "raylet":
                    child.kill()
        assert run.end() == 1, run.text
        assert "streamssl: the raylet of Ray on this machine ended" in run.text
        self._go_on(before)

    def _jump(self, seconds: float) -> Callable[[], None]:
        """Return a jump of the clock while the run trains, and back."""

        def set_clock() -> None:
            for offset in (seconds, 0.0):
                jump(self._clock, offset)
                self.run.wait_for_step(self.run.last_step + 5)
                self.run.metric("train_step")

        set_clock.__name__ = f"clock_{'ahead' if seconds > 0 else 'back'}"
        return set_clock

    def _fill_disk(self) -> None:
        """Fill the disk of the run folder; free it again after some seconds, or at the end."""
        assert self._disk is not None
        ballast, before = self._disk / "ballast", self.run.last_step
        with suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(b"\0" * (64 << 10))
                file.flush()
        with suppress(TimeoutExpired):  # a run may go on until it wants to save
            self.run.process.wait(20)
        ballast.unlink()
        if self.run.process.poll() is None:
            self.run.process.send_signal(signal.SIGINT)
        code = self.run.end()
        # A checkpoint that met the full disk may end the run at this very moment.
        assert code in _SAVED or "the disk is full" in self.run.text, f"{code}: {self.run.text}"
        self._go_on(before)

    def _damage(self, name: str) -> Callable[[], None]:
        """Return damage to a file of the run, between two starts."""

        def damage() -> None:
            self._stop()
            kept = self._out.with_name("kept")
            shutil.copytree(self._out, kept, symlinks=True)
            place, mode, content = (_SURVIVED | _REFUSED)[name]
            newest = checkpoint.list_checkpoints(self._out)[-1]
            path = self._out / place.format(newest=newest.name)
            path.parent.mkdir(exist_ok=True)
            with path.open(mode) as file:
                file.write(content)
            if name in _REFUSED:  # then the file is put back
                run = self._starts.begin_only()
                assert run.end() == 2, run.text
                shutil.rmtree(self._out)
                kept.rename(self._out)
            else:
                shutil.rmtree(kept)
            self.run = self._starts.begin()

        damage.__name__ = f"damaged {name}"
        return damage

    def _stop(self) -> None:
        self.run.process.send_signal(signal.SIGINT)
        self._check_saved(self.run)

    def _check_saved(self, run: Run) -> None:
        assert run.end() in _SAVED, run.text
        newest = checkpoint.list_checkpoints(self._out)[-1]
        assert newest.name == f"step-{run.last_step:08d}", run.text

    def _go_on(self, before: int) -> None:
        """Start again; at most the steps since the last checkpoint may come again."""
        saved = checkpoint.list_checkpoints(self._out)
        step = checkpoint.read_fields(saved[-1])["step"] if saved else 0
        assert step > before - 2 * self._save_every, f"step {step} is saved of {before}"
        self.run = self._starts.begin()

    def _check_text(self) -> None:
        assert "Traceback" not in self.run.text, self.run.text
        assert "received at time" not in self.run.text, self.run.text  # of Ray's own handlers


# Damage to files of a stopped run, by name: a file, how it is opened, and what is written.
_SURVIVED: Final = {
    "end of the log": ("metrics.jsonl", "ab", b'{"step": 1234567, "loss'),
    "end of the journal": ("journal.jsonl", "ab", b'{"torn'),
    "totals": ("totals.json", "wb", b"\xff{]"),
    "gallery": ("gallery.json", "wb", b'{"crops": 7}'),
    "address": (".metrics", "wb", b"\xff\xfe"),
    "draft of a checkpoint": ("checkpoints/.draft-00001000/state.safetensors", "wb", b"half"),
}
_REFUSED: Final = {  # in one sentence
    "state of the newest checkpoint": (
        "checkpoints/{newest}/state.json",
        "wb",
        b'{"step": "many"}',
    ),
    "tensors of the newest checkpoint": ("checkpoints/{newest}/state.safetensors", "wb", b"half"),
    "settings": ("config.toml", "wb", b"num_steps = ["),
}


def fitting(seconds: float, deadline: float) -> float:
    """Return the seconds that are left of these before the deadline."""
    return max(0.0, min(seconds, deadline - time.monotonic()))
