"""Schemas of the small files of a run: what each must hold, whoever wrote or damaged it.

Files may be cut, or changed by hand, by another version or by a failing disk. Every reader
validates them here, so that it meets right types or one ValueError of one line.
"""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from shards.validation import explain_invalid

Count = Annotated[int, Field(ge=0, lt=1 << 63)]
Seconds = Annotated[FiniteFloat, Field(ge=0)]
Percent = Annotated[FiniteFloat, Field(ge=0, le=100)]


class SavedFile(BaseModel):
    """A file, or a line of one. Later versions may add fields."""

    model_config = ConfigDict(strict=True, extra="allow")


class SavedNumbers(SavedFile):
    """Numbers of the run and, such as `7.step`, of its optimizer; null was not finite."""

    skipped_steps: Count = 0
    __pydantic_extra__: dict[str, int | float | None]


class SavedState(SavedFile):
    """`state.json` of a checkpoint."""

    format: int
    step: Count
    method: str
    cursor: dict[str, Any]
    numbers: SavedNumbers


class SavedStep(SavedFile):
    """A line of `metrics.jsonl`; lines of earlier versions lack some fields."""

    step: Count
    digest: str
    loss: FiniteFloat | None = 0.0
    lr: FiniteFloat = 0.0
    cursor: Annotated[list[Count], Field(min_length=2, max_length=2)] = [0, 0]
    num_samples: Count = 0
    num_rejects: Count = 0
    num_unselected: Count = 0
    step_seconds: Seconds = 0.0
    data_wait_seconds: Seconds = 0.0
    readings: dict[str, FiniteFloat | None] = {}


class SavedDivergence(SavedFile):
    """`diverged.json`: the newest step that was not finite, and the start that came to it."""

    settings: str
    checkpoint: str
    step: Count
    found: str
    can_skip: bool
    num_starts: Count


class SavedScore(SavedFile):
    """A line of `scores.jsonl`; percent by the number of neighbours."""

    step: Count
    knn: Annotated[dict[str, Percent], Field(min_length=1)]
    num_train: Count
    num_test: Count
    num_left_out: Count = 0
    sets: str = ""
    untrained: dict[str, Percent] = {}


class SavedItem(SavedFile):
    """A sample in `gallery.json`; `reason` is empty unless it was rejected."""

    shard: Count
    offset: Count
    epoch: Count = 0
    step: Count = 0
    key: str = ""
    reason: str = ""
    detail: str = ""
    member: str = ""


class SavedGallery(SavedFile):
    """`gallery.json`: the samples that the live page showed last."""

    places: list[SavedItem]


def parse_saved(kind: type[SavedFile], text: bytes | str) -> dict[str, Any]:
    """Return the fields of a file, or of one of its lines. Raises ValueError of one line."""
    try:
        return kind.model_validate_json(text).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise ValueError(explain_invalid(error)) from error
