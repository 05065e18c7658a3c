"""A run on elastic ranks: what `trainer` does alone, shared with others, one step at a time.

Ranks hold the same state and see different rows. What they tell each other in a step, in this
order: what the method shares while it computes its loss, batch norm in both directions, gradients,
and last the loss, the readings and the wishes. Only then does anything change for good.
"""

import json
from dataclasses import replace
from hashlib import blake2b

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from cluster.protocol.learner import LearnerState, Wish
from cluster.protocol.messages import StepRecord
from cluster.trainers.rendezvous import Ranks
from shards.records import CropBatch, Cursor
from streamssl import checkpoint
from streamssl.config.run_config import RunConfig
from streamssl.distributed.gradients import average_gradients, gradient_norm
from streamssl.methods.base import StepOutput
from streamssl.modules.batch_norm import enter_group, share_batch_norm
from streamssl.training.step_phases import phases_of
from streamssl.training.train_state import build_state
from streamssl.training.trainer import first_sample, learning_rate, train_step


def build_learner(config: RunConfig) -> "PretrainLearner":
    """A learner on the first GPU that torch sees here, else on the CPU."""
    return PretrainLearner(config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


class PretrainLearner:
    """See `cluster.protocol.learner.Learner`. Alone it computes, bit by bit, what `trainer.train` does."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.train_state = build_state(config, device)
        share_batch_norm(self.train_state.method)
        self._phases = phases_of(device, config.precision)
        self._group: ProcessGroup | None = None
        # All that computing a loss may write to, as it was before; the optimizer comes after it.
        self._before: dict[str, Tensor] = {}
        self._is_undone = self._is_whole = True

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

    def train_step(self, batch: CropBatch, wish: Wish) -> tuple[StepRecord, Wish]:
        heard = _Heard()

        def meet(output: StepOutput) -> None:
            average_gradients(self.train_state.optimizer, self._group)
            norm = gradient_norm(self.train_state.optimizer)
            readings = {**output.readings, "gradient_norm": norm}
            heard.exchange(replace(output, readings=readings), wish, self._group)
            self._is_whole = False  # from here on there is no way back

        lr = learning_rate(self.config, self.step)
        self._remember()
        self._is_undone = False
        rank = 0 if self._group is None else self._group.rank()
        train_step(
            self.config,
            self.train_state,
            batch,
            self.device,
            rank=rank,
            meet=meet,
            phases=self._phases,
        )
        self._is_undone = self._is_whole = True
        fields = {
            "loss": heard.loss,
            "lr": lr,
            "digest": batch.digest,
            "num_samples": len(batch),
            "rejects": batch.rejects,
            "num_unselected": batch.num_unselected,
            "readings": {**heard.readings, **self._phases.readings()},
            "phase_seconds": self._phases.take(),
            "sample": first_sample(batch),
        }
        return StepRecord(step=self.step, cursor=batch.cursor, fields=fields), heard.wish

    def rollback(self) -> None:
        if self._is_undone:
            return
        if not self._is_whole:
            raise RuntimeError(
                "a step broke while the optimizer moved: this state is worth nothing"
            )
        self.train_state.method.load_state_dict(self._before)
        self.train_state.optimizer.zero_grad(set_to_none=True)
        self._is_undone = True

    def state(self) -> LearnerState:
        return checkpoint.take(self.train_state)

    def load(self, state: LearnerState) -> None:
        checkpoint.fill(self.train_state, state, "the state that was handed over")
        self._is_undone = self._is_whole = True

    def digest(self) -> str:
        tensors, numbers = checkpoint.named(self.train_state)
        cursor = self.cursor and self.cursor.to_json()
        found = blake2b(json.dumps([self.step, cursor, numbers]).encode(), digest_size=16)
        for name, value in sorted(tensors.items()):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            plain = value.detach().cpu().contiguous()
            found.update(plain.reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    def _remember(self) -> None:
        now = self.train_state.method.state_dict()
        if self._before.keys() != now.keys():
            self._before = {name: value.clone() for name, value in now.items()}
        else:
            torch._foreach_copy_(list(self._before.values()), list(now.values()))


class _Heard:
    """The last exchange of a step: means of what is reported, and the strongest wish."""

    loss = 0.0
    wish = Wish.GO_ON

    def __init__(self) -> None:
        self.readings: dict[str, float] = {}

    def exchange(self, output: StepOutput, wish: Wish, group: ProcessGroup | None) -> None:
        names = sorted(output.readings)
        device = output.loss.device
        values = [output.loss.detach(), *(output.readings[name] for name in names)]
        numbers = torch.stack([torch.as_tensor(v, device=device).double() for v in values])
        wishes = torch.tensor([wish == Wish.REGROUP, wish == Wish.STOP], device=device)
        both = torch.cat([numbers, wishes.double()])
        if group is not None:
            dist.all_reduce(both, group=group)
            both[: len(values)] /= group.size()
        found = both.tolist()
        if isinstance(group, Ranks):
            group.check()
        self.loss = found[0]
        self.readings = dict(zip(names, found[1 : len(values)], strict=True))
        self.wish = Wish.STOP if found[-1] else Wish.REGROUP if found[-2] else Wish.GO_ON
