"""Batch assembly: how many calls a trainer needs for its rows."""

import numpy as np

from cluster.protocol.messages import BatchPlan, Plans
from cluster.trainers.batch_assembly import BatchAssembly
from shards.records import Cursor

READERS, AHEAD, STEPS, ROW = 4, 16, 64, (1, 2, 2, 3)
HOLDERS = {task: f"r{task}" for task in range(READERS)}


def plan_of(step: int) -> BatchPlan:
    """Return a batch with one row of every reader."""
    numbers = np.arange(READERS)
    ids = np.stack([numbers, np.full(READERS, step)], axis=1)
    rows = np.full(READERS, step)
    cursor = Cursor(manifest="m", order="o", slot=step)
    return BatchPlan(step, ids, np.zeros(READERS, np.int64), numbers, rows, cursor, (), 0)


def test_rows_of_later_batches_wait_for_more_rows_of_their_reader() -> None:
    """With many readers, each call would fetch the one row that a reader has of a batch."""
    assembly = BatchAssembly(max_bytes=1 << 20)
    assembly.enter(0, 1, 0)
    calls = []
    for step in range(STEPS):
        first = 0 if step == 0 else step + AHEAD - 1
        assembly.plan(Plans(1, tuple(map(plan_of, range(first, step + AHEAD))), HOLDERS))
        for _ in range(2):  # the first answer tells the size of a row
            for reader in assembly.readers():
                parts = assembly.pop_request(reader, 1 << 20)
                if parts:
                    rows = np.concatenate([part.rows for part in parts])
                    calls.append(len(rows))
                    pixels = np.broadcast_to(rows[:, None, None, None, None], (len(rows), *ROW))
                    sent = pixels.astype(np.uint8)
                    assembly.put(parts, (sent,), (), sent.nbytes)
        assert assembly.is_ready and assembly.num_ready > AHEAD // 4
        assert (assembly.pop().crops[0] == step).all()
    assert sum(calls) >= READERS * STEPS
    assert np.median(calls) >= AHEAD // 4
