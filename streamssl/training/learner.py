"""PretrainLearner: the training of a run, alone or on ranks, one step at a time.

Ranks hold the same state and see different rows. The collectives of a step come in this order:
those of the method in its loss, batch norm in both directions, gradients, and last the loss, the
readings and the votes. The weights change only after the last one, and only if all numbers are
finite: the sums of that collective are the same on every rank, so all of them leave a step out.
"""

import json
from collections.abc import Mapping
from hashlib import blake2b
from math import nan

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from cluster.protocol.learner import LearnerState, StopVote
from cluster.protocol.step_report import SampleId, StepReport
from cluster.trainers.rendezvous import Ranks
from shards.records import CropBatch, Cursor
from streamssl import checkpoint
from streamssl.checkpoint import TrainState
from streamssl.config.run_config import RunConfig
from streamssl.distributed.gradients import average_gradients, gradient_norm
from streamssl.errors import TrainingDiverged
from streamssl.methods.base import StepOutput
from streamssl.modules.batch_norm import enter_group, share_batch_norm
from streamssl.optim.clipping import clip_gradients
from streamssl.training.finite_guard import StepNumbers, largest_norm, optimized
from streamssl.training.gradient_step import apply_gradients, compute_gradients, learning_rate
from streamssl.training.step_phases import phases_of
from streamssl.training.train_state import build_state

_NOTHING = torch.zeros((), dtype=torch.float64)
# Names of readings that only the guard reads.
_CHANGED, _UPDATED = "norm changed", "norm updated"


