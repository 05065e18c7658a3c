"""Ranks of a real gloo group, each a thread of the test: processes would only start more slowly."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.protocol.messages import Doing
from cluster.trainers.rendezvous import GenerationOver, RankInfo, Ranks, RendezvousStore


class Nobody:
    """A `Watch` of a generation that goes on until a rank of it has failed."""

    doing: Doing = ""

    def __init__(self, errors: list[BaseException] | None = None) -> None:
        self._errors = [] if errors is None else errors

    def check(self) -> None:
        if self._errors:
            raise GenerationOver("another rank failed")


def with_ranks(function: Callable[..., Any], num_ranks: int, *by_rank: Any) -> list[Any]:
    """Call `function(ranks, *arguments)` on every rank; each of `by_rank` has one for every rank.

    Results by rank; what one of them raises first is raised.
    """
    door = RendezvousStore("127.0.0.1")
    errors: list[BaseException] = []

    def work(rank: int) -> Any:
        ranks = join(RankInfo(1, rank, num_ranks, door.address), Nobody(errors))
        try:
            return function(ranks, *(arguments[rank] for arguments in by_rank))
        except BaseException as error:
            errors.append(error)
        finally:
            ranks.close()

    with ThreadPoolExecutor(num_ranks) as threads:
        results = list(threads.map(work, range(num_ranks)))
    if errors:
        raise errors[0]
    return results


def join(place: RankInfo, watch: Any) -> Ranks:
    """A rank on this machine."""
    return Ranks.join(
        place, watch, host="127.0.0.1", kind="gloo", connect_seconds=30, collective_seconds=60
    )
