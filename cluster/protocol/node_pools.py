"""Node pools: nodes with certain labels, as Ray's scheduler selects them.

`pool=readers` means every node with that label; the empty pool means any node. Values are Ray's:
`a`, `!a`, `in(a, b)`, `!in(a, b)`.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shards.errors import ConfigError

_NODE_ID = "ray.io/node-id"  # a label that Ray gives every node
# Syntax of labels in Ray and Kubernetes, checked without a Ray.
_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_KEY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*/)?{_LABEL}")
_VALUE = re.compile(rf"!?(?:in\({_LABEL}(?:, ?{_LABEL})*\)|{_LABEL})|")
_COMMA = re.compile(r",(?![^(]*\))")  # not those within brackets


@dataclass(frozen=True, slots=True)
class Pool:
    """Nodes whose labels match all of `selector`."""

    selector: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return ",".join(f"{key}={value}" for key, value in self.selector.items()) or "any node"

    def options(self, avoid: Collection[str] = ()) -> dict[str, Any]:
        """Return the options of an actor that needs a node of this pool, but none of `avoid`."""
        selector = dict(self.selector)
        if avoid:
            selector[_NODE_ID] = f"!in({', '.join(sorted(avoid))})"
        return {"label_selector": selector} if selector else {}

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Return True if a node with these labels is in the pool."""
        return all(_matches(value, labels.get(key)) for key, value in self.selector.items())


def parse_pool(text: str) -> Pool:
    """Parse `key=value,key=value`. Raises ConfigError."""
    selector = {}
    for pair in filter(None, map(str.strip, _COMMA.split(text))):
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(_refusal(text, f"{pair!r} is not a label"))
        selector[key.strip()] = value.strip()
    for key, value in selector.items():
        if not _KEY.fullmatch(key):
            raise ConfigError(_refusal(text, f"{key!r} is not the key of a label"))
        if not _VALUE.fullmatch(value):
            raise ConfigError(_refusal(text, f"{value!r} is not the value of a label"))
    if _NODE_ID in selector:
        raise ConfigError(_refusal(text, f"{_NODE_ID} is reserved for nodes to avoid"))
    return Pool(selector)


def parse_pools(texts: Sequence[str]) -> tuple[Pool, ...]:
    """Parse pools in order of preference, at least one. Raises ConfigError."""
    pools = tuple(parse_pool(text) for text in texts) or (Pool(),)
    for pool in pools:
        if pools.count(pool) > 1:
            raise ConfigError(
                f"pool {pool} is given twice; give each pool once, in order of preference"
            )
    return pools


def _refusal(text: str, reason: str) -> str:
    return (
        f"pool {text!r}: {reason}; give labels of nodes, such as pool=readers or "
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
