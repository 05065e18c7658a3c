"""How many readers there should be: observations in, a decision out, no clock and no cluster.

The signal is rates, not queues. `eaten` is what the trainers would take in a second if they never
waited; `made` is what one reader makes in a second in which it is busy. Readers needed =
eaten / made, and a little more. Up at once, down one whole node at a time and only after a while,
because an empty node is what an autoscaler takes away and a node that comes back costs minutes.
When more readers brought little, something else is the limit (the bucket, the network): the policy
goes back and says so. When a pool of nodes gives no more, the next one is asked.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from shards.errors import ConfigError

Reason = Literal[
    "starved",  # the trainers eat more than the readers make
    "ample",  # fewer readers, and one node fewer, would do
    "no gain",  # more readers did not make more: the bucket or the network is the limit
    "trainers gone",  # nobody has eaten for a while
    "next pool",  # this pool gave no more readers: the next one is asked
    "launch failed",  # no pool gives more readers
    "enough",  # as many as are needed, or not known better
    "starting",  # the last decision has not taken effect yet
    "unknown",  # no rates yet
]
_SMOOTHING = 0.5
_STARVED = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingConfig:
    """Bounds and patience. Seconds must exceed what a node of the cluster takes to start."""

    least: int
    most: int
    headroom: float = 1.1
    cool_down_seconds: float = 120.0
    start_seconds: float = 600.0
    failed_seconds: float = 60.0  # for the other readers, once a node could not be launched
    absent_seconds: float = 120.0
    min_gain: float = 0.3
    retry_seconds: float = 900.0

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ConfigError(
                f"--readers {self.least}..{self.most}: the first number must be at least 1 and at "
                "most the second; give for example --readers 4..200"
            )


def parse_range(text: str) -> tuple[int, int]:
    """`4..200` as (4, 200), and `4` as (4, 4). Raises ConfigError for anything else."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*(?:\.\.\s*(\d{1,6})\s*)?", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2] or match[1]):
        raise ConfigError(
            f"--readers {text}: a number from 1 on, or two with the smaller one first; give for "
            "example --readers 4 or --readers 4..200"
        )
    return int(match[1]), int(match[2] or match[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """What was seen in the last tick, of `seconds`; `now` is of a steady clock.

    `num_trained` samples were trained on by all ranks, in `step_seconds` of work and
    `wait_seconds` of waiting for data of one of them. `num_made` samples were cropped in
    `busy_seconds` of all readers' work. `ready`: readers that answer to their nodes, oldest first;
    `starting`: those that do not answer yet. `num_failed` launches of nodes failed.
    """

    now: float
    seconds: float
    num_trained: int
    step_seconds: float
    wait_seconds: float
    num_made: int
    busy_seconds: float
    ready: Mapping[str, str]
    starting: tuple[str, ...] = ()
    num_failed: int = 0

    @property
    def rate(self) -> float:
        return self.num_made / self.seconds

    @property
    def is_starved(self) -> bool:
        return self.wait_seconds > _STARVED * (self.wait_seconds + self.step_seconds)

    def newest(self, num_kept: int) -> tuple[str, ...]:
        """Whom to let go so that `num_kept` stay: who has not started, then the newest."""
        names = [*self.ready, *self.starting]
        return tuple(reversed(names[max(num_kept, 0) :]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """How many readers to want, why, whom to let go now, and the pool that new ones are for."""

    target: int
    reason: Reason
    drain: tuple[str, ...] = ()
    pool: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """An increase that is not judged yet: from how many readers, making how much.

    `since`: when all that were asked for were ready, or now as long as they are not.
    """

    num_readers: int
    rate: float
    since: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What the policy remembers from one tick to the next."""

    target: int
    pool: int = 0
    pool_since: float = 0.0
    eaten: float | None = None
    made: float | None = None
    fed: float | None = None
    changed: float = -math.inf
    short_since: float | None = None  # since when fewer are ready than are wanted
    num_failed: int = 0  # launches since then
    ample_since: float | None = None
    max_needed: int = 0  # since then
    growth: Growth | None = None
    ceiling: int | None = None
    ceiling_until: float = -math.inf
    ceiling_reason: Reason = "no gain"


@dataclass(slots=True)
class Scaler:
    """The policy with its memory. `num_pools` kinds of nodes, the preferred one first."""

    config: ScalingConfig
    num_pools: int = 1
    plan: Plan = field(init=False)

    def __post_init__(self) -> None:
        self.plan = Plan(target=self.config.least)

    def decide(self, seen: Observation) -> Decision:
        """What to do after this tick. Whom `drain` names is not told of in `ready` any more."""
        self.plan, decision = decide(self.config, self.plan, seen, self.num_pools)
        return replace(decision, pool=self.plan.pool)


def decide(
    config: ScalingConfig, plan: Plan, seen: Observation, num_pools: int = 1
) -> tuple[Plan, Decision]:
    """The next plan and what to do now. `plan` starts as `Plan(target=config.least)`."""
    plan = _measured(config, plan, seen)
    plan, verdict = _judge_start(config, plan, seen, num_pools)
    if verdict is not None:
        return plan, verdict
    if plan.fed is not None and seen.now - plan.fed > config.absent_seconds:
        return _shrink(config, plan, seen, config.least, "trainers gone")
    if plan.eaten is None or plan.made is None:
        return plan, Decision(target=plan.target, reason="unknown")
    needed = math.ceil(plan.eaten / plan.made * config.headroom)
    needed = min(max(needed, config.least), config.most)
    plan, verdict = _judge_growth(config, plan, seen)
    if verdict is not None:
        return plan, verdict
    if needed > plan.target:
        return _grow(plan, seen, needed)
    return _shrink(config, plan, seen, needed, "ample")


def _measured(config: ScalingConfig, plan: Plan, seen: Observation) -> Plan:
    if seen.num_made and seen.busy_seconds > 0:
        plan = replace(plan, made=_smooth(plan.made, seen.num_made / seen.busy_seconds))
    is_short = len(seen.ready) < plan.target
    short_since = (seen.now if plan.short_since is None else plan.short_since) if is_short else None
    num_failed = plan.num_failed if is_short else 0
    plan = replace(plan, short_since=short_since, num_failed=num_failed)
    if plan.pool and seen.now - plan.pool_since > config.retry_seconds:
        plan = replace(plan, pool=0, pool_since=seen.now)
    if seen.num_trained and seen.step_seconds > 0:
        eaten = _smooth(plan.eaten, seen.num_trained / seen.step_seconds)
        return replace(plan, eaten=eaten, fed=seen.now)
    # A trainer that waits for its first batch is there; one that does nothing is not.
    waits = plan.fed is None or seen.wait_seconds > 0
    return replace(plan, fed=seen.now) if waits else plan


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else before + _SMOOTHING * (now - before)


def _judge_start(
    config: ScalingConfig, plan: Plan, seen: Observation, num_pools: int
) -> tuple[Plan, Decision | None]:
    """What came of the readers that were asked for, where they do not come."""
    if plan.short_since is None:
        return plan, None
    waited = seen.now - plan.short_since
    plan = replace(plan, num_failed=plan.num_failed + seen.num_failed)
    failed = plan.num_failed > 0 and waited > config.failed_seconds
    if waited <= config.start_seconds and not failed:
        if plan.growth is None:
            return plan, None
        growth = replace(plan.growth, since=seen.now)
        return replace(plan, growth=growth), Decision(target=plan.target, reason="starting")
    if plan.pool + 1 < num_pools:
        plan = replace(plan, pool=plan.pool + 1, pool_since=seen.now)
        plan = replace(plan, short_since=seen.now, num_failed=0)
        return plan, Decision(target=plan.target, reason="next pool", drain=seen.starting)
    plan = replace(plan, pool=0, pool_since=seen.now, short_since=None, num_failed=0)
    return _go_back(config, plan, seen, max(len(seen.ready), config.least), "launch failed")


def _judge_growth(
    config: ScalingConfig, plan: Plan, seen: Observation
) -> tuple[Plan, Decision | None]:
    """What came of the last increase: nothing to see yet, enough, or too little."""
    growth = plan.growth
    if growth is None:
        return plan, None
    if seen.now - growth.since < 2 * seen.seconds:
        return plan, Decision(target=plan.target, reason="starting")  # a tick of all readers first
    assert plan.made is not None and plan.eaten is not None
    gained = seen.rate - growth.rate
    expected = min((plan.target - growth.num_readers) * plan.made, plan.eaten - growth.rate)
    if expected > 0 and gained < config.min_gain * expected and seen.is_starved:
        return _go_back(config, plan, seen, max(growth.num_readers, config.least), "no gain")
    return replace(plan, growth=None), None


def _go_back(
    config: ScalingConfig, plan: Plan, seen: Observation, target: int, reason: Reason
) -> tuple[Plan, Decision]:
    plan = replace(
        plan,
        target=target,
        changed=seen.now,
        growth=None,
        ample_since=None,
        ceiling=target,
        ceiling_until=seen.now + config.retry_seconds,
        ceiling_reason=reason,
    )
    return plan, Decision(target=target, reason=reason, drain=seen.newest(target))


def _grow(plan: Plan, seen: Observation, needed: int) -> tuple[Plan, Decision]:
    """Up at once, to at most twice as many, so that an overestimate shows early."""
    num_ready = len(seen.ready)
    plan = replace(plan, ample_since=None)
    allowed = min(needed, max(2 * num_ready, plan.target, 1))
    if seen.now < plan.ceiling_until and plan.ceiling is not None and allowed > plan.ceiling:
        return plan, Decision(target=plan.target, reason=plan.ceiling_reason)
    if allowed <= plan.target:
        return plan, Decision(target=plan.target, reason="starting")
    growth = Growth(num_readers=num_ready, rate=seen.rate, since=seen.now)
    plan = replace(plan, target=allowed, changed=seen.now, growth=growth, ceiling=None)
    return plan, Decision(target=allowed, reason="starved")


def _shrink(
    config: ScalingConfig, plan: Plan, seen: Observation, needed: int, reason: Reason
) -> tuple[Plan, Decision]:
    """Down by the smallest whole node, when that has been possible for a while.

    On a single node, which stays whatever happens, down to what is needed.
    """
    max_needed = needed if plan.ample_since is None else max(plan.max_needed, needed)
    drain = () if seen.starting else _superfluous(plan, seen, max_needed)
    if not drain:
        # What was needed a moment ago is forgotten: only what holds for a while counts.
        return replace(plan, ample_since=None), Decision(target=plan.target, reason="enough")
    since = seen.now if plan.ample_since is None else plan.ample_since
    plan = replace(plan, ample_since=since, max_needed=max_needed)
    if min(seen.now - since, seen.now - plan.changed) < config.cool_down_seconds:
        return plan, Decision(target=plan.target, reason="enough")
    target = plan.target - len(drain) if _num_nodes(seen) > 1 else max_needed
    plan = replace(plan, target=target, changed=seen.now, ample_since=None, growth=None)
    return plan, Decision(target=target, reason=reason, drain=drain)


def _num_nodes(seen: Observation) -> int:
    return len(set(seen.ready.values()))


def _superfluous(plan: Plan, seen: Observation, needed: int) -> tuple[str, ...]:
    """Readers to let go so that `needed` stay; none if they are not a node's all."""
    if _num_nodes(seen) < 2:
        return seen.newest(needed)
    counts = Counter(seen.ready.values())
    possible = [node for node, count in counts.items() if plan.target - count >= needed]
    if not possible:
        return ()
    node = min(possible, key=lambda name: (counts[name], name))
    return tuple(name for name, place in seen.ready.items() if place == node)
