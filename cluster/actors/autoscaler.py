"""Autoscaler for readers: observed rates in, number of readers out. Pure: no clock, no cluster.

The signal is rates, not queue lengths. `demand` is what the trainers would consume per second if
they never waited; `speed` is what one reader makes per busy second. Readers needed = demand / speed
x headroom. Growth is immediate. Shrinking empties one whole node after a cool-down: an empty node
is what a cluster autoscaler removes, and a node that must come back costs minutes. If more readers
bring little, the bucket or the network is the limit: the policy goes back and reports it. If a
pool of nodes gives no more readers, the next pool is used.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from shards.errors import ConfigError

Reason = Literal[
    "starved",  # the trainers consume more than the readers make
    "ample",  # one node less would be enough
    "no gain",  # more readers did not make more: the bucket or the network is the limit
    "trainers gone",  # nothing was consumed for a while
    "next pool",  # this pool gave no more readers: the next one is used
    "launch failed",  # no pool gives more readers
    "enough",  # as many as are needed
    "starting",  # the last decision has not taken effect yet
    "unknown",  # no rates yet
]
_SMOOTHING = 0.5
_STARVED = 0.05  # share of time spent waiting for data


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingConfig:
    """Bounds and time limits. Seconds must exceed the start time of a node."""

    min_readers: int
    max_readers: int
    headroom: float = 1.1
    cool_down_seconds: float = 120.0
    start_seconds: float = 600.0
    failed_seconds: float = 60.0  # for the other readers, once a node could not be launched
    absent_seconds: float = 120.0
    min_gain: float = 0.3
    retry_seconds: float = 900.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_readers <= self.max_readers:
            raise ConfigError(
                f"--readers {self.min_readers}..{self.max_readers}: the first number must be at "
                "least 1 and at most the second; give for example --readers 4..200"
            )


def parse_range(text: str) -> tuple[int, int]:
    """Parse `4..200` as (4, 200), and `4` as (4, 4). Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*(?:\.\.\s*(\d{1,6})\s*)?", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2] or match[1]):
        raise ConfigError(
            f"--readers {text}: a number from 1 on, or two with the smaller one first; give for "
            "example --readers 4 or --readers 4..200"
        )
    return int(match[1]), int(match[2] or match[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """Measurements of the last interval of `seconds`; `now` is of a steady clock.

    `num_trained` samples were trained on by all ranks, in `step_seconds` of work and
    `wait_seconds` of waiting for data of one of them. `num_made` samples were cropped in
    `busy_seconds` of all readers' work. `ready` maps readers that answer to their nodes, oldest
    first; `starting` readers do not answer yet. `num_failed` launches of nodes failed.
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

    def superfluous(self, num_kept: int) -> tuple[str, ...]:
        """Return the readers beyond `num_kept`: first those that start, then the newest."""
        names = [*self.ready, *self.starting]
        return tuple(reversed(names[max(num_kept, 0) :]))


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingDecision:
    """Number of readers to have, the reason, readers to drain now, and the pool of new ones."""

    target: int
    reason: Reason
    drain: tuple[str, ...] = ()
    pool: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class PendingGrowth:
    """An increase that is not judged yet: from how many readers, making how much.

    `since` is the time at which all requested readers were ready; it moves on until they are.
    """

    num_readers: int
    rate: float
    since: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingPlan:
    """Memory of the policy between two decisions.

    `last_demand` is when the trainers last consumed or waited. `short_since`: fewer readers are
    ready than wanted since then, and `num_failed` launches failed. `ample_since`: a node could be
    spared since then, and at most `max_needed` readers were needed. `ceiling` is the number of
    readers beyond which nothing was gained.
    """

    target: int
    pool: int = 0
    pool_since: float = 0.0
    demand: float | None = None
    speed: float | None = None
    last_demand: float | None = None
    changed: float = -math.inf
    short_since: float | None = None
    num_failed: int = 0
    ample_since: float | None = None
    max_needed: int = 0
    growth: PendingGrowth | None = None
    ceiling: int | None = None
    ceiling_until: float = -math.inf
    ceiling_reason: Reason = "no gain"


@dataclass(slots=True)
class Autoscaler:
    """The policy with its memory, for `num_pools` kinds of nodes, the preferred one first."""

    config: ScalingConfig
    num_pools: int = 1
    plan: ScalingPlan = field(init=False)

    def __post_init__(self) -> None:
        self.plan = ScalingPlan(target=self.config.min_readers)

    def decide(self, seen: Observation) -> ScalingDecision:
        """Return the decision after this interval; later `ready` must leave out `drain`."""
        self.plan, decision = decide(self.config, self.plan, seen, self.num_pools)
        return replace(decision, pool=self.plan.pool)


def decide(
    config: ScalingConfig, plan: ScalingPlan, seen: Observation, num_pools: int = 1
) -> tuple[ScalingPlan, ScalingDecision]:
    """Return the next plan, and the decision."""
    plan = _measure(config, plan, seen)
    plan, verdict = _judge_start(config, plan, seen, num_pools)
    if verdict is not None:
        return plan, verdict
    if plan.last_demand is not None and seen.now - plan.last_demand > config.absent_seconds:
        return _shrink(config, plan, seen, config.min_readers, "trainers gone")
    if plan.demand is None or plan.speed is None:
        return plan, ScalingDecision(target=plan.target, reason="unknown")
    needed = math.ceil(plan.demand / plan.speed * config.headroom)
    needed = min(max(needed, config.min_readers), config.max_readers)
    plan, verdict = _judge_growth(config, plan, seen)
    if verdict is not None:
        return plan, verdict
    if needed > plan.target:
        return _grow(plan, seen, needed)
    return _shrink(config, plan, seen, needed, "ample")


def _measure(config: ScalingConfig, plan: ScalingPlan, seen: Observation) -> ScalingPlan:
    if seen.num_made and seen.busy_seconds > 0:
        plan = replace(plan, speed=_smooth(plan.speed, seen.num_made / seen.busy_seconds))
    is_short = len(seen.ready) < plan.target
    short_since = (seen.now if plan.short_since is None else plan.short_since) if is_short else None
    num_failed = plan.num_failed if is_short else 0
    plan = replace(plan, short_since=short_since, num_failed=num_failed)
    if plan.pool and seen.now - plan.pool_since > config.retry_seconds:
        plan = replace(plan, pool=0, pool_since=seen.now)
    if seen.num_trained and seen.step_seconds > 0:
        demand = _smooth(plan.demand, seen.num_trained / seen.step_seconds)
        return replace(plan, demand=demand, last_demand=seen.now)
    # A trainer that waits for its first batch is present; one that does nothing is not.
    waits = plan.last_demand is None or seen.wait_seconds > 0
    return replace(plan, last_demand=seen.now) if waits else plan


def _smooth(before: float | None, now: float) -> float:
    return now if before is None else before + _SMOOTHING * (now - before)


def _judge_start(
    config: ScalingConfig, plan: ScalingPlan, seen: Observation, num_pools: int
) -> tuple[ScalingPlan, ScalingDecision | None]:
    """Use another pool, or fewer readers, if requested readers do not start."""
    if plan.short_since is None:
        return plan, None
    waited = seen.now - plan.short_since
    plan = replace(plan, num_failed=plan.num_failed + seen.num_failed)
    failed = plan.num_failed > 0 and waited > config.failed_seconds
    if waited <= config.start_seconds and not failed:
        if plan.growth is None:
            return plan, None
        growth = replace(plan.growth, since=seen.now)
        plan = replace(plan, growth=growth)
        return plan, ScalingDecision(target=plan.target, reason="starting")
    if plan.pool + 1 < num_pools:
        plan = replace(plan, pool=plan.pool + 1, pool_since=seen.now)
        plan = replace(plan, short_since=seen.now, num_failed=0)
        decision = ScalingDecision(target=plan.target, reason="next pool", drain=seen.starting)
        return plan, decision
    plan = replace(plan, pool=0, pool_since=seen.now, short_since=None, num_failed=0)
    return _go_back(config, plan, seen, max(len(seen.ready), config.min_readers), "launch failed")


def _judge_growth(
    config: ScalingConfig, plan: ScalingPlan, seen: Observation
) -> tuple[ScalingPlan, ScalingDecision | None]:
    """Judge the last increase: too early to tell, enough, or too little."""
    growth = plan.growth
    if growth is None:
        return plan, None
    if seen.now - growth.since < 2 * seen.seconds:  # one whole interval with all readers first
        return plan, ScalingDecision(target=plan.target, reason="starting")
    assert plan.speed is not None and plan.demand is not None
    gained = seen.rate - growth.rate
    expected = min((plan.target - growth.num_readers) * plan.speed, plan.demand - growth.rate)
    if expected > 0 and gained < config.min_gain * expected and seen.is_starved:
        target = max(growth.num_readers, config.min_readers)
        return _go_back(config, plan, seen, target, "no gain")
    return replace(plan, growth=None), None


def _go_back(
    config: ScalingConfig, plan: ScalingPlan, seen: Observation, target: int, reason: Reason
) -> tuple[ScalingPlan, ScalingDecision]:
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
    return plan, ScalingDecision(target=target, reason=reason, drain=seen.superfluous(target))


def _grow(plan: ScalingPlan, seen: Observation, needed: int) -> tuple[ScalingPlan, ScalingDecision]:
    """Grow at once, at most to twice as many, so that an overestimate shows early."""
    num_ready = len(seen.ready)
    plan = replace(plan, ample_since=None)
    allowed = min(needed, max(2 * num_ready, plan.target, 1))
    if seen.now < plan.ceiling_until and plan.ceiling is not None and allowed > plan.ceiling:
        return plan, ScalingDecision(target=plan.target, reason=plan.ceiling_reason)
    if allowed <= plan.target:
        return plan, ScalingDecision(target=plan.target, reason="starting")
    growth = PendingGrowth(num_readers=num_ready, rate=seen.rate, since=seen.now)
    plan = replace(plan, target=allowed, changed=seen.now, growth=growth, ceiling=None)
    return plan, ScalingDecision(target=allowed, reason="starved")


def _shrink(
    config: ScalingConfig, plan: ScalingPlan, seen: Observation, needed: int, reason: Reason
) -> tuple[ScalingPlan, ScalingDecision]:
    """Empty the smallest whole node, if that has been possible for a while.

    A single node always stays; on it, readers are drained down to what is needed.
    """
    max_needed = needed if plan.ample_since is None else max(plan.max_needed, needed)
    drain = () if seen.starting else _sparable(plan, seen, max_needed)
    if not drain:
        # A short dip does not count: the cool-down begins again.
        return replace(plan, ample_since=None), ScalingDecision(target=plan.target, reason="enough")
    since = seen.now if plan.ample_since is None else plan.ample_since
    plan = replace(plan, ample_since=since, max_needed=max_needed)
    if min(seen.now - since, seen.now - plan.changed) < config.cool_down_seconds:
        return plan, ScalingDecision(target=plan.target, reason="enough")
    target = plan.target - len(drain) if _num_nodes(seen) > 1 else max_needed
    plan = replace(plan, target=target, changed=seen.now, ample_since=None, growth=None)
    return plan, ScalingDecision(target=target, reason=reason, drain=drain)


def _num_nodes(seen: Observation) -> int:
    return len(set(seen.ready.values()))


def _sparable(plan: ScalingPlan, seen: Observation, needed: int) -> tuple[str, ...]:
    """Return readers to drain so that `needed` stay; of several nodes only all of one node."""
    if _num_nodes(seen) < 2:
        return seen.superfluous(needed)
    counts = Counter(seen.ready.values())
    possible = [node for node, count in counts.items() if plan.target - count >= needed]
    if not possible:
        return ()
    node = min(possible, key=lambda name: (counts[name], name))
    return tuple(name for name, place in seen.ready.items() if place == node)
