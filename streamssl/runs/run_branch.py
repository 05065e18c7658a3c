"""Run branch: a run goes on from a checkpoint that its user names, perhaps with other settings.

What was trained after that checkpoint before is moved into a folder `abandoned-N` of the run. The
branch is a line of branches.jsonl; the same command later goes on from the newest checkpoint.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import ConfigError
from shards.file_systems import cannot_write
from shards.files import read_whole_lines, write_atomic
from shards.plain_json import to_json
from streamssl import checkpoint
from streamssl.config.run_config import RunConfig, changes, read_toml
from streamssl.evaluation.scores import SCORES
from streamssl.runs.file_names import ABANDONED, BRANCHES

_METRICS = "metrics.jsonl"


@dataclass(frozen=True, slots=True)
class RunBranch:
    """A branch of the run in `out` after `step`; `changed` has old and new values of settings."""

    out: Path
    step: int
    changed: Mapping[str, tuple[Any, Any]]

    def begin(self) -> str:
        """Set aside what was trained after the step; return a line about it, or "".

        A kill in between leaves a run that the same command branches again. Raises UserError.
        """
        newer = [found for found in checkpoint.list_checkpoints(self.out) if self._is_after(found)]
        try:
            folder = _new_folder(self.out)
            rows = {name: self._rows_after(name) for name in (_METRICS, SCORES)}
            for name, (_, later) in rows.items():
                if later:
                    folder.mkdir(exist_ok=True)
                    write_atomic(folder / name, b"".join(later))
            for found in reversed(newer):  # the newest of the others stays the newest
                folder.mkdir(exist_ok=True)
                os.replace(found, folder / found.name)
            kept, later = rows[SCORES]
            if later:
                write_atomic(self.out / SCORES, b"".join(kept))
            self._note(folder.name if folder.is_dir() else "")
        except OSError as error:
            raise cannot_write(error, self.out) from error
        if not folder.is_dir():
            return ""
        return (
            f"{len(rows[_METRICS][1])} steps and {len(newer)} checkpoints after step {self.step} "
            f"are kept in {folder}: remove it when you do not need them"
        )

    def _is_after(self, found: Path) -> bool:
        return found.name > checkpoint.path_of(self.out, self.step).name

    def _rows_after(self, name: str) -> tuple[list[bytes], list[bytes]]:
        """Return the lines of a log up to the step, and after it."""
        rows: tuple[list[bytes], list[bytes]] = ([], [])
        for line in read_whole_lines(self.out / name):
            rows[_step_of(line) > self.step].append(line + b"\n")
        return rows

    def _note(self, folder: str) -> None:
        """Append the branch to branches.jsonl."""
        path = self.out / BRANCHES
        fields = {
            "step": self.step,
            "changed": {name: list(values) for name, values in self.changed.items()},
            "abandoned": folder,
        }
        lines = [line + b"\n" for line in read_whole_lines(path)]
        write_atomic(path, b"".join([*lines, to_json(fields).encode() + b"\n"]), durable=True)


def find_start(out: Path, name: str | None, config: RunConfig) -> tuple[Path | None, bool]:
    """Return the checkpoint from which a run goes on, and True if a branch begins there.

    Without a `name` that is the newest one. With the name of the last branch, whose settings are
    those of `config`, it is the newest one, too; `--keep` may have removed the named one since.
    Raises ConfigError.
    """
    saved = checkpoint.list_checkpoints(out)
    newest = saved[-1] if saved else None
    if name is None or (newest is not None and _is_last_branch(out, name, config)):
        return newest, False
    return _find(out, name, saved), True


def new_branch(out: Path, step: int, config: RunConfig) -> RunBranch:
    """Return the branch of a run after a step; `config` must have been checked."""
    return RunBranch(out, step, changes(read_toml(out / "config.toml"), config))


def values_at(out: Path, step: int) -> dict[str, Any]:
    """Return what later branches have changed since a step of the log: values at that step."""
    values: dict[str, Any] = {}
    for line in reversed(read_whole_lines(out / BRANCHES)):
        if step > _step_of(line):
            break
        values |= {name: old for name, (old, _) in json.loads(line)["changed"].items()}
    return values


def _find(out: Path, name: str, saved: list[Path]) -> Path:
    for found in saved:
        if _is_named(name, found):
            return found
    if not saved:
        raise ConfigError(
            f"--from {name}: {out} has no checkpoint yet; leave --from out to start the run"
        )
    shown = ", ".join(one.name for one in saved)
    raise ConfigError(f"--from {name} is no checkpoint of {out}; there are {shown}: name one")


def _is_named(name: str, found: Path) -> bool:
    """Return True if a user means this checkpoint: by its name, or a path from here or its run."""
    path = Path(name)
    return (
        str(path) in (found.name, f"checkpoints/{found.name}") or path.resolve() == found.resolve()
    )


def _is_last_branch(out: Path, name: str, config: RunConfig) -> bool:
    """Return True if the last branch of a run began at this checkpoint, with these settings."""
    step = _last_branch(out)
    if step is None or not _is_named(name, checkpoint.path_of(out, step)):
        return False
    return not changes(read_toml(out / "config.toml"), config)


def _last_branch(out: Path) -> int | None:
    """Return the step of the newest branch; None if there is none."""
    lines = read_whole_lines(out / BRANCHES)
    return _step_of(lines[-1]) if lines else None


def _step_of(line: bytes) -> int:
    """Return the step of a line; -1 for a damaged one, which stays where it is."""
    try:
        step: Any = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return -1
    return step if isinstance(step, int) else -1


def _new_folder(out: Path) -> Path:
    taken = {path.name for path in out.glob(f"{ABANDONED}*")}
    number = next(n for n in range(1, len(taken) + 2) if f"{ABANDONED}{n}" not in taken)
    return out / f"{ABANDONED}{number}"
