"""Order: a frozen permutation for every seed, epoch and manifest, with random access."""

from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError
from shards.records import Chunk, ShardInfo
from shards.stream.mixture import parse_weights
from shards.stream.order import Order, OrderConfig, deal, key, permute

SIZES = (100_000, 4096, 1, 70_001)


def make_order(sizes=SIZES, *, manifest="m", seed=0, chunk=4096, per_block=3, subset=""):
    shards = tuple(ShardInfo(f"{i:06d}.tar", size, "v") for i, size in enumerate(sizes))
    config = OrderConfig(seed=seed, chunk_bytes=chunk, chunks_per_block=per_block, subset=subset)
    return Order(shards, manifest, config)


def epoch_of(order, epoch):
    """Return the chunks of every block of an epoch."""
    num = order.blocks_per_epoch
    turns = [order.block(epoch * num + block) for block in range(num)]
    assert {turn.epoch for block in turns for turn in block} == {epoch}
    return [[turn.chunk for turn in block] for block in turns]


def test_permute_is_a_permutation():
    """A sample would be trained on twice, another one never."""
    for size in (*range(1, 70), 1023, 1024, 1025, 4999, 65_537):
        assert sorted(permute(np.arange(size), size, key(size)).tolist()) == list(range(size))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 10**12), st.lists(st.integers(0, 10**12), min_size=1, max_size=20))
def test_permute_maps_one_index_as_it_maps_all(size, wanted):
    """A resume computes some indices, an epoch computes all."""
    wanted = np.array([index % size for index in wanted])
    together = permute(wanted, size, key("k"))
    assert together.tolist() == [int(permute(wanted[i : i + 1], size, key("k"))[0]) for i in
                                 range(len(wanted))]  # fmt: skip
    assert ((together >= 0) & (together < size)).all()


def test_seeds_epochs_and_manifests_have_different_orders():
    """With seed + epoch as key, epoch 1 of seed 0 would equal epoch 0 of seed 1."""
    orders = {
        (seed, epoch, manifest): tuple(
            chunk
            for block in epoch_of(make_order(seed=seed, manifest=manifest), epoch)
            for chunk in block
        )
        for seed in range(6)
        for epoch in range(6)
        for manifest in ("m", "n")
    }
    assert len(set(orders.values())) == len(orders) == 72
    mixes = {
        (seed, block): tuple(make_order(seed=seed).mix(block, 40).tolist())
        for seed in range(5)
        for block in range(25)
    }
    assert len(set(mixes.values())) == len(mixes) == 125


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 60_000), min_size=1, max_size=12),
    st.sampled_from([4096, 8192, 1 << 16]),
    st.integers(1, 9),
    st.integers(0, 5),
)
def test_an_epoch_covers_every_byte_exactly_once(sizes, chunk_bytes, per_block, epoch):
    """A hole or an overlap of chunks loses or doubles a sample."""
    order = make_order(sizes, chunk=chunk_bytes, per_block=per_block)
    blocks = epoch_of(order, epoch)
    chunks = sorted((chunk.shard, chunk.start, chunk.stop) for block in blocks for chunk in block)
    expected = [
        (shard, start, min(start + chunk_bytes, size))
        for shard, size in enumerate(sizes)
        for start in range(0, size, chunk_bytes)
    ]
    assert chunks == expected and order.num_chunks == len(expected)
    assert [len(block) for block in blocks[:-1]] == [per_block] * (len(blocks) - 1)


def test_chunks_of_a_block_come_from_many_shards():
    """Neighbours in a shard often come from one web site."""
    order = make_order([1 << 20] * 64, per_block=16)
    shards = [len({chunk.shard for chunk in block}) for block in epoch_of(order, 0)]
    assert np.mean(shards) > 12


def test_the_permutation_is_uniform():
    """The data would be read in file order."""
    size, draws = 64, 400
    places = np.stack([permute(np.arange(size), size, key("spread", i)) for i in range(draws)])
    table = np.zeros((size, size))
    for row in places:
        table[np.arange(size), row] += 1
    expected = draws / size
    chi_square = ((table - expected) ** 2 / expected).sum()
    degrees = (size - 1) ** 2
    assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees)
    follows = (np.diff(places, axis=1) == 1).mean()
    assert follows < 3 / size


def digest(*arrays):
    hasher = blake2b(digest_size=8)
    for array in arrays:
        hasher.update(np.asarray(array).astype("<i8").tobytes())
    return hasher.hexdigest()


KEYS = ["0xd2815fb2991cecf8", "0xf6318fd8f7be1c4d"]
TEN = [4, 3, 6, 5, 1, 9, 2, 7, 0, 8]
MANY = "cf8124d5367cb545"
EPOCH = "ccaa88fb8df782b3"
MIXED = "8d12cd71fd77f5aa"
ORDER = "8071d05576421894bf8199335d7e866a"


