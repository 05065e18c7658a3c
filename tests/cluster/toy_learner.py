"""A learner without a network: three weights follow the mean colors of the crops."""

import json
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from cluster.protocol.learner import LearnerState, StopVote
from cluster.protocol.step_report import StepReport
from shards.records import CropBatch, Cursor

BATCH = 12


def made_batch(step: int) -> CropBatch:
    """Return the global batch of a step, always the same."""
    crops = np.random.default_rng(step).integers(0, 256, (BATCH, 1, 4, 4, 3), np.uint8)
    ids = np.stack([np.zeros(BATCH, np.int64), np.arange(BATCH) + step * BATCH], axis=1)
    cursor = Cursor(manifest="m", order="o", block=step + 1)
    return CropBatch((crops,), ids, np.zeros(BATCH, np.int64), cursor)


def made_report(step: int) -> StepReport:
    """Return the report of a step; the first one was trained on batch 0."""
    batch = made_batch(step - 1)
    return StepReport(
        step=step,
        cursor=batch.cursor,
        digest=batch.digest,
        loss=0.0,
        lr=0.1,
        num_samples=BATCH,
        sample=(0, 0, 0),
    )


def part(batch: CropBatch, rank: int, world: int) -> CropBatch:
    """Return a rank's rows of a global batch."""
    size = len(batch) // world
    rows = slice(rank * size, (rank + 1) * size)
    return replace(batch, crops=tuple(crops[rows] for crops in batch.crops))


class ToyLearner:
    """Moves its weights by the colors of all ranks; a broken step leaves them at zero."""

    def __init__(self) -> None:
        self.weights = torch.zeros(3, dtype=torch.float64)
        self.step, self.cursor = 0, None
        self._group: ProcessGroup | None = None
        self._before: torch.Tensor | None = None

    step: int
    cursor: Cursor | None

    def enter(self, group: ProcessGroup | None) -> None:
        self._group = group

    def train_step(self, batch: CropBatch, vote: StopVote) -> tuple[StepReport, StopVote]:
        self._before = self.weights.clone()
        self.weights.zero_()
        colors = torch.from_numpy(batch.crops[0].astype(np.float64)).sum((0, 1, 2, 3))
        votes = torch.tensor([vote == StopVote.REGROUP, vote == StopVote.STOP], dtype=torch.float64)
        both = torch.cat([colors, votes])
        if self._group is not None:
            dist.all_reduce(both, group=self._group)
        self.weights.copy_(0.9 * self._before + both[:3] / batch.ids[-1, 1])
        self._before = None
        self.step += 1
        self.cursor = batch.cursor
        return made_report(self.step), StopVote.STOP if both[4] else StopVote.REGROUP if both[
            3
        ] else StopVote.CONTINUE

    def look_ahead(self, peek: object) -> None:
        """A step without a device prepares nothing."""

    def rollback(self) -> None:
        if self._before is not None:
            self.weights, self._before = self._before, None

    def state(self) -> LearnerState:
        return LearnerState(self.step, self.cursor, {"weights": self.weights.clone()}, {"a": 1})

    def load(self, state: LearnerState) -> None:
        self.weights = state.tensors["weights"].clone()
        self.step, self.cursor, self._before = state.step, state.cursor, None

    def digest(self) -> str:
        cursor = self.cursor and self.cursor.to_json()
        text = json.dumps([self.step, cursor, self.weights.tolist()])
        return blake2b(text.encode(), digest_size=16).hexdigest()


def trained_alone(num_steps: int) -> ToyLearner:
    """Return an undisturbed learner after `num_steps` steps."""
    learner = ToyLearner()
    for step in range(num_steps):
        learner.train_step(made_batch(step), StopVote.CONTINUE)
    return learner
