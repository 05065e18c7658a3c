"""Bill: what nodes cost, for whoever said what an hour of one costs."""

import time
from collections.abc import Mapping, Sequence

from cluster.protocol.metric import Counted, Key
from cluster.protocol.node_pools import Pool, parse_pool
from shards.errors import ConfigError

_HOUR = 3600.0


class Bill:
    """Adds up the price of nodes, in dollars. `prices`: of an hour of a node of each pool."""

    def __init__(self, prices: Sequence[tuple[Pool, float]]) -> None:
        self._prices = prices
        self._costs: dict[Key, float] = {}
        self._charged = time.monotonic()

    def charge(self, nodes: Sequence[Mapping[str, str]], now: float | None = None) -> Counted:
        """These nodes, by their labels, were there since this was called last. The first pool that
        holds a node has its price; nodes of no pool cost nothing."""
        now = time.monotonic() if now is None else now
        hours, self._charged = (now - self._charged) / _HOUR, now
        for labels in nodes:
            for pool, price in self._prices:
                if pool.holds(labels):
                    key = ("node_cost_dollars", str(pool))
                    self._costs[key] = self._costs.get(key, 0.0) + price * hours
                    break
        return Counted("bill", dict(self._costs))


def parse_prices(texts: Sequence[str]) -> tuple[tuple[Pool, float], ...]:
    """Prices such as `pool=readers=0.05`, or `0.05` for every node. Raises ConfigError."""
    return tuple(_parse(text) for text in texts)


def _parse(text: str) -> tuple[Pool, float]:
    labels, _, price = text.rpartition("=")
    try:
        found = float(price)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise ConfigError(
            f"price {text!r}; it must be the labels of a pool and dollars for an hour of a node: "
            "give for example --price pool=readers=0.05, or --price 0.05 for every node"
        )
    return parse_pool(labels), found
