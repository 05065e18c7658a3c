"""Without a group every collective is an identity; with one, see test_ranks."""

import torch

from streamssl.collectives import (
    all_gather_rows,
    all_reduce_max,
    all_reduce_sum,
    rank,
    world_size,
)


def test_one_process_talks_to_itself() -> None:
    """Nothing is copied and no process group is needed."""
    x = torch.randn(3, 2)
    assert world_size(None) == 1 and rank(None) == 0
    for collective in (all_reduce_sum, all_reduce_max, all_gather_rows):
        assert collective(x, None) is x
