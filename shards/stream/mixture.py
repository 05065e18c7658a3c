"""Which source fills which chunk slot: several sources in exact shares, without drift.

Shares are whole numbers, and slots are given out by Tijdeman's chairman assignment (The chairman
assignment problem, Discrete Mathematics 32, 1980): of the sources whose next chunk is due at all,
the one that could wait least. No source is ever a whole chunk away from its share. The schedule
repeats after as many slots as the shares have in sum, so any slot can be looked up.
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
    """Weights such as 0.7, "3" or "1/3", each taken for exactly what it says, made to sum to 1.

    Raises ConfigError.
    """
    given = [_parse(str(text)) for text in texts]
    total = sum(given)
    if not total:
        raise ConfigError(
            f"weights={_show(texts)}; at least one must be above 0: give every pattern its share"
        )
    weights = tuple(weight / total for weight in given)
    period = math.lcm(*(weight.denominator for weight in weights))
    if period > _MAX_SLOTS:
        rounded = " ".join(f"{float(weight):.3f}" for weight in weights)
        raise ConfigError(
            f"weights={_show(texts)} repeat after {period} chunks only; at most {_MAX_SLOTS} are "
            f"allowed: round them, such as {rounded}"
        )
    return weights


def _parse(text: str) -> Fraction:
    try:
        weight = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise ConfigError(
            f"weight {text!r} is no number; 0.7, 3 or 1/3 are: mend --weights"
        ) from error
    if weight < 0:
        raise ConfigError(f"weight {text} is below 0; 0 leaves a source out: mend --weights")
    return weight


def _show(texts: Sequence[str | float]) -> str:
    return " ".join(map(str, texts))


class MixtureSchedule:
    """One set of weights, slot by slot from 0 on. O(period) to make, O(1) to look up."""

    def __init__(self, weights: Weights) -> None:
        period = math.lcm(*(weight.denominator for weight in weights))
        self.period = period
        self.shares = np.array([int(weight * period) for weight in weights], dtype=np.int64)
        self._sources = _assign([int(weight * period) for weight in weights])
        # How many slots of the period its source had before, for every slot.
        self._before = np.zeros(period, dtype=np.int64)
        for source in range(len(weights)):
            mine = self._sources == source
            self._before[mine] = np.arange(mine.sum())

    def at(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source of every slot, and how many slots that source had before."""
        periods, places = np.divmod(slots, self.period)
        sources = self._sources[places]
        return sources, periods * self.shares[sources] + self._before[places]

    def counts(self, num_slots: int) -> NDArray[np.int64]:
        """How many of the first `num_slots` slots every source has."""
        periods, rest = divmod(num_slots, self.period)
        part = np.bincount(self._sources[:rest], minlength=len(self.shares))
        return periods * self.shares + part


def _assign(shares: list[int]) -> NDArray[np.int64]:
    """The source of every slot of one period.

    After t slots source k has had c of them, and is owed t * share / period. It is due once it is
    owed c + 1 / q, with q = 2 n - 2, and can wait until it is owed c + 1 - 1 / q; of those that are
    due the one is next whose wait ends first. All of it in whole numbers.
    """
    period = sum(shares)
    taking_part = [source for source, share in enumerate(shares) if share]
    if len(taking_part) == 1:
        return np.full(period, taking_part[0], dtype=np.int64)
    q = 2 * len(taking_part) - 2
    common = math.lcm(*(shares[source] for source in taking_part))
    counts = [0] * len(shares)

    def due(source: int) -> int:
        return -(-period * (q * counts[source] + 1) // (q * shares[source]))

    def wait_ends(source: int) -> int:
        return (q * (counts[source] + 1) - 1) * (common // shares[source])

    later = [(due(source), source) for source in taking_part]
    heapify(later)
    ready: list[tuple[int, int]] = []
    sources = np.empty(period, dtype=np.int64)
    for slot in range(period):
        while later and later[0][0] <= slot + 1:
            source = heappop(later)[1]
            heappush(ready, (wait_ends(source), source))
        source = heappop(ready)[1]
        sources[slot] = source
        counts[source] += 1
        heappush(later, (due(source), source))
    return sources


class Mixture:
    """Schedules one after the other: weights, and from which slot on they are in effect.

    What a source had before a change of weights is carried on, so its chunks go on where they were.
    """

    def __init__(self, parts: Sequence[tuple[int, Weights]]) -> None:
        assert parts and parts[0][0] == 0, "there are weights from the first slot on"
        self._starts = [start for start, _ in parts]
        self._schedules = [MixtureSchedule(weights) for _, weights in parts]
        self._bases = [np.zeros(len(parts[0][1]), dtype=np.int64)]
        for place, schedule in enumerate(self._schedules[:-1]):
            length = self._starts[place + 1] - self._starts[place]
            self._bases.append(self._bases[-1] + schedule.counts(length))

    def at(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of slots [start, stop) the sources, and how many slots that source had before.

        The weights do not change in between.
        """
        place = bisect.bisect_right(self._starts, start) - 1
        slots = np.arange(start, stop, dtype=np.int64) - self._starts[place]
        sources, before = self._schedules[place].at(slots)
        return sources, self._bases[place][sources] + before
