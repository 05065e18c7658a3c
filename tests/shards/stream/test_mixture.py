"""Mixture: exact shares at every slot, and every chunk of a source once in each epoch."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError
from shards.records import ShardInfo
from shards.stream.mixture import Mixture, MixtureSchedule, parse_weights
from shards.stream.order import Order, OrderConfig

SHARES = st.lists(st.integers(0, 60), min_size=2, max_size=6).filter(sum)


def order_of(chunks, weights, *, per_block=3, seed=0):
    """Return an order of sources with these numbers of chunks."""
    shards = tuple(
        ShardInfo(f"{source}/{number}.tar", 4096, "v", source)
        for source, num in enumerate(chunks)
        for number in range(num)
    )
    config = OrderConfig(seed=seed, chunk_bytes=4096, chunks_per_block=per_block)
    return Order(shards, "m", config, weights)


@settings(max_examples=60, deadline=None)
@given(SHARES)
def test_no_source_is_ever_a_whole_chunk_away_from_its_share(shares):
    """A run would train on other shares than its weights."""
    weights = parse_weights(shares)
    num = 2 * MixtureSchedule(weights).period + 7
    sources, before = Mixture([(0, weights)]).at(0, num)
    counts = np.cumsum(sources[:, None] == np.arange(len(shares)), axis=0)
    total = sum(shares)
    exact = np.arange(1, num + 1)[:, None] * np.array(shares)  # in units of 1 / total
    assert (np.abs(counts * total - exact) < total).all()
    assert before.tolist() == [int(counts[s, k]) - 1 for s, k in enumerate(sources)]


@settings(max_examples=50, deadline=None)
@given(SHARES, st.lists(st.integers(0, 10**12), min_size=1, max_size=8))
def test_a_slot_can_be_computed_alone(shares, wanted):
    """A resume computes one block of a stream that was never run."""
    schedule = MixtureSchedule(parse_weights(shares))
    sources, before = schedule.at(np.array(wanted))
    for slot, source, number in zip(wanted, sources, before, strict=True):
        assert schedule.counts(slot)[source] == number
        assert schedule.counts(slot + 1)[source] == number + 1
        assert schedule.counts(slot).sum() == slot


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=2, max_size=6),
    st.integers(1, 7),
    st.integers(0, 99),
)
def test_every_chunk_of_a_source_comes_once_in_each_of_its_epochs(sources, per_block, seed):
    """Sources of different sizes would lose or double chunks."""
    chunks, shares = zip(*sources, strict=True)
    order = order_of(chunks, [(0, parse_weights(shares))], per_block=per_block, seed=seed)
    turns = [turn for block in range(40) for turn in order.block(block)]
    assert len(turns) == 40 * per_block
    for source, num in enumerate(chunks):
        assert order.num_chunks_of(source) == num
        mine = [turn for turn in turns if order.source(turn.chunk.shard) == source]
        epochs = [mine[start : start + num] for start in range(0, len(mine), num)]
        for number, epoch in enumerate(epochs):
            assert {turn.epoch for turn in epoch} == {number}
            assert len({turn.chunk for turn in epoch}) == len(epoch)


def test_sources_continue_after_a_change_of_weights():
    """A source that starts over repeats its first chunks and never reaches its last."""
    parts = [(0, parse_weights([7, 3])), (5, parse_weights([1, 1])), (11, parse_weights([0, 1]))]
    order, plain = order_of([40, 9], parts, per_block=4), order_of([40, 9], parts[:1], per_block=4)
    assert [order.block(b) for b in range(5)] == [plain.block(b) for b in range(5)]
    turns = [turn for block in range(20) for turn in order.block(block)]
    for source, num in ((0, 40), (1, 9)):
        mine = [turn for turn in turns if order.source(turn.chunk.shard) == source]
        for start in range(0, len(mine), num):
            epoch = mine[start : start + num]
            assert len({turn.chunk for turn in epoch}) == len(epoch)
            assert {turn.epoch for turn in epoch} == {start // num}
    halves = [
        order.source(turn.chunk.shard) for block in range(5, 11) for turn in order.block(block)
    ]
    assert halves.count(0) == halves.count(1) == 12
    assert {order.source(t.chunk.shard) for b in range(11, 20) for t in order.block(b)} == {1}


@pytest.mark.parametrize("given", [["0.7", "0.3"], [0.7, 0.3], ["7", "3"], ["7/3", 1]])
def test_weights_are_parsed_as_exact_fractions(given):
    """0.7 as a binary fraction would repeat after 2^54 slots."""
    assert parse_weights(given) == (Fraction(7, 10), Fraction(3, 10))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a", 1], r"weight 'a' is not a number such as 0\.7, 3 or 1/3; correct --weights"),
        (["1/0", 1], r"weight '1/0' is not a number"),
        (["nan", 1], r"weight 'nan' is not a number"),
        ([-1, 2], r"weight -1 is below 0; it must be at least 0"),
        ([0, 0], r"weights=0 0; at least one must be above 0: give every pattern a weight"),
        (
            [0.1234567, 0.8765433],
            r"repeat only after 10000000 chunks; at most 100000 .*: round them, .*ts 0\.123",
        ),
    ],
)
def test_invalid_weights_are_refused(given, message):
    """A schedule of 2^54 slots would not fit in memory."""
    with pytest.raises(ConfigError, match=message):
        parse_weights(given)
