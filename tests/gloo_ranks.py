"""Ranks of a real gloo group, each a thread of the test: processes would only start more slowly."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.generations import Door, Place, Ranks
from cluster.messages import Doing


class Nobody:
    """A `Watch` of a generation that nobody gives up."""

    doing: Doing = ""

    def check(self) -> None:
        """It goes on."""


def with_ranks(function: Callable[..., Any], num_ranks: int, *by_rank: Any) -> list[Any]:
    """Call `function(ranks, *arguments)` on every rank; each of `by_rank` has one for every rank.

    Results by rank; what one of them raises is raised.
    """
    door = Door("127.0.0.1")

    def work(rank: int) -> Any:
        place = Place(1, rank, num_ranks, door.address)
        ranks = join(place, Nobody())
        try:
            return function(ranks, *(arguments[rank] for arguments in by_rank))
        finally:
            ranks.close()

    with ThreadPoolExecutor(num_ranks) as threads:
        return list(threads.map(work, range(num_ranks)))


def join(place: Place, watch: Any) -> Ranks:
    """A rank on this machine."""
    return Ranks.join(
        place, watch, host="127.0.0.1", kind="gloo", connect_seconds=30, collective_seconds=60
    )
