"""The queue is a deque, in a tensor."""

from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.modules.feature_queue import FeatureQueue


def numbered(start: int, num_rows: int) -> torch.Tensor:
    return torch.arange(start, start + num_rows, dtype=torch.float32)[:, None].expand(-1, 2)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 13), st.lists(st.integers(0, 13), max_size=12))
def test_pushes_equal_those_of_a_deque(capacity: int, sizes: list[int]) -> None:
    """Exact wrap-around, for pushes of any size up to the capacity."""
    queue, model = FeatureQueue(capacity, 2), deque[tuple[float, int]](maxlen=capacity)
    start = 0
    for step, size in enumerate(min(size, capacity) for size in sizes):
        queue.push(numbered(start, size), step)
        model.extend((float(start + row), step) for row in range(size))
        start += size
        assert queue.filled()[:, 0].tolist() == [value for value, _ in model]
        assert queue.newest_first()[:, 1].tolist() == [value for value, _ in reversed(model)]
        assert queue.is_full == (len(model) == capacity)
    readings = queue.readings(step=len(sizes))
    ages = sorted(len(sizes) - step for _, step in model)
    assert float(readings["queue_fill"]) == pytest.approx(len(model) / capacity)
    if ages:
        assert float(readings["queue_age_max"]) == ages[-1]
        assert float(readings["queue_age_p50"]) == ages[(len(ages) - 1) // 2]
    else:
        assert readings["queue_age_max"].isnan() and readings["queue_age_p50"].isnan()


def test_a_push_larger_than_the_queue_is_refused() -> None:
    """Found, allowed, remedy."""
    with pytest.raises(ConfigError, match=r"capacity 4 .* 5 rows.*at least one.*raise it"):
        FeatureQueue(4, 2).push(numbered(0, 5), 0)
    with pytest.raises(ConfigError, match="at least 1 feature"):
        QueueConfig(capacity=0)


def test_a_restored_queue_is_equal() -> None:
    """Rows, steps, position and fill must be in the state dict."""
    queue, restored = FeatureQueue(5, 2), FeatureQueue(5, 2)
    queue.push(numbered(0, 4), 0)
    queue.push(numbered(4, 3), 1)
    assert not restored.is_full
    restored.load_state_dict(queue.state_dict())
    assert restored.is_full
    for each in (queue, restored):
        each.push(numbered(7, 2), 2)
    for name, value in queue.state_dict().items():
        assert torch.equal(value, restored.state_dict()[name]), name
    restored.load_state_dict(FeatureQueue(5, 2).state_dict())
    assert not restored.is_full


def test_an_all_zero_row_counts_as_filled() -> None:
    """Fill must be counted, not derived from values."""
    queue = FeatureQueue(3, 2)
    queue.push(torch.zeros(3, 2), 0)
    assert queue.is_full


def test_noise_has_unit_norm_and_depends_on_the_generator() -> None:
    """MoCo's queue is full from the first step."""
    queues = [FeatureQueue(8, 4) for _ in range(2)]
    for queue in queues:
        queue.fill_with_noise(torch.Generator().manual_seed(1))
        assert queue.is_full
        torch.testing.assert_close(queue.rows.norm(dim=1), torch.ones(8))
    assert torch.equal(queues[0].rows, queues[1].rows)


def test_the_share_of_one_process_is_the_whole_queue() -> None:
    """Newest first."""
    queue = FeatureQueue(4, 2)
    queue.push(numbered(0, 4), 0)
    assert queue.share(2, None)[:, 0].tolist() == [3.0, 2.0, 1.0, 0.0]


def test_a_push_does_not_keep_the_graph() -> None:
    """A gradient must not flow into earlier steps."""
    queue = FeatureQueue(4, 2)
    queue.push(torch.ones(2, 2, requires_grad=True) * 2.0, 0)
    assert not queue.rows.requires_grad
