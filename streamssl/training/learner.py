"""PretrainLearner: the training of a run, alone or on ranks, one step at a time.

Ranks hold the same state and see different rows. The collectives of a step come in this order:
those of the method in its loss, batch norm in both directions, gradients, and last the loss, the
readings and the votes. The weights change only after the last one, and only if all numbers are
finite: the sums of that collective are the same on every rank, so all of them leave a step out.
So there is one wait for the device in a step on ranks, and in one with a budget of steps to leave
out, since an update must not begin before it is known that it counts.

A learner that trains alone on a GPU does not wait: it applies the update, and its report has the
numbers when they have come. If they are not finite, the run ends at that step, and this state and
all later ones are lost: `state` raises, so that none of them is saved.
"""

import json
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from math import nan

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from cluster.protocol.learner import LearnerState, StopVote
from cluster.protocol.step_report import PendingReport, SampleId, StepReport
from cluster.trainers.rendezvous import Ranks
from shards.records import CropBatch, Cursor
from streamssl import checkpoint
from streamssl.checkpoint import TrainState
from streamssl.config.run_config import RunConfig
from streamssl.devices.crop_upload import CropUpload
from streamssl.devices.number_transfer import BeginTransfer, begin_transfer
from streamssl.devices.step_exchange import DeferredStep, Numbers, StepExchange
from streamssl.distributed.gradient_buckets import GradientBuckets
from streamssl.distributed.gradients import gradient_norm
from streamssl.errors import TrainingDiverged
from streamssl.methods.base import Method, StepOutput
from streamssl.modules.batch_norm import enter_group, share_batch_norm
from streamssl.optim.clipping import clip_gradients
from streamssl.training.finite_guard import StepNumbers, largest_norm, optimized
from streamssl.training.gradient_step import apply_gradients, compute_gradients, learning_rate
from streamssl.training.step_phases import phases_of
from streamssl.training.train_state import build_state
from streamssl.training.undo_copy import UndoCopy

# Names of readings that only the guard reads.
_CHANGED, _UPDATED = "norm changed", "norm updated"