def build_learner(config: RunConfig) -> "PretrainLearner":
    """Build a learner on the first GPU, or on the CPU; its state is loaded afterwards."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return PretrainLearner(config, device, build_state(config, device, fresh=False))


class PretrainLearner:
    """A `cluster.protocol.learner.Learner`. `train_state` is built unless it is given."""

    def __init__(
        self, config: RunConfig, device: torch.device, train_state: TrainState | None = None
    ) -> None:
        self.config, self.device = config, device
        self.train_state = build_state(config, device) if train_state is None else train_state
        self.phases = phases_of(device, config.precision)
        share_batch_norm(self.train_state.method)
        self._group: ProcessGroup | None = None
        # Copies of all that a loss may write to; the optimizer comes after the collectives.
        self._before: dict[str, Tensor] = {}
        self._is_undone = self._can_undo = True
        self._updated = _NOTHING  # largest norm of weights and momenta after the last update

    @property
    def step(self) -> int:
        return self.train_state.step

    @property
    def cursor(self) -> Cursor | None:
        return self.train_state.cursor

    def enter(self, group: ProcessGroup | None) -> None:
        enter_group(self.train_state.method, group)
        self.train_state.method.group = group  # type: ignore[assignment]
        self._group = group

    def train_step(self, batch: CropBatch, vote: StopVote) -> tuple[StepReport, StopVote]:
        config, state, phases = self.config, self.train_state, self.phases
        lr = learning_rate(config, state.step)
        self._remember()
        self._is_undone = False
        output = self._compute(batch)
        with phases.phase("collectives"):
            average_gradients(state.optimizer, self._group)
            norm = gradient_norm(state.optimizer)
            readings = {
                **output.readings,
                "gradient_norm": norm,
                _CHANGED: largest_norm(state.method.state_dict().values()),
                _UPDATED: self._updated,
            }
            exchange = _Exchange(output.loss.detach(), readings, vote, self._group)
        loss, numbers = exchange.values()
        found = StepNumbers(
            loss, numbers["gradient_norm"], numbers.pop(_CHANGED), numbers.pop(_UPDATED)
        )
        if found.are_finite:
            self._can_undo = False
            clip_gradients(state.optimizer, norm, config.optim.clip_norm)
            apply_gradients(state, batch.cursor, phases)
            self._is_undone = self._can_undo = True
            self._updated = largest_norm(optimized(state.optimizer))
        else:
            numbers = self._leave_out(found, batch.cursor)
        report = StepReport(
            step=state.step,
            cursor=batch.cursor,
            digest=batch.digest,
            loss=loss,
            lr=lr,
            num_samples=len(batch),
            rejects=batch.rejects,
            num_unselected=batch.num_unselected,
            readings={**numbers, **phases.readings()},
            phase_seconds=phases.take(),
            sample=_first_sample(batch),
        )
        return report, exchange.vote

    def rollback(self) -> None:
        if self._is_undone:
            return
        if not self._can_undo:
            raise RuntimeError("a step broke after its state had begun to change: nothing to undo")
        self.train_state.method.load_state_dict(self._before)
        self.train_state.optimizer.zero_grad(set_to_none=True)
        self._is_undone = True

    def state(self) -> LearnerState:
        return checkpoint.take(self.train_state)

    def load(self, state: LearnerState) -> None:
        checkpoint.fill(self.train_state, state, "the transferred state")
        self._updated = _NOTHING
        self._is_undone = self._can_undo = True

    def digest(self) -> str:
        tensors, numbers = checkpoint.named(self.train_state)
        cursor = self.cursor and self.cursor.to_json()
        found = blake2b(json.dumps([self.step, cursor, numbers]).encode(), digest_size=16)
        for name, value in sorted(tensors.items()):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            plain = value.detach().cpu().contiguous()
            found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    def _compute(self, batch: CropBatch) -> StepOutput:
        """Compute gradients. Raises TrainingDiverged if the weights before are not finite."""
        rank = 0 if self._group is None else self._group.rank()
        try:
            return compute_gradients(
                self.config, self.train_state, batch, self.device, rank, self.phases
            )
        except Exception as error:
            found = StepNumbers(nan, nan, nan, float(self._updated))
            if found.has_weights:
                raise
            raise TrainingDiverged(found.describe(self.step + 1), self.step + 1) from error

    def _leave_out(self, found: StepNumbers, cursor: Cursor) -> dict[str, float]:
        """Undo the step, and count it as left out; return its readings.

        Raises TrainingDiverged if no further step may be left out.
        """
        if self._can_undo:
            self.rollback()
        state, limit = self.train_state, self.config.max_skipped_steps
        text = found.describe(state.step + 1)
        if not found.has_weights:
            raise TrainingDiverged(text, state.step + 1)
        if state.num_skipped >= limit:
            used = f", after {limit} steps that --max-skipped-steps left out" if limit else ""
            raise TrainingDiverged(f"{text}{used}", state.step + 1, can_skip=True)
        state.num_skipped += 1
        state.step += 1
        state.cursor = cursor
        return {"gradient_norm": found.gradient_norm, "skipped_steps": float(state.num_skipped)}

    def _remember(self) -> None:
        """Copy the state for `rollback`, if a peer may be lost or the step may be left out."""
        self._can_undo = self._group is not None or self.config.max_skipped_steps > 0
        if not self._can_undo:
            self._before = {}
            return
        now = self.train_state.method.state_dict()
        if self._before.keys() != now.keys():
            self._before = {name: value.clone() for name, value in now.items()}
        else:
            torch._foreach_copy_(list(self._before.values()), list(now.values()))


class _Exchange:
    """The last collective of a step: means of loss and readings, and the strongest vote.

    On ranks the numbers are read at once: only then is it certain that all peers took part. Alone
    `values` reads them in one transfer.
    """

    def __init__(
        self,
        loss: Tensor,
        readings: Mapping[str, Tensor | float],
        vote: StopVote,
        group: ProcessGroup | None,
    ) -> None:
        self.vote = vote
        self._floats = {name: x for name, x in readings.items() if not isinstance(x, Tensor)}
        tensors = {name: x for name, x in readings.items() if isinstance(x, Tensor)}
        self._names = [*sorted(tensors), *sorted(self._floats)]
        values = [loss, *(tensors[name] for name in sorted(tensors))]
        self._numbers = torch.stack([value.to(loss.device).double() for value in values])
        if group is not None:
            self._reduce(group)

    def values(self) -> tuple[float, dict[str, float]]:
        """Return the mean loss and the mean readings. Waits for the device."""
        loss, *numbers = self._numbers.tolist()
        return loss, dict(zip(self._names, numbers, strict=False)) | self._floats

    def _reduce(self, group: ProcessGroup) -> None:
        floats = [float(self._floats[name]) for name in sorted(self._floats)]
        votes = [self.vote == StopVote.REGROUP, self.vote == StopVote.STOP]
        more = torch.tensor([*floats, *votes], dtype=torch.float64)
        both = torch.cat([self._numbers, more.to(self._numbers.device)])
        dist.all_reduce(both, group=group)
        both = both.cpu()
        if isinstance(group, Ranks):
            group.check()
        *_, regroup, stop = both.tolist()
        self._numbers, self._floats = both[:-2] / group.size(), {}
        self.vote = StopVote.STOP if stop else StopVote.REGROUP if regroup else StopVote.CONTINUE


def _first_sample(batch: CropBatch) -> SampleId:
    shard, offset = batch.ids[0].tolist()
    return shard, offset, int(batch.epochs[0])
