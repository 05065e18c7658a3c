"""RunLog: metrics.jsonl, one line for each step, which also proves the order of the samples.

A reading that is not finite is null in the file, since JSON has no NaN, and NaN when it is read.
After a crash the steps after the newest checkpoint are trained again. Their digests must be those
of the log: a different one is an error.
"""

import json
import math
from pathlib import Path
from typing import Any

from cluster.protocol.step_report import StepReport
from shards.access import raise_denied
from shards.files import read_whole_lines, write_atomic
from shards.plain_json import is_real, to_json
from streamssl.errors import ReplayDiffers
from streamssl.runs.tensorboard_log import TensorBoardLog, step_scalars

# Fields of a line; old logs lack some of them.
_COUNTS = ("step", "num_samples", "num_rejects", "num_unselected")
_REALS = ("lr", "step_seconds", "data_wait_seconds")


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
        path, self._events = out / "metrics.jsonl", events
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
            self._file = path.open("a")
        except OSError as error:
            raise_denied(error, path)
            raise

    def write(self, report: StepReport) -> dict[str, Any]:
        """Append one step and return its line. Raises ReplayDiffers."""
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
        self._file.write(to_json(fields) + "\n")
        self._file.flush()
        if self._events is not None:
            self._events.write(report.step, step_scalars(fields))
        return fields

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
        raise


def _is_changed(fields: dict[str, Any], changed_from: int | None) -> bool:
    """Return True if a logged batch reached into changed blocks; old logs have no cursor."""
    block, slot = fields.get("cursor", (0, 0))
    last = block if slot else block - 1
    return changed_from is not None and last >= changed_from


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the fields of a line; None for a damaged one."""
    try:
        fields: Any = json.loads(line)
    except ValueError:
        return None
    if not isinstance(fields, dict) or not {"step", "digest"} <= fields.keys():
        return None
    readings = fields.setdefault("readings", {})
    cursor = fields.get("cursor", [0, 0])
    loss = fields.get("loss", 0)
    is_whole = (
        all(isinstance(fields.get(name, 0), int) for name in _COUNTS)
        and isinstance(fields["digest"], str)
        and isinstance(readings, dict)
        and all(is_real(x) for x in readings.values() if x is not None)
        and (loss is None or is_real(loss))
        and all(is_real(fields.get(name, 0)) for name in _REALS)
        and isinstance(cursor, list)
        and [type(x) for x in cursor] == [int, int]
    )
    if not is_whole:
        return None
    if loss is None:  # of a step that was left out
        fields["loss"] = math.nan
    fields["readings"] = {name: math.nan if x is None else x for name, x in readings.items()}
    return fields
