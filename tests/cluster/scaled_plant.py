"""Simulated plant for the autoscaler: slow starts, a bucket with a limit, trainers."""

import random

from cluster.actors.autoscaler import Autoscaler, Observation, ScalingConfig

SECONDS = 5.0


class Plant:
    """Trainers with a demand, readers with a speed, nodes of `per_node` readers that boot."""

    def __init__(self, demand, speed, *, limit=1e9, boot=60.0, per_node=4, room=(10**6,), seed=0):
        self.demand, self.speed, self.limit, self.boot = demand, speed, limit, boot
        self.per_node, self.room = per_node, room
        self.ready: dict[str, str] = {}
        self.starting: dict[str, float] = {}
        self.pools: dict[str, int] = {}
        self.now, self.num_made, self.num_failed = 0.0, 0, 0
        self.random = random.Random(seed)

    def follow(self, decision):
        """Follow a decision; in a pool without room readers wait, which is one failed launch."""
        for name in decision.drain:
            self.ready.pop(name, None)
            self.starting.pop(name, None)
        while len(self.ready) + len(self.starting) < decision.target:
            name = f"r{self.num_made:06}"
            self.num_made += 1
            used = sum(
                self.pools[other] == decision.pool for other in [*self.ready, *self.starting]
            )
            self.pools[name] = decision.pool
            fits = used < self.room[decision.pool]
            self.num_failed += not fits
            self.starting[name] = self.now + self.boot if fits else float("inf")

    def tick(self):
        self.now += SECONDS
        for name, at in sorted(self.starting.items()):
            if at <= self.now:
                del self.starting[name]
                self.ready[name] = self.node()
        noise = self.random.uniform(0.9, 1.1)
        supply = min(len(self.ready) * self.speed, self.limit)
        got = min(supply, self.demand * noise)
        crowded = len(self.ready) * self.speed / supply if 0 < supply <= got else 1.0
        wait = SECONDS * (1 - got / (self.demand * noise)) if self.demand else 0.0
        failed, self.num_failed = self.num_failed, 0
        return Observation(
            now=self.now,
            seconds=SECONDS,
            num_trained=int(got * SECONDS),
            step_seconds=SECONDS - wait if got else 0.0,
            wait_seconds=wait,
            num_made=int(got * SECONDS),
            busy_seconds=got / self.speed * crowded * SECONDS,
            ready=dict(self.ready),
            starting=tuple(self.starting),
            num_failed=failed,
        )

    def node(self):
        """Return the first node with room, or a new one."""
        counts = {}
        for node in self.ready.values():
            counts[node] = counts.get(node, 0) + 1
        free = [f"n{i}" for i in range(10**4) if counts.get(f"n{i}", 0) < self.per_node]
        return free[0]


def play(plant, config, seconds, *, events=(), num_pools=1):
    """Run the loop; return the decisions that changed something: (time, target, reason)."""
    scaler, pending, changes = Autoscaler(config, num_pools), sorted(events, key=lambda e: e[0]), []
    target, starved = config.min_readers, []
    while plant.now < seconds:
        while pending and pending[0][0] <= plant.now:
            pending.pop(0)[1](plant)
        seen = plant.tick()
        decision = scaler.decide(seen)
        plant.follow(decision)
        starved.append((plant.now, seen.is_starved))
        if decision.target != target or decision.reason in ("next pool", "launch failed"):
            changes.append((plant.now, decision.target, decision.reason))
        target = decision.target
    return changes, starved


def default(**changes):
    return ScalingConfig(**{"min_readers": 2, "max_readers": 200, **changes})
