"""State that is handed over in memory: ranks that join become what the newest of them is.

Everything that is compared or sent goes through buffers of its own: a transfer that breaks leaves
the learner as it was.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from cluster.errors import StateDiffers
from cluster.protocol.learner import Learner, LearnerState
from cluster.protocol.messages import StepRecord
from cluster.trainers.rendezvous import Ranks
from shards.records import Cursor, Reject

_PIECE: Final = 64 << 20  # bytes of one broadcast


def agree(
    ranks: Ranks, learner: Learner, source: int, records: Sequence[StepRecord]
) -> tuple[StepRecord, ...] | None:
    """Make all ranks hold what rank `source` holds; what it has to report comes with it.

    None where all held the same already. Raises StateDiffers, GenerationOver.
    """
    if len(set(_views(ranks, learner))) == 1:
        return None
    if ranks.rank() == source:
        sent = learner.state()
        _send(ranks, source, sent, records)
    else:
        state, records = _receive(ranks, source)
        ranks.check()
        learner.load(state)
    check_same(ranks, learner)
    return tuple(records)


def check_same(ranks: Ranks, learner: Learner) -> None:
    """Raise StateDiffers on all ranks unless all hold the same state."""
    views = _views(ranks, learner)
    if len(set(views)) > 1:
        raise StateDiffers(
            f"after step {learner.step} the {ranks.size()} trainers do not hold the same state "
            f"({', '.join(f'{step}:{digest[:8]}' for step, digest in views)}); go on from a "
            "checkpoint before that step, and report it"
        )


def _views(ranks: Ranks, learner: Learner) -> list[tuple[int, str]]:
    """Step and digest of every rank, by rank."""
    mine = f"{learner.step:016d}{learner.digest():>32}".encode()
    return [(int(view[:16]), view[16:].decode()) for view in _gather_bytes(ranks, mine)]


def _gather_bytes(ranks: Ranks, mine: bytes) -> list[bytes]:
    """What every rank gives, by rank; all give equally many bytes."""
    part = torch.frombuffer(bytearray(mine), dtype=torch.uint8).to(ranks.device)
    parts = [torch.empty_like(part) for _ in range(ranks.size())]
    dist.all_gather(parts, part, group=ranks)
    found = [_bytes(part) for part in parts]
    ranks.check()
    return found


def _send(ranks: Ranks, source: int, state: LearnerState, records: Sequence[StepRecord]) -> None:
    head = json.dumps(
        {
            "step": state.step,
            "cursor": state.cursor and state.cursor.to_json(),
            "fields": state.fields,
            "tensors": [
                [name, str(value.dtype).removeprefix("torch."), list(value.shape)]
                for name, value in state.tensors.items()
            ],
            "records": [asdict(record) for record in records],
        }
    ).encode()
    _broadcast(ranks, source, torch.tensor([len(head)]))
    _broadcast(ranks, source, torch.frombuffer(bytearray(head), dtype=torch.uint8))
    values = [value.reshape(-1).view(torch.uint8) for value in state.tensors.values()]
    if values:
        _broadcast(ranks, source, torch.cat(values))


def _receive(ranks: Ranks, source: int) -> tuple[LearnerState, tuple[StepRecord, ...]]:
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
    return state, tuple(_record(fields) for fields in head["records"])


def _broadcast(ranks: Ranks, source: int, data: Tensor) -> Tensor:
    """`data` of rank `source`, on every rank, on the CPU. Theirs is overwritten."""
    moved = data.to(ranks.device)
    for piece in moved.split(_PIECE):
        dist.broadcast(piece, group=ranks, group_src=source)
    return moved.cpu()


def _bytes(data: Tensor) -> bytes:
    return data.cpu().numpy().tobytes()


def _cursor(fields: dict[str, Any] | None) -> Cursor | None:
    return None if fields is None else Cursor.from_json(fields)


def _record(saved: dict[str, Any]) -> StepRecord:
    fields = dict(saved["fields"])
    if "rejects" in fields:  # the one thing that a learner reports and JSON does not know
        fields["rejects"] = tuple(Reject(**reject) for reject in fields["rejects"])
    return StepRecord(step=saved["step"], cursor=Cursor.from_json(saved["cursor"]), fields=fields)
