"""Without a group every collective is an identity; with one, see test_ranks."""

from typing import Any

import torch

from streamssl.distributed.collectives import (
    all_gather_rows,
    all_reduce_max,
    all_reduce_sum,
    from_first_rank,
    rank,
    world_size,
)
from tests.gloo_ranks import with_ranks


def test_one_process_talks_to_itself() -> None:
    """Nothing is copied and no process group is needed."""
    x = torch.randn(3, 2)
    assert world_size(None) == 1 and rank(None) == 0
    for collective in (all_reduce_sum, all_reduce_max, all_gather_rows):
        assert collective(x, None) is x


def test_the_first_rank_is_heard_by_ranks_of_a_cluster() -> None:
    """They are a group that torch has not made, and does not know by number."""

    def hear(ranks: Any, mine: torch.Tensor) -> list[float]:
        assert torch.equal(from_first_rank(mine[:0], ranks), mine[:0])
        return [*from_first_rank(mine, ranks).tolist(), float(from_first_rank(mine[0], ranks))]

    values = [torch.tensor([float(number), 7.0]) for number in range(3)]
    assert with_ranks(hear, 3, values) == [[0.0, 7.0, 0.0]] * 3
