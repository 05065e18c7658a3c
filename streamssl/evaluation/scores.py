"""File scores.jsonl of a run: one line for each score of a checkpoint."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Final

from shards.access import raise_denied
from shards.files import append_line
from shards.plain_json import to_json
from streamssl.saved_files import SavedScore, parse_saved

SCORES: Final = "scores.jsonl"
_TAIL_BYTES = 1 << 14  # longer than any line


@dataclass(frozen=True, slots=True)
class KnnScore:
    """k-NN accuracy in percent of the encoder of `step`, by number of neighbours.

    `num_left_out` test samples could not be read or have no label. `untrained` is the accuracy of
    the encoder before its first step, if it was scored, too. `sets` names the images and settings:
    accuracies may be compared if they have the same.
    """

    step: int
    knn: Mapping[int, float]
    num_train: int
    num_test: int
    num_left_out: int = 0
    sets: str = ""
    untrained: Mapping[int, float] = field(default_factory=dict)

    @property
    def headline(self) -> float:
        """Accuracy for the first number of neighbours."""
        return next(iter(self.knn.values()))

    @property
    def below_untrained(self) -> str:
        """A sentence if the untrained encoder is better; else empty."""
        worse = [k for k, found in self.knn.items() if found < self.untrained.get(k, 0.0)]
        if not worse:
            return ""
        k = worse[0]
        return (
            f"the trained encoder scores {self.knn[k]:.1f} % with k={k}, below the "
            f"{self.untrained[k]:.1f} % of the untrained one: the run has made its features worse "
            "for these labels; docs/is-it-learning.md names causes, and `streamssl live RUN` shows "
            "the course of the run"
        )


def find_untrained(out: Path, sets: str) -> Mapping[int, float]:
    """Return the accuracy of the untrained encoder on these sets, if it was scored before."""
    found: dict[int, float] = {}
    for score in _read_all(out):
        if score.sets == sets:
            found |= score.untrained
    return found


def keep_score(out: Path, score: KnnScore) -> None:
    """Append a score. Raises OSError."""
    fields = {
        "step": score.step,
        "knn": {str(k): accuracy for k, accuracy in score.knn.items()},
        "num_train": score.num_train,
        "num_test": score.num_test,
        "num_left_out": score.num_left_out,
        "sets": score.sets,
        "untrained": {str(k): accuracy for k, accuracy in score.untrained.items()},
    }
    path = out / SCORES
    line = to_json(fields).encode()
    with path.open("a+b", buffering=0) as file:
        if (size := file.seek(0, os.SEEK_END)) and os.pread(file.fileno(), 1, size - 1) != b"\n":
            line = b"\n" + line  # a killed writer left half a line
        append_line(file.fileno(), line)


def read_scores(out: Path) -> dict[int, KnnScore]:
    """Return scores by step, in the order of computation; the last one of a step counts."""
    return {score.step: score for score in _read_all(out)}


def _read_all(out: Path) -> list[KnnScore]:
    try:
        lines = (out / SCORES).read_bytes().splitlines()
    except OSError as error:
        raise_denied(error, out / SCORES)
        return []
    return [score for line in lines if (score := _parse(line)) is not None]


def newest_score(out: Path) -> KnnScore | None:
    """Return the score that was computed last; reads only the end of the file."""
    try:
        with (out / SCORES).open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    return next((found for line in reversed(lines) if (found := _parse(line)) is not None), None)


def _parse(line: bytes) -> KnnScore | None:
    """Return None for a line that is torn or not a score."""
    try:
        fields = parse_saved(SavedScore, line)
        for name in ("knn", "untrained"):
            fields[name] = {int(k): found for k, found in fields.get(name, {}).items()}
    except ValueError:
        return None
    known = {one.name for one in dataclass_fields(KnnScore)}
    return KnnScore(**{name: found for name, found in fields.items() if name in known})
