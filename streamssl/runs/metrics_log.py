"""What a run writes down as it goes: metrics.jsonl, one line a step, and the proof of its order.

After a crash the steps behind the newest checkpoint are trained again. Their digests are compared
with those in the log: a replay that differs is an error, not a footnote.
"""

import json
import math
import os
from pathlib import Path
from typing import Any, TextIO

from streamssl.errors import ReplayDiffers, TrainingDiverged
from streamssl.runs.event_file import EventFile, scalars_of
from streamssl.training.trainer import StepReport


class RunLog:
    """Appends steps to `out`/metrics.jsonl, whole lines only. Use as a context.

    From block `changed_from` on, the user wants other batches than those that were logged. `events`
    gets a copy of every step.
    """

    def __init__(
        self,
        out: Path,
        start_step: int,
        changed_from: int | None = None,
        events: EventFile | None = None,
    ) -> None:
        self._path, self._events = out / "metrics.jsonl", events
        self._expected: dict[int, str] = {}
        kept: list[str] = []
        for line in self._read_lines():
            fields = _parse(line)
            if fields is not None and fields["step"] <= start_step:
                kept.append(line)
            elif fields is not None and not _is_changed(fields, changed_from):
                self._expected[fields["step"]] = fields["digest"]
        # A kill at this very moment must not cost the lines of the whole run.
        draft = self._path.with_name(f".{self._path.name}.draft")
        draft.write_text("".join(f"{line}\n" for line in kept))
        os.replace(draft, self._path)
        self._file: TextIO = self._path.open("a")

    def _read_lines(self) -> list[str]:
        return self._path.read_text().splitlines() if self._path.exists() else []

    def write(self, report: StepReport) -> dict[str, Any]:
        """Append one step and return its fields. Raises ReplayDiffers, TrainingDiverged."""
        expected = self._expected.pop(report.step, report.digest)
        if expected != report.digest:
            raise ReplayDiffers(
                f"step {report.step} was trained on batch {expected} before the restart and on "
                f"{report.digest} now; the order must never change: keep this folder and report it"
            )
        loss = float(report.loss)
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"the loss is {loss} at step {report.step}; lower --optim.base-lr, or set "
                "--precision fp32, and go on from the newest checkpoint"
            )
        fields: dict[str, Any] = {
            "step": report.step,
            "loss": loss,
            "lr": report.lr,
            "digest": report.digest,
            "cursor": [report.cursor.block, report.cursor.slot],
            "num_samples": report.num_samples,
            "num_rejects": len(report.rejects),
            "num_unselected": report.num_unselected,
            "step_seconds": round(report.step_seconds, 4),
            "data_wait_seconds": round(report.data_wait_seconds, 4),
            "readings": {name: float(value) for name, value in report.readings.items()},
        }
        self._file.write(json.dumps(fields) + "\n")
        self._file.flush()
        if self._events is not None:
            self._events.write(report.step, scalars_of(fields))
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
    """The whole lines of metrics.jsonl by step."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {fields["step"]: fields for line in lines if (fields := _parse(line)) is not None}


def _is_changed(fields: dict[str, Any], changed_from: int | None) -> bool:
    """Whether a logged batch reached into what was changed since; old logs do not tell."""
    block, slot = fields.get("cursor", (0, 0))
    last = block if slot else block - 1
    return changed_from is not None and last >= changed_from


def _parse(line: str) -> dict[str, Any] | None:
    """The fields of a line; None for the torn last line of a killed process."""
    try:
        fields: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and {"step", "digest"} <= fields.keys() else None
