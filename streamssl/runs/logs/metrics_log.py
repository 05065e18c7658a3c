"""RunLog: metrics.jsonl, one line for each step, which also proves the order of the samples.

A reading that is not finite is null in the file, since JSON has no NaN, and NaN when it is read.
After a crash the steps after the newest checkpoint are trained again. Their digests must be those
of the log: a different one is an error.
"""

import math
from pathlib import Path
from typing import Any

from cluster.protocol.step_report import StepReport
from shards.access import raise_denied
from shards.errors import ConfigError
from shards.file_systems import cannot_write
from shards.files import append_line, is_at, read_whole_lines, write_atomic
from shards.plain_json import to_json
from streamssl.errors import ReplayDiffers
from streamssl.runs.logs.tensorboard_log import TensorBoardLog, step_scalars
from streamssl.saved_files import SavedStep, parse_saved


class RunLog:
    """Appends steps to metrics.jsonl in `out`. Use as a context.

    Lines after `start_step` are removed, and their digests are expected again; from block
    `changed_from` on the user wants other batches. `events` gets a copy of every step.
    """

    def __init__(
        self,
        out: Path,
        start_step: int,
        changed_from: int | None = None,
        events: TensorBoardLog | None = None,
    ) -> None:
        self._path = path = out / "metrics.jsonl"
        self._events = events
        self._expected: dict[int, str] = {}
        kept: list[bytes] = []
        for line in _read_lines(path):
            fields = _parse(line)
            if fields is not None and fields["step"] <= start_step:
                kept.append(line + b"\n")
            elif fields is not None and not _is_changed(fields, changed_from):
                self._expected[fields["step"]] = fields["digest"]
        try:
            write_atomic(path, b"".join(kept))
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise cannot_write(error, path) from error

    def write(self, report: StepReport) -> dict[str, Any]:
        """Append one step and return its line.

        Raises ReplayDiffers, and UserError if the file cannot be written.
        """
        expected = self._expected.pop(report.step, report.digest)
        if expected != report.digest:
            raise ReplayDiffers(
                f"step {report.step} was trained on batch {expected} before the restart and on "
                f"{report.digest} now; the order must never change: keep this folder and report it"
            )
        fields: dict[str, Any] = {
            "step": report.step,
            "loss": report.loss,
            "lr": report.lr,
            "digest": report.digest,
            "cursor": [report.cursor.block, report.cursor.slot],
            "num_samples": report.num_samples,
            "num_rejects": len(report.rejects),
            "num_unselected": report.num_unselected,
            "step_seconds": round(report.step_seconds, 4),
            "data_wait_seconds": round(report.data_wait_seconds, 4),
            "readings": dict(report.readings),
        }
        try:
            append_line(self._file.fileno(), to_json(fields).encode())
        except OSError as error:
            raise cannot_write(error, self._path) from error
        if self._events is not None:
            self._events.write(report.step, step_scalars(fields))
        return fields

    @property
    def is_lost(self) -> bool:
        """Return True if somebody removed or moved the file."""
        return not is_at(self._file.fileno(), self._path)

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_log(out: Path) -> dict[int, dict[str, Any]]:
    """Return the lines of metrics.jsonl by step."""
    lines = _read_lines(out / "metrics.jsonl")
    return {fields["step"]: fields for line in lines if (fields := _parse(line)) is not None}


def _read_lines(path: Path) -> list[bytes]:
    try:
        return read_whole_lines(path)
    except OSError as error:
        raise_denied(error, path)
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); it is a file of a run: put back a copy, or "
            "move it away to go on without the log of earlier steps"
        ) from error


def _is_changed(fields: dict[str, Any], changed_from: int | None) -> bool:
    """Return True if a logged batch reached into changed blocks; old logs have no cursor."""
    block, slot = fields.get("cursor", (0, 0))
    last = block if slot else block - 1
    return changed_from is not None and last >= changed_from


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the fields of a line; None for a damaged one."""
    try:
        fields = parse_saved(SavedStep, line)
    except ValueError:
        return None
    if fields.get("loss", 0.0) is None:  # of a step that was left out
        fields["loss"] = math.nan
    readings = fields.get("readings", {})
    fields["readings"] = {name: math.nan if x is None else x for name, x in readings.items()}
    return fields
