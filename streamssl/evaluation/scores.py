"""File scores.jsonl of a run: one line for each score of a checkpoint."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shards.plain_json import to_json

SCORES: Final = "scores.jsonl"
_TAIL_BYTES = 1 << 14  # longer than any line


@dataclass(frozen=True, slots=True)
class KnnScore:
    """k-NN accuracy in percent of the encoder of `step`, by number of neighbours.

    `num_left_out` test samples could not be read or have no label.
    """

    step: int
    knn: Mapping[int, float]
    num_train: int
    num_test: int
    num_left_out: int = 0

    @property
    def headline(self) -> float:
        """Accuracy for the first number of neighbours."""
        return next(iter(self.knn.values()))


def keep_score(out: Path, score: KnnScore) -> None:
    """Append a score. Raises OSError."""
    fields = {
        "step": score.step,
        "knn": {str(k): accuracy for k, accuracy in score.knn.items()},
        "num_train": score.num_train,
        "num_test": score.num_test,
        "num_left_out": score.num_left_out,
    }
    with (out / SCORES).open("a") as file:
        file.write(to_json(fields) + "\n")


def read_scores(out: Path) -> dict[int, KnnScore]:
    """Return scores by step, in the order of computation; the last one of a step counts."""
    path = out / SCORES
    lines = path.read_text(errors="replace").splitlines() if path.exists() else []
    return {score.step: score for line in lines if (score := _parse(line)) is not None}


def newest_score(out: Path) -> KnnScore | None:
    """Return the score that was computed last; reads only the end of the file."""
    try:
        with (out / SCORES).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    return next((found for line in reversed(lines) if (found := _parse(line)) is not None), None)


def _parse(line: str) -> KnnScore | None:
    """Return None for a line that is torn or not a score."""
    try:
        fields: Any = json.loads(line)
        knn = {int(k): float(accuracy) for k, accuracy in fields["knn"].items()}
        counts = (int(fields[name]) for name in ("step", "num_train", "num_test"))
        step, num_train, num_test = counts
        score = KnnScore(step, knn, num_train, num_test, int(fields.get("num_left_out", 0)))
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return score if knn else None
