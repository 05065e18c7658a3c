"""Ranks: collectives, and the end of a generation when a peer does not answer."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from cluster.protocol.messages import Doing
from cluster.trainers.rendezvous import GenerationOver, RankInfo, Ranks, RendezvousStore
from tests.gloo_ranks import FailureWatch, join, with_ranks


class EndedWatch:
    """A `GenerationWatch` that a test ends."""

    doing: Doing = ""

    def __init__(self) -> None:
        self.over = threading.Event()

    def check(self) -> None:
        if self.over.is_set():
            raise GenerationOver("ended")


@pytest.fixture
def pair() -> tuple[Ranks, EndedWatch, Ranks]:
    """Two ranks, and the watch of the first."""
    store, watch = RendezvousStore("127.0.0.1"), EndedWatch()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(join, RankInfo(1, 0, 2, store.address), watch)
        second = threads.submit(join, RankInfo(1, 1, 2, store.address), FailureWatch())
        return first.result(), watch, second.result()


def run_collectives(ranks: Ranks) -> dict[str, Any]:
    """Run one of each collective, by the functions of torch."""
    mine = torch.tensor([1.0, ranks.rank()])
    gathered = [torch.empty(2) for _ in range(ranks.size())]
    total = mine.clone()
    dist.all_reduce(total, group=ranks)
    dist.all_gather(gathered, mine, group=ranks)
    dist.broadcast(mine, group=ranks, group_src=1)
    later = torch.ones(1)
    work = dist.all_reduce(later, group=ranks, async_op=True)
    work.wait()
    return {"total": total, "gathered": torch.stack(gathered), "broadcast": mine, "later": later}


def test_functions_of_torch_work_on_ranks() -> None:
    """Methods and losses must not know which kind of group they got."""
    for found in with_ranks(run_collectives, 3):
        assert found["total"].tolist() == [3.0, 3.0]
        assert found["gathered"].tolist() == [[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]
        assert found["broadcast"].tolist() == [1.0, 1.0]
        assert found["later"].tolist() == [3.0]


def test_slow_peer_is_awaited(pair: tuple[Ranks, EndedWatch, Ranks]) -> None:
    """The check period is no time-out: a peer may be waiting for images."""
    first, watch, second = pair
    with ThreadPoolExecutor(1) as threads:
        early = torch.ones(1)
        waiting = threads.submit(dist.all_reduce, early, group=first)
        deadline = time.monotonic() + 30
        while watch.doing != "peers" and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)  # several check periods
        assert not waiting.done()
        dist.all_reduce(torch.ones(1), group=second)
        waiting.result(timeout=30)
    assert early.item() == 2.0 and watch.doing == ""
    first.close(), second.close()


def test_wait_for_a_hanging_peer_ends_with_the_generation(
    pair: tuple[Ranks, EndedWatch, Ranks],
) -> None:
    """gloo itself would wait for its time-out; leaving must not wait either."""
    first, watch, second = pair
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(dist.all_reduce, torch.ones(1000), group=first)
        watch.over.set()
        began = time.monotonic()
        with pytest.raises(GenerationOver, match="ended"):
            waiting.result(timeout=30)
    first.close()
    assert time.monotonic() - began < 5
    second.close()


def test_lost_peer_ends_the_generation(pair: tuple[Ranks, EndedWatch, Ranks]) -> None:
    """Closed sockets are noticed without Control."""
    first, _, second = pair
    second.close()
    with pytest.raises(GenerationOver, match="a peer was lost"):
        for _ in range(100):
            dist.all_reduce(torch.ones(1), group=first)
            time.sleep(0.05)
    first.close()


def test_join_without_all_ranks_ends_with_the_generation() -> None:
    """A rank that never comes must not hold the others."""
    store, watch = RendezvousStore("127.0.0.1"), EndedWatch()
    with ThreadPoolExecutor(1) as threads:
        joining = threads.submit(join, RankInfo(1, 0, 2, store.address), watch)
        with pytest.raises(TimeoutError):
            joining.result(timeout=0.5)
        watch.over.set()
        with pytest.raises(GenerationOver, match="ended"):
            joining.result(timeout=30)


def test_dead_rank_0_is_noticed_at_once() -> None:
    """The store would try to connect until its time-out."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = store.port
    del store
    began = time.monotonic()
    with pytest.raises(GenerationOver, match="not all ranks came together"):
        join(RankInfo(1, 1, 2, f"127.0.0.1:{port}"), FailureWatch())
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_generations_at_one_store_never_meet() -> None:
    """A zombie of generation 1 must not take the place of a member of generation 2."""
    store, watch = RendezvousStore("127.0.0.1"), EndedWatch()
    with ThreadPoolExecutor(3) as threads:
        zombie = threads.submit(join, RankInfo(1, 1, 2, store.address), watch)
        pair = [
            threads.submit(join, RankInfo(2, rank, 2, store.address), FailureWatch())
            for rank in range(2)
        ]
        for member in pair:
            member.result(timeout=30).close()
        assert not zombie.done()
        watch.over.set()
        with pytest.raises(GenerationOver):
            zombie.result(timeout=30)


def test_abandoned_operation_ends_with_its_time_out() -> None:
    """An operation that never ends would hold its buffers for ever."""
    store, watch = RendezvousStore("127.0.0.1"), EndedWatch()
    with ThreadPoolExecutor(2) as threads:
        ranks = list(
            threads.map(
                lambda rank: Ranks.join(
                    RankInfo(1, rank, 2, store.address),
                    watch if rank == 0 else FailureWatch(),
                    host="127.0.0.1",
                    kind="gloo",
                    connect_seconds=30,
                    collective_seconds=timedelta(seconds=1).total_seconds(),
                ),
                range(2),
            )
        )
    with pytest.raises(GenerationOver, match="a peer was lost"):
        dist.all_reduce(torch.ones(1), group=ranks[0])  # without the end of the generation
    for each in ranks:
        each.close()
