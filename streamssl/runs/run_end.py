"""End of a run: `end.json` in its folder says how its last start ended, for `live` and `status`."""

import fcntl
import json
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from cluster.monitoring.run_state import RunEnding
from shards.errors import BudgetExceeded, ShardUnreadable, StreamEnded, StreamStopped
from shards.files import write_atomic
from streamssl.errors import TrainingDiverged
from streamssl.runs.file_names import END

_TRAINING: Final = "training"
_OF_DATA: Final = (StreamEnded, BudgetExceeded, ShardUnreadable)
_MAX_WHY = 2000  # characters
_TAIL_BYTES = 1 << 16  # longer than any line of the log


@dataclass(frozen=True, slots=True)
class RunEnd:
    """End of a run, and the step at which it came; `why` is the error that ended it, if one did."""

    how: RunEnding
    step: int
    num_steps: int
    why: str = ""

    def describe(self) -> str:
        """Return the end as a sentence without its full stop."""
        at = f"at step {self.step:,} of {self.num_steps:,}"
        because = f": {self.why}" if self.why else ""
        # A second signal leaves without saving, so that may be an earlier step.
        goes_on = "the same command continues from its newest checkpoint"
        return {
            "done": f"it is done: all {self.num_steps:,} steps are trained",
            "stopped": f"it was stopped {at}; {goes_on}",
            "diverged": f"it diverged {at}{because}",
            "data": f"its data ended it {at}{because}",
            "failed": f"it failed {at}{because}",
            "killed": f"it was killed {at}, or its machine went down; {goes_on}",
            "unknown": f"it ended {at}; its folder does not say why",
        }[self.how]


def keep_start(out: Path, step: int, num_steps: int) -> None:
    """Note in the folder that the run trains: if the note stays, the run was killed."""
    _write(out, _TRAINING, step, num_steps)


def keep_end(out: Path, end: RunEnd) -> None:
    """Note in the folder of a run how it ended. A full disk costs only the note."""
    if (out / "config.toml").exists():
        _write(out, end.how, end.step, end.num_steps, end.why)


def ending_of(error: BaseException) -> RunEnding:
    """Return how a run ends that this error ends."""
    if isinstance(error, StreamStopped | KeyboardInterrupt):
        return "stopped"
    if isinstance(error, TrainingDiverged):
        return "diverged"
    return "data" if isinstance(error, _OF_DATA) else "failed"


def read_end(out: Path, num_steps: int | None = None) -> RunEnd | None:
    """Return how the run in the folder `out` ended; `num_steps` if the caller knows them.

    Must be called only when no process trains into the folder. None: its folder does not say it.
    """
    how, why, step, planned = _read(out)
    num_steps = num_steps or planned
    if not num_steps:
        return None
    step = max(step, _last_step(out))
    if step >= num_steps:
        return RunEnd("done", step, num_steps)
    if how == _TRAINING:
        return RunEnd("killed", step, num_steps)
    # `done` of fewer steps: --num-steps was raised since.
    known = how != "done" and how in get_args(RunEnding)
    return RunEnd(how if known else "unknown", step, num_steps, why)


def is_training(run: Path) -> bool:
    """Return True if a process of this machine trains into the folder."""
    try:
        with (run / ".lock").open("r") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    except OSError:  # a file system without locks
        return _is_alive(run)
    return False


def _is_alive(run: Path) -> bool:
    """Return True if the process that noted its start is one of this machine, and lives."""
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        fields = json.loads((run / END).read_bytes())
        host, _, process = fields["process"].rpartition(":")
        if fields["how"] == _TRAINING and host == socket.gethostname():
            os.kill(int(process), 0)
            return True
    return False


def _read(out: Path) -> tuple[Any, str, int, int]:
    """Return how, why, the step and all steps; empty values for a missing or damaged file."""
    # Checked by hand: `status` must not wait for the import of pydantic.
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        fields = json.loads((out / END).read_bytes())
        how, why, *counts = (fields[name] for name in ("how", "why", "step", "num_steps"))
        if type(how) is type(why) is str and all(type(n) is int and n >= 0 for n in counts):
            return how, why, counts[0], counts[1]
    return "", "", 0, 0


def _last_step(out: Path) -> int:
    """Return the step of the last whole line of the log; 0 without one. Reads only its end."""
    with suppress(OSError):
        path = out / "metrics.jsonl"
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
        for line in reversed(lines):
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                step = json.loads(line)["step"]
                if type(step) is int:
                    return step
    return 0


def _write(out: Path, how: str, step: int, num_steps: int, why: str = "") -> None:
    why = " ".join(why.split())[:_MAX_WHY]
    process = f"{socket.gethostname()}:{os.getpid()}"
    fields = {"how": how, "why": why, "step": step, "num_steps": num_steps, "process": process}
    try:
        write_atomic(out / END, json.dumps(fields))
    except OSError:  # the disk is full: the log says where the run ended
        with suppress(OSError):
            (out / END).unlink()
