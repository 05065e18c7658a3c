"""The memory of samples is a ring with names; labels are found by name."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError
from streamssl.modules.sample_memory import (
    NO_LABEL,
    LabelTable,
    SampleMemory,
    join_shares,
    sample_keys,
    share_of,
)


def rows_of(keys: torch.Tensor) -> torch.Tensor:
    """Two banks whose rows tell their keys."""
    return torch.stack([keys, -keys]).float()[:, :, None].expand(-1, -1, 3)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.lists(st.lists(st.integers(0, 12), max_size=9), max_size=8))
def test_a_sample_is_found_where_it_was_last_written(
    capacity: int, pushes: list[list[int]]
) -> None:
    """The newest of equal keys counts, and what was pushed out is gone."""
    memory = SampleMemory(capacity, 3, num_banks=2)
    written: list[int] = []
    for push in (push[:capacity] for push in pushes):
        keys = torch.tensor(push, dtype=torch.int64)
        memory.push(keys, rows_of(keys))
        written = (written + push)[-capacity:]
        assert memory.keys[memory.oldest_first()].tolist() == written
    wanted = torch.arange(13)
    slots = memory.find(wanted)
    assert [slot >= 0 for slot in slots.tolist()] == [key in written for key in range(13)]
    found = wanted[slots >= 0]
    assert torch.equal(memory.rows[:, slots[slots >= 0]], rows_of(found))
    newest = {key: place for place, key in enumerate(written)}
    order = memory.oldest_first()
    assert slots[slots >= 0].tolist() == [int(order[newest[key]]) for key in found.tolist()]


def test_a_batch_larger_than_the_memory_is_refused() -> None:
    """Found, needed, remedy."""
    with pytest.raises(ConfigError, match=r"memory of 2 .* batch of 3;.*raise the memory"):
        SampleMemory(2, 3, 2).push(torch.arange(3), rows_of(torch.arange(3)))


def test_labels_are_those_of_the_last_labelling() -> None:
    """Of equal keys the last one counts."""
    table = LabelTable(4, num_heads=2)
    assert (table.look_up(torch.tensor([1])) == NO_LABEL).all()
    table.replace(torch.tensor([7, 2, 9, 2]), torch.tensor([[0, 1, 2, 3], [5, 6, 7, 8]]))
    found = table.look_up(torch.tensor([2, 9, 8, 7]))
    assert found.tolist() == [[3, 2, NO_LABEL, 0], [8, 7, NO_LABEL, 5]]
    table.replace(torch.tensor([9]), torch.tensor([[4], [4]]))
    assert table.look_up(torch.tensor([9, 2]))[0].tolist() == [4, NO_LABEL]


def test_keys_of_samples_are_distinct() -> None:
    """Two samples with one key would share a label."""
    ids = torch.tensor([[0, 512], [1, 512], [1, 513], [8_000_000, 1 << 39]])
    assert len(set(sample_keys(ids).tolist())) == 4 and (sample_keys(ids) >= 0).all()


def test_the_share_of_one_process_is_all_rows() -> None:
    """Without a group nothing is distributed."""
    assert share_of(7, None) == slice(0, 7)
    assert join_shares(torch.arange(7), 7, None).tolist() == list(range(7))
