"""scores.jsonl: what checkpoints of a run scored, a line each, for whoever watches the run."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SCORES: Final = "scores.jsonl"
_TAIL_BYTES = 1 << 14  # far more than a line


@dataclass(frozen=True, slots=True)
class KnnScore:
    """k-NN accuracy in percent of the encoder of `step`, by how many neighbours voted."""

    step: int
    knn: Mapping[int, float]
    num_train: int
    num_test: int

    @property
    def headline(self) -> float:
        """The accuracy by the number of neighbours that was named first."""
        return next(iter(self.knn.values()))


def keep_score(out: Path, score: KnnScore) -> None:
    """Append a line, whole. Raises OSError."""
    fields = {
        "step": score.step,
        "knn": {str(k): accuracy for k, accuracy in score.knn.items()},
        "num_train": score.num_train,
        "num_test": score.num_test,
    }
    with (out / SCORES).open("a") as file:
        file.write(json.dumps(fields) + "\n")


def read_scores(out: Path) -> dict[int, KnnScore]:
    """By step, in the order in which they were computed; later ones of a step count."""
    path = out / SCORES
    lines = path.read_text().splitlines() if path.exists() else []
    return {score.step: score for line in lines if (score := _parse(line)) is not None}


def newest_score(out: Path) -> KnnScore | None:
    """The one that was computed last; reads the end of the file alone."""
    try:
        with (out / SCORES).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    return next((found for line in reversed(lines) if (found := _parse(line)) is not None), None)


def _parse(line: str) -> KnnScore | None:
    """None for a line that is torn, or not ours."""
    try:
        fields: Any = json.loads(line)
        knn = {int(k): float(accuracy) for k, accuracy in fields["knn"].items()}
        score = KnnScore(
            int(fields["step"]), knn, int(fields["num_train"]), int(fields["num_test"])
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return score if knn else None