def test_the_order_is_frozen():
    """A change breaks every saved run: raise `ALGORITHM` then."""
    assert [hex(k) for k in key(0, "m", "chunks", 0).tolist()][:2] == KEYS
    assert permute(np.arange(10), 10, key("golden")).tolist() == TEN
    assert digest(permute(np.arange(100_003), 100_003, key("golden", 1))) == MANY
    order = make_order(seed=7)
    chunks = [[c.shard, c.start, c.stop] for block in epoch_of(order, 3) for c in block]
    assert digest(chunks, order.mix(3 * order.blocks_per_epoch + 1, 500)) == EPOCH
    assert order.digest == ORDER
    shards = tuple(ShardInfo(f"{i}.tar", size, "v", i // 2) for i, size in enumerate(SIZES))
    mixed = Order(
        shards, "m", order.config, [(0, parse_weights([7, 3])), (4, parse_weights([1, 2]))]
    )
    turns = [turn for block in range(20) for turn in mixed.block(block)]
    assert digest([[t.epoch, t.chunk.shard, t.chunk.start, t.chunk.stop] for t in turns]) == MIXED


def test_a_shard_that_is_read_whole_is_one_chunk():
    """The middle of a gzip file cannot be read without its beginning."""
    shards = [ShardInfo(f"{i}.tar", 50_000 + i, "v", whole=i % 2 == 1) for i in range(6)]
    config = OrderConfig(seed=0, chunk_bytes=4096, chunks_per_block=5)
    order = Order(tuple(shards), "m", config)
    assert order.num_chunks == 3 * 13 + 3
    chunks = sorted((c.shard, c.start, c.stop) for block in epoch_of(order, 1) for c in block)
    assert [chunk for chunk in chunks if chunk[0] % 2] == [(i, 0, 50_000 + i) for i in (1, 3, 5)]
    assert [chunk[2] - chunk[1] for chunk in chunks if chunk[0] == 0] == [4096] * 12 + [848]
    assert order.chunk(13) == Chunk(1, 0, 50_001)


def test_a_batch_that_ranks_cannot_share_is_refused():
    """The mean over ranks would weigh samples differently."""
    with pytest.raises(
        ConfigError, match=r"batch_size=96 over 7 ranks; .* start 2, 3, 4, 6, 8, 12 ranks, or give"
    ):
        deal(96, 0, 7)


def test_the_digest_changes_with_settings_and_data():
    """A cursor would be accepted in another order."""
    orders = [
        make_order(),
        make_order(seed=1),
        make_order(manifest="n"),
        make_order(chunk=8192),
        make_order(per_block=4),
        make_order(subset="d"),
    ]
    assert len({order.digest for order in orders}) == 6


def test_ten_billion_samples_need_no_array():
    """An order as an array would take 80 GB per node."""
    shards = tuple(ShardInfo(f"{i:06d}.tar", (10_000 << 20) + i, "v") for i in range(100_000))
    config = OrderConfig(seed=1, chunk_bytes=1 << 20, chunks_per_block=64)
    order = Order(shards, "large", config)
    assert order.num_chunks == 1_000_099_999  # all but the first end with a short chunk
    num = order.blocks_per_epoch
    for block in (0, num // 2, num - 1):
        turns = order.block(3 * num + block)
        assert len(turns) == min(64, order.num_chunks - 64 * block)
        for chunk in (turn.chunk for turn in turns):
            size = shards[chunk.shard].num_bytes
            assert chunk.start % (1 << 20) == 0 and 0 <= chunk.start < chunk.stop <= size
    last = order.chunk(order.num_chunks - 1)
    assert (last.shard, last.stop - last.start) == (99_999, 99_999)
    spread = permute(np.arange(10**5) * 100_000, 10**10, key(0))
    assert len(np.unique(spread)) == 10**5 and spread.min() >= 0 and spread.max() < 10**10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"chunk": 5000},
            r"chunk_bytes=5000; it must be a power of two from 4096 to \d+: leave it out",
        ),
        ({"chunk": 2048}, r"chunk_bytes=2048; it must be"),
        ({"chunk": 2 << 30}, r"chunk_bytes=2147483648; it must be"),
        ({"chunk": 0}, r"chunk_bytes=0; it must be"),
        ({"per_block": 0}, r"chunks_per_block=0; it must be at least 1: more chunks"),
    ],
)
def test_invalid_settings_are_refused(fields, message):
    """A chunk of a few headers holds no sample."""
    with pytest.raises(ConfigError, match=message):
        make_order(**fields)