def build_learner(config: RunConfig) -> "PretrainLearner":
    """Build a learner on the first GPU, or on the CPU; its state is loaded afterwards."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return PretrainLearner(config, device, build_state(config, device, fresh=False))


class PretrainLearner:
    """A `cluster.protocol.learner.Learner`. `train_state` is built unless it is given.

    `log_every` 1 reads the numbers of each step before its update; a larger one lets them come
    later, where that is possible. `begin` transfers them; by default that of the device.
    """

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        train_state: TrainState | None = None,
        *,
        log_every: int = 1,
        begin: BeginTransfer | None = None,
    ) -> None:
        self.config, self.device, self.log_every = config, device, log_every
        self.train_state = build_state(config, device) if train_state is None else train_state
        self.phases = phases_of(device, config.precision)
        method: Method = self.train_state.method  # type: ignore[assignment]
        share_batch_norm(method)
        self._group: ProcessGroup | None = None
        self._buckets = self._buckets_of(None)
        self._upload = CropUpload(device)
        self._peek: Callable[[], CropBatch | None] = lambda: None
        # On a CPU numbers are there at once, so nothing is gained by reading them later.
        may_defer = log_every > 1 and not config.max_skipped_steps
        self._defers = may_defer and (device.type != "cpu" or begin is not None)
        self._begin = begin or begin_transfer
        self._unread: deque[DeferredStep] = deque()
        # The optimizer comes after the collectives.
        self._undo = UndoCopy(method)
        changed = {id(parameter) for parameter in method.changed_by_loss()}
        entries = self.train_state.optimizer.param_groups
        trained = {id(parameter) for entry in entries for parameter in entry["params"]} - changed
        self._moved_by_update = {
            name
            for name, parameter in method.named_parameters(remove_duplicate=False)
            if id(parameter) in trained
        }
        self._is_undone = self._can_undo = True
        self._forget_update()

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
        self._buckets.close()
        self._buckets = self._buckets_of(group)

    def look_ahead(self, peek: Callable[[], CropBatch | None]) -> None:
        self._peek = peek

    def train_step(
        self, batch: CropBatch, vote: StopVote
    ) -> tuple[StepReport | PendingReport, StopVote]:
        config, state, phases = self.config, self.train_state, self.phases
        lr = learning_rate(config, state.step)
        self._remember()
        self._is_undone = False
        self._buckets.begin()
        output = self._compute(batch)
        if self._can_undo:
            self._undo.check()
        with phases.phase("collectives"):
            has_gradient = self._buckets.finish()
            norm = gradient_norm(state.optimizer)
            readings = {
                **output.readings,
                "gradient_norm": norm,
                _CHANGED: largest_norm(self._changeable()),
                _UPDATED: self._updated,
            }
            exchange = StepExchange(output.loss.detach(), readings, vote, self._group, has_gradient)
        begun = StepReport(
            step=state.step + 1,
            cursor=batch.cursor,
            digest=batch.digest,
            loss=nan,
            lr=lr,
            num_samples=len(batch),
            rejects=batch.rejects,
            num_unselected=batch.num_unselected,
            sample=_first_sample(batch),
        )
        mark = phases.mark()
        if self._defers and self._group is None:
            exchange.begin(self._begin)
            self._update(batch.cursor, norm)
            step = DeferredStep(exchange, partial(self._finish, begun, mark))
            while self._unread and self._unread[0].is_read:
                self._unread.popleft()
            self._unread.append(step)
            return step, vote
        exchange.begin(self._begin)
        self._prepare_next()
        numbers = exchange.values()
        found = _found(numbers)
        if found.are_finite:
            self._buckets.drop_absent(exchange.counts)
            self._update(batch.cursor, norm)
            return self._finish(begun, mark, numbers), exchange.vote
        left_out = numbers[0], self._leave_out(found, batch.cursor)
        return self._report(begun, mark, left_out), exchange.vote

    def rollback(self) -> None:
        if self._is_undone:
            return
        if not self._can_undo:
            raise RuntimeError("a step broke after its state had begun to change: nothing to undo")
        self._undo.restore()
        self.train_state.optimizer.zero_grad(set_to_none=True)
        self._is_undone = True

    def state(self) -> LearnerState:
        for step in self._unread:
            step.read()
        return checkpoint.take(self.train_state)

    def load(self, state: LearnerState) -> None:
        checkpoint.fill(self.train_state, state, "the transferred state")
        self._unread.clear()
        self._forget_update()
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
                self.config, self.train_state, batch, self._upload, rank, self.phases
            )
        except Exception as error:
            found = StepNumbers(nan, nan, nan, float(self._updated))
            if found.has_weights:
                raise
            raise TrainingDiverged(found.describe(self.step + 1), self.step + 1) from error

    def _changeable(self) -> Iterator[Tensor]:
        """Yield the state that a loss may change. `_updated` has the rest, which updates move."""
        for name, value in self.train_state.method.state_dict().items():
            if name not in self._moved_by_update:
                yield value

    def _prepare_next(self) -> None:
        """Copy the next batch to the GPU, if it is there, while this step computes."""
        batch = self._peek()
        if batch is not None:
            self._upload.begin(batch.crops)

    def _buckets_of(self, group: ProcessGroup | None) -> GradientBuckets:
        state = self.train_state
        # Their own connection lets batch norm sum in backward, too, without waiting for them.
        beside = group.beside if isinstance(group, Ranks) else group
        return GradientBuckets(state.optimizer, state.method.parameters(), beside)

    def _update(self, cursor: Cursor, norm: Tensor) -> None:
        """Move the weights by gradients of this norm, and count the step."""
        self._can_undo = False
        clip_gradients(self.train_state.optimizer, norm, self.config.optim.clip_norm)
        apply_gradients(self.train_state, cursor, self.phases)
        self._is_undone = self._can_undo = True
        self._updated = largest_norm(optimized(self.train_state.optimizer))

    def _finish(
        self, begun: StepReport, mark: torch.cuda.Event | None, numbers: Numbers
    ) -> StepReport:
        """Return the report of a step by its numbers. Raises TrainingDiverged."""
        found = _found(numbers)
        if not found.are_finite:
            # The steps from this one on do not count.
            self.train_state.step = begun.step - 1
            raise TrainingDiverged(
                found.describe(begun.step), begun.step, can_skip=found.has_weights
            )
        loss, readings = numbers
        kept = {name: x for name, x in readings.items() if name not in (_CHANGED, _UPDATED)}
        return self._report(begun, mark, (loss, kept))

    def _report(
        self, begun: StepReport, mark: torch.cuda.Event | None, numbers: Numbers
    ) -> StepReport:
        loss, readings = numbers
        return replace(
            begun,
            loss=loss,
            readings={**readings, **self.phases.readings(mark)},
            phase_seconds=self.phases.take(),
        )

    def _forget_update(self) -> None:
        """Let the largest norm of weights and momenta after the last update be unknown."""
        self._updated = torch.zeros((), dtype=torch.float64, device=self.device)

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
        """Copy what the loss changes, if a peer may be lost or the step may be left out."""
        self._can_undo = self._group is not None or self.config.max_skipped_steps > 0
        if self._can_undo:
            self._undo.take()
        else:
            self._undo.drop()


def _found(numbers: Numbers) -> StepNumbers:
    """Return the numbers that must be finite."""
    loss, readings = numbers
    return StepNumbers(loss, readings["gradient_norm"], readings[_CHANGED], readings[_UPDATED])


def _first_sample(batch: CropBatch) -> SampleId:
    shard, offset = batch.ids[0].tolist()
    return shard, offset, int(batch.epochs[0])
