"""Ranks: what is computed together, and how a generation ends when a peer does not answer."""

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
from tests.gloo_ranks import Nobody, join, with_ranks


class GivenUp:
    """A `Watch` that a test gives up."""

    doing: Doing = ""

    def __init__(self) -> None:
        self.over = threading.Event()

    def check(self) -> None:
        if self.over.is_set():
            raise GenerationOver("given up")


@pytest.fixture
def pair() -> tuple[Ranks, GivenUp, Ranks]:
    """Two ranks; the first can be given up."""
    door, watch = RendezvousStore("127.0.0.1"), GivenUp()
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(join, RankInfo(1, 0, 2, door.address), watch)
        second = threads.submit(join, RankInfo(1, 1, 2, door.address), Nobody())
        return first.result(), watch, second.result()


def talk(ranks: Ranks) -> dict[str, Any]:
    """One of each collective, by the functions of torch."""
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


def test_ranks_talk_by_the_functions_of_torch() -> None:
    """Methods and losses must not know which kind of group they were given."""
    for found in with_ranks(talk, 3):
        assert found["total"].tolist() == [3.0, 3.0]
        assert found["gathered"].tolist() == [[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]]
        assert found["broadcast"].tolist() == [1.0, 1.0]
        assert found["later"].tolist() == [3.0]


def test_a_slow_peer_is_waited_for(pair: tuple[Ranks, GivenUp, Ranks]) -> None:
    """Short looks are no time-out: a peer may be waiting for images."""
    first, watch, second = pair
    with ThreadPoolExecutor(1) as threads:
        early = torch.ones(1)
        waiting = threads.submit(dist.all_reduce, early, group=first)
        deadline = time.monotonic() + 30
        while watch.doing != "peers" and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)  # several looks long
        assert not waiting.done()
        dist.all_reduce(torch.ones(1), group=second)
        waiting.result(timeout=30)
    assert early.item() == 2.0 and watch.doing == ""
    first.close(), second.close()


def test_a_wait_for_a_peer_that_hangs_ends_when_the_generation_is_given_up(
    pair: tuple[Ranks, GivenUp, Ranks],
) -> None:
    """gloo itself would wait for its time-out; and leaving must not wait either."""
    first, watch, second = pair
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(dist.all_reduce, torch.ones(1000), group=first)
        watch.over.set()
        began = time.monotonic()
        with pytest.raises(GenerationOver, match="given up"):
            waiting.result(timeout=30)
    first.close()
    assert time.monotonic() - began < 5
    second.close()


def test_a_lost_peer_ends_the_generation(pair: tuple[Ranks, GivenUp, Ranks]) -> None:
    """Its sockets close: nobody has to be told."""
    first, _, second = pair
    second.close()
    with pytest.raises(GenerationOver, match="a peer was lost"):
        for _ in range(100):
            dist.all_reduce(torch.ones(1), group=first)
            time.sleep(0.05)
    first.close()


def test_who_waits_for_a_rank_that_never_comes_can_give_up() -> None:
    """Joining ends as quickly as a step does."""
    door, watch = RendezvousStore("127.0.0.1"), GivenUp()
    with ThreadPoolExecutor(1) as threads:
        joining = threads.submit(join, RankInfo(1, 0, 2, door.address), watch)
        with pytest.raises(TimeoutError):
            joining.result(timeout=0.5)
        watch.over.set()
        with pytest.raises(GenerationOver, match="given up"):
            joining.result(timeout=30)


def test_nobody_waits_at_the_door_of_a_dead_rank_0() -> None:
    """The store would try to reach it for as long as it may take to connect."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = store.port
    del store
    began = time.monotonic()
    with pytest.raises(GenerationOver, match="not all ranks came together"):
        join(RankInfo(1, 1, 2, f"127.0.0.1:{port}"), Nobody())
    assert time.monotonic() - began < 10


def test_generations_at_one_door_never_meet() -> None:
    """A zombie of generation 1 must not take the place of a member of generation 2."""
    door, watch = RendezvousStore("127.0.0.1"), GivenUp()
    with ThreadPoolExecutor(3) as threads:
        zombie = threads.submit(join, RankInfo(1, 1, 2, door.address), watch)
        pair = [
            threads.submit(join, RankInfo(2, rank, 2, door.address), Nobody()) for rank in range(2)
        ]
        for member in pair:
            member.result(timeout=30).close()
        assert not zombie.done()
        watch.over.set()
        with pytest.raises(GenerationOver):
            zombie.result(timeout=30)


def test_an_operation_that_was_given_up_may_linger() -> None:
    """What it still writes to is nobody's any more; its peer's death ends it."""
    door, watch = RendezvousStore("127.0.0.1"), GivenUp()
    with ThreadPoolExecutor(2) as threads:
        ranks = list(
            threads.map(
                lambda rank: Ranks.join(
                    RankInfo(1, rank, 2, door.address),
                    watch if rank == 0 else Nobody(),
                    host="127.0.0.1",
                    kind="gloo",
                    connect_seconds=30,
                    collective_seconds=timedelta(seconds=1).total_seconds(),
                ),
                range(2),
            )
        )
    with pytest.raises(GenerationOver, match="a peer was lost"):
        dist.all_reduce(torch.ones(1), group=ranks[0])  # its own time-out, where nobody gives up
    for each in ranks:
        each.close()
