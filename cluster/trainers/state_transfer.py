"""State transfer: the newest rank sends its state to the others, and all compare digests.

Everything that is compared or sent has a buffer of its own, so a broken transfer changes no
learner.
"""

import json
from collections.abc import Sequence
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.errors import StateDiffers
from cluster.protocol.learner import Learner, LearnerState
from cluster.protocol.step_report import StepReport
from cluster.trainers.rendezvous import Ranks
from shards.records import Cursor

_PART_BYTES: Final = 64 << 20  # of one broadcast


def transfer_state(
    ranks: Ranks, learner: Learner, source: int, reports: Sequence[StepReport]
) -> tuple[StepReport, ...] | None:
    """Give the state of rank `source` to all ranks, and return the pending reports of that rank.

    Return None if all ranks had the same state. Raises StateDiffers, GenerationOver.
    """
    if len(set(_gather_digests(ranks, learner))) == 1:
        return None
    if ranks.rank() == source:
        _send(ranks, source, learner.state(), reports)
    else:
        state, reports = _receive(ranks, source)
        ranks.check()
        learner.load(state)
    check_same(ranks, learner)
    return tuple(reports)


def check_same(ranks: Ranks, learner: Learner) -> None:
    """Raise StateDiffers on all ranks unless all hold the same state."""
    digests = _gather_digests(ranks, learner)
    if len(set(digests)) > 1:
        raise StateDiffers(
            f"after step {learner.step} the {ranks.size()} trainers do not hold the same state "
            f"({', '.join(f'{step}:{digest[:8]}' for step, digest in digests)}); go on from a "
            "checkpoint before that step, and report it"
        )


def _gather_digests(ranks: Ranks, learner: Learner) -> list[tuple[int, str]]:
    """Return step and digest of every rank, by rank."""
    mine = f"{learner.step:016d}{learner.digest():>32}".encode()
    part = torch.frombuffer(bytearray(mine), dtype=torch.uint8).to(ranks.device)
    parts = [torch.empty_like(part) for _ in range(ranks.size())]
    dist.all_gather(parts, part, group=ranks)
    found = [_bytes(part) for part in parts]
    ranks.check()
    return [(int(one[:16]), one[16:].decode()) for one in found]


def _send(ranks: Ranks, source: int, state: LearnerState, reports: Sequence[StepReport]) -> None:
    head = json.dumps(
        {
            "step": state.step,
            "cursor": state.cursor and state.cursor.to_json(),
            "fields": state.fields,
            "tensors": [
                [name, str(value.dtype).removeprefix("torch."), list(value.shape)]
                for name, value in state.tensors.items()
            ],
            "reports": [report.to_json() for report in reports],
        }
    ).encode()
    _broadcast(ranks, source, torch.tensor([len(head)]))
    _broadcast(ranks, source, torch.frombuffer(bytearray(head), dtype=torch.uint8))
    values = [value.reshape(-1).view(torch.uint8) for value in state.tensors.values()]
    if values:
        _broadcast(ranks, source, torch.cat(values))


def _receive(ranks: Ranks, source: int) -> tuple[LearnerState, tuple[StepReport, ...]]:
    length = int(_broadcast(ranks, source, torch.tensor([0])))
    head = json.loads(_bytes(_broadcast(ranks, source, torch.empty(length, dtype=torch.uint8))))
    layout = [(name, getattr(torch, kind), shape) for name, kind, shape in head["tensors"]]
    sizes = [torch.Size(shape).numel() * kind.itemsize for _, kind, shape in layout]
    flat = torch.empty(sum(sizes), dtype=torch.uint8)
    parts = _broadcast(ranks, source, flat).split(sizes) if layout else ()
    tensors = {
        name: part.clone().view(kind).reshape(shape)
        for (name, kind, shape), part in zip(layout, parts, strict=True)
    }
    state = LearnerState(head["step"], _cursor(head["cursor"]), tensors, head["fields"])
    return state, tuple(StepReport.from_json(report) for report in head["reports"])


def _broadcast(ranks: Ranks, source: int, data: Tensor) -> Tensor:
    """Return `data` of rank `source`, on the CPU. On the other ranks `data` is overwritten."""
    moved = data.to(ranks.device)
    for part in moved.split(_PART_BYTES):
        dist.broadcast(part, group=ranks, group_src=source)
    return moved.cpu()


def _bytes(data: Tensor) -> bytes:
    return data.cpu().numpy().tobytes()


def _cursor(fields: dict[str, Any] | None) -> Cursor | None:
    return None if fields is None else Cursor.from_json(fields)
