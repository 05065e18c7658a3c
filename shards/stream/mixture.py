"""Mixture: which source fills which chunk slot, in exact shares without drift.

Shares are whole numbers. Slots are assigned by Tijdeman's algorithm (The chairman assignment
problem, Discrete Mathematics 32, 1980): among the sources whose next chunk is due, the one with the
earliest deadline. No source is ever a whole chunk away from its share. The schedule repeats after
the sum of the shares, so any slot can be computed directly.
"""

import bisect
import math
from collections.abc import Sequence
from fractions import Fraction
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

from shards.errors import ConfigError

Weights = tuple[Fraction, ...]

_MAX_SLOTS = 100_000


def parse_weights(texts: Sequence[str | float]) -> Weights:
    """Parse weights such as 0.7, "3" or "1/3" as exact fractions, and normalise their sum to 1.

    Raises ConfigError.
    """
    given = [_parse(str(text)) for text in texts]
    total = sum(given)
    if not total:
        raise ConfigError(
            f"weights={_show(texts)}; at least one must be above 0: give every pattern a weight"
        )
    weights = tuple(weight / total for weight in given)
    period = math.lcm(*(weight.denominator for weight in weights))
    if period > _MAX_SLOTS:
        rounded = " ".join(f"{float(weight):.3f}" for weight in weights)
        raise ConfigError(
            f"weights={_show(texts)} repeat only after {period} chunks; at most {_MAX_SLOTS} are "
            f"allowed: round them, for example --weights {rounded}"
        )
    return weights


def _parse(text: str) -> Fraction:
    try:
        weight = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"weight {text!r} is not a number such as 0.7, 3 or 1/3; correct --weights"
        ) from error
    if weight < 0:
        raise ConfigError(f"weight {text} is below 0; it must be at least 0: correct --weights")
    return weight


def _show(texts: Sequence[str | float]) -> str:
    return " ".join(map(str, texts))


class MixtureSchedule:
    """Sources of slots 0, 1, 2, … for one set of weights. O(period) to create, O(1) per slot."""

    def __init__(self, weights: Weights) -> None:
        period = math.lcm(*(weight.denominator for weight in weights))
        self.period = period
        self.shares = np.array([int(weight * period) for weight in weights], dtype=np.int64)
        self._sources = _assign([int(weight * period) for weight in weights])
        # For every slot of the period: the number of earlier slots of its source.
        self._before = np.zeros(period, dtype=np.int64)
        for source in range(len(weights)):
            mine = self._sources == source
            self._before[mine] = np.arange(mine.sum())

    def at(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the source of every slot, and the number of earlier slots of that source."""
        periods, places = np.divmod(slots, self.period)
        sources = self._sources[places]
        return sources, periods * self.shares[sources] + self._before[places]

    def counts(self, num_slots: int) -> NDArray[np.int64]:
        """Return how many of the first `num_slots` slots each source has."""
        periods, rest = divmod(num_slots, self.period)
        part = np.bincount(self._sources[:rest], minlength=len(self.shares))
        return periods * self.shares + part


def _assign(shares: list[int]) -> NDArray[np.int64]:
    """Return the source of every slot of one period.

    After t slots, source k has c of them and is owed t * share / period. It is due when it is owed
    c + 1 / q, with q = 2 n - 2; its deadline is when it is owed c + 1 - 1 / q. The due source with
    the earliest deadline is next. All arithmetic is in whole numbers.
    """
    period = sum(shares)
    active = [source for source, share in enumerate(shares) if share]
    if len(active) == 1:
        return np.full(period, active[0], dtype=np.int64)
    q = 2 * len(active) - 2
    common = math.lcm(*(shares[source] for source in active))
    counts = [0] * len(shares)

    def due(source: int) -> int:
        return -(-period * (q * counts[source] + 1) // (q * shares[source]))

    def deadline(source: int) -> int:
        return (q * (counts[source] + 1) - 1) * (common // shares[source])

    later = [(due(source), source) for source in active]
    heapify(later)
    ready: list[tuple[int, int]] = []
    sources = np.empty(period, dtype=np.int64)
    for slot in range(period):
        while later and later[0][0] <= slot + 1:
            source = heappop(later)[1]
            heappush(ready, (deadline(source), source))
        source = heappop(ready)[1]
        sources[slot] = source
        counts[source] += 1
        heappush(later, (due(source), source))
    return sources


class Mixture:
    """A sequence of schedules: weights, and the first slot that they apply to.

    The counts of a source carry over a change of weights, so its chunks continue in their order.
    """

    def __init__(self, parts: Sequence[tuple[int, Weights]]) -> None:
        assert parts and parts[0][0] == 0, "the first weights must start at slot 0"
        self._starts = [start for start, _ in parts]
        self._schedules = [MixtureSchedule(weights) for _, weights in parts]
        self._bases = [np.zeros(len(parts[0][1]), dtype=np.int64)]
        for place, schedule in enumerate(self._schedules[:-1]):
            length = self._starts[place + 1] - self._starts[place]
            self._bases.append(self._bases[-1] + schedule.counts(length))

    def at(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the sources of slots [start, stop), and the earlier slots of each source.

        The weights must not change inside the range.
        """
        place = bisect.bisect_right(self._starts, start) - 1
        slots = np.arange(start, stop, dtype=np.int64) - self._starts[place]
        sources, before = self._schedules[place].at(slots)
        return sources, self._bases[place][sources] + before
