"""Cost of nodes, from the prices per hour that the user gives with --price."""

import time
from collections.abc import Mapping, Sequence

from cluster.protocol.node_pools import Pool, parse_pool
from cluster.protocol.process_counts import ProcessCounts
from cluster.protocol.run_status import Status
from shards.errors import ConfigError
from shards.metric import Key

_HOUR = 3600.0


class NodeBill:
    """Adds up the price of nodes in dollars. `prices` are per hour of a node of each pool."""

    def __init__(self, prices: Sequence[tuple[Pool, float]]) -> None:
        self._prices = prices
        self._costs: dict[Key, float] = {}
        self._charged = time.monotonic()

    def charge(self, nodes: Sequence[Mapping[str, str]], now: float | None = None) -> ProcessCounts:
        """Charge these nodes, given by their labels, for the time since the last call.

        The first pool that holds a node gives its price; a node outside all pools costs nothing.
        """
        now = time.monotonic() if now is None else now
        hours, self._charged = (now - self._charged) / _HOUR, now
        for labels in nodes:
            for pool, price in self._prices:
                if pool.holds(labels):
                    key = ("node_cost_dollars", str(pool))
                    self._costs[key] = self._costs.get(key, 0.0) + price * hours
                    break
        return ProcessCounts("bill", dict(self._costs))

    def charge_status(self, status: Status) -> ProcessCounts:
        """Charge the nodes of a status of Control."""
        return self.charge([node.labels for node in status.nodes])


def parse_prices(texts: Sequence[str]) -> tuple[tuple[Pool, float], ...]:
    """Parse prices such as `pool=readers=0.05`, or `0.05` for every node. Raises ConfigError."""
    return tuple(_parse_price(text) for text in texts)


def _parse_price(text: str) -> tuple[Pool, float]:
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
