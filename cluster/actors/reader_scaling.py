"""Reader scaling: measures the rates of a run for the autoscaler, and remembers its decisions."""

from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass

from cluster.actors.autoscaler import Autoscaler, Observation, ScalingConfig, ScalingDecision
from cluster.actors.reader_totals import ReaderTotals
from cluster.protocol.messages import HeartbeatMessage
from shards.metric import Key

_MAX_EVENTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingInput:
    """Totals at one moment: steps finished, samples a step, failed launches, readers.

    `ready` maps readers that answer to their nodes, the oldest first; `starting` readers do not
    answer yet.
    """

    now: float
    totals: ReaderTotals
    beats: Collection[HeartbeatMessage]
    committed: int
    batch_size: int
    num_failed_launches: int
    ready: dict[str, str]
    starting: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Totals:
    """Totals at the last call; rates are differences between two calls."""

    now: float
    num_made: int
    busy_seconds: float
    committed: int
    step_seconds: float
    wait_seconds: float


class ReaderScaling:
    """Turns totals into rates, and rates into the number of readers that the run should have."""

    def __init__(self, config: ScalingConfig, num_pools: int) -> None:
        self._autoscaler = Autoscaler(config, num_pools)
        self._last: _Totals | None = None
        self._num_failed_launches = self._known_failed_launches = 0
        self._num_changes: Counter[tuple[str, str]] = Counter()
        self.decision = ScalingDecision(target=config.min_readers, reason="unknown")
        self.events: deque[tuple[float, str, str]] = deque(maxlen=_MAX_EVENTS)

    def decide(self, found: ScalingInput) -> ScalingDecision | None:
        """Return a decision by the rates since the last call; None at the first call."""
        running = [beat for beat in found.beats if beat.phase == "running"]
        now = _Totals(
            found.now,
            found.totals.num_made,
            found.totals.busy_seconds,
            found.committed,
            sum(beat.step_seconds for beat in running) / max(1, len(running)),
            sum(beat.wait_seconds for beat in running) / max(1, len(running)),
        )
        last, self._last = self._last, now
        if last is None or now.now <= last.now:
            return None
        num_failed = max(0, found.num_failed_launches - self._known_failed_launches)
        self._known_failed_launches = found.num_failed_launches
        self._num_failed_launches += num_failed
        num_steps = max(0, now.committed - last.committed) if last.committed >= 0 else 0
        decision = self._autoscaler.decide(
            Observation(
                now=now.now,
                seconds=now.now - last.now,
                num_trained=num_steps * found.batch_size,
                step_seconds=max(0.0, now.step_seconds - last.step_seconds),
                wait_seconds=max(0.0, now.wait_seconds - last.wait_seconds),
                num_made=now.num_made - last.num_made,
                busy_seconds=now.busy_seconds - last.busy_seconds,
                ready=found.ready,
                starting=found.starting,
                num_failed=num_failed,
            )
        )
        self._note(decision, now.now)
        return decision

    def counters(self) -> dict[Key, float]:
        """Return the decisions and failed launches so far, by key of the metric catalogue."""
        found: dict[Key, float] = {("node_launches_failed",): self._num_failed_launches}
        return found | {("scale_decisions", *key): n for key, n in self._num_changes.items()}

    def _note(self, decision: ScalingDecision, now: float) -> None:
        last, self.decision = self.decision, decision
        if (decision.target, decision.pool) == (last.target, last.pool):
            return
        direction = "up" if decision.target > last.target else "down"
        direction = direction if decision.target != last.target else "pool"
        self._num_changes[direction, decision.reason] += 1
        self.events.append((now, f"{decision.target} readers wanted", decision.reason))
