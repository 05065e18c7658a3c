"""Pools: the nodes that carry certain labels, as Ray's scheduler picks them.

`pool=readers` means every node with that label; the empty pool means any node. Values are Ray's:
`a`, `!a`, `in(a, b)`, `!in(a, b)`.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray._private.label_utils import validate_label_selector

from shards.errors import ConfigError

_NODE_ID = "ray.io/node-id"  # a label that Ray gives every node
_COMMA = re.compile(r",(?![^(]*\))")  # but not those of a list in brackets


@dataclass(frozen=True, slots=True)
class Pool:
    """Nodes whose labels match all of `selector`."""

    selector: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return ",".join(f"{key}={value}" for key, value in self.selector.items()) or "any node"

    def options(self, avoid: Collection[str] = ()) -> dict[str, Any]:
        """What an actor is made with to get a node of this pool, and none of those to avoid."""
        selector = dict(self.selector)
        if avoid:
            selector[_NODE_ID] = f"!in({', '.join(sorted(avoid))})"
        return {"label_selector": selector} if selector else {}

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels is in it."""
        return all(_matches(value, labels.get(key)) for key, value in self.selector.items())


def parse_pool(text: str) -> Pool:
    """A pool from `key=value,key=value`. Raises ConfigError."""
    selector = {}
    for pair in filter(None, map(str.strip, _COMMA.split(text))):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(_refusal(text, f"{pair!r} is no label"))
        selector[key.strip()] = value.strip()
    if reason := validate_label_selector(selector):
        raise ConfigError(_refusal(text, reason.rstrip(".")))
    if _NODE_ID in selector:
        raise ConfigError(_refusal(text, f"{_NODE_ID} is what nodes are avoided by"))
    return Pool(selector)


def parse_pools(texts: Sequence[str]) -> tuple[Pool, ...]:
    """Pools in order of preference, at least one: the next is for when one cannot be had."""
    pools = tuple(parse_pool(text) for text in texts) or (Pool(),)
    for pool in pools:
        if pools.count(pool) > 1:
            raise ConfigError(f"pool {pool} is given twice; a pool to fall back to is another one")
    return pools


def _refusal(text: str, reason: str) -> str:
    return (
        f"pool {text!r}: {reason}; a pool is labels of nodes, such as pool=readers or "
        "pool=readers,market=in(spot, reserved)"
    )


def _matches(wanted: str, found: str | None) -> bool:
    refused = wanted.startswith("!")
    wanted = wanted.removeprefix("!")
    if wanted.startswith("in("):
        values = [value.strip() for value in wanted[3:-1].split(",")]
    else:
        values = [wanted]
    return (found in values) != refused
