"""Ranks of a real gloo group, each a thread of the test: processes would start slowly."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.protocol.messages import Doing
from cluster.trainers.rendezvous import GenerationOver, RankInfo, Ranks, RendezvousStore


class FailureWatch:
    """A `GenerationWatch` that ends the generation when a rank has failed."""

    doing: Doing = ""

    def __init__(self, errors: list[BaseException] | None = None) -> None:
        self._errors = [] if errors is None else errors

    def check(self) -> None:
        if self._errors:
            raise GenerationOver("another rank failed")


def with_ranks(function: Callable[..., Any], num_ranks: int, *by_rank: Any) -> list[Any]:
    """Call `function(ranks, *arguments)` on every rank, with one argument of each of `by_rank`.

    Return the results by rank, or raise the first error.
    """
    store = RendezvousStore("127.0.0.1")
    errors: list[BaseException] = []

    def work(rank: int) -> Any:
        ranks = join(RankInfo(1, rank, num_ranks, store.address), FailureWatch(errors))
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


def join(info: RankInfo, watch: Any) -> Ranks:
    """Join as a rank on this machine."""
    return Ranks.join(
        info, watch, host="127.0.0.1", kind="gloo", connect_seconds=30, collective_seconds=60
    )
