"""Status, counters and gauges of a run, as its Control knows them."""

import time
from collections import Counter
from collections.abc import Iterable

from cluster.control.control_core import ControlCore
from cluster.membership.members import Member
from cluster.protocol.driver_protocol import ActorEvent, RunReport
from cluster.protocol.process_counts import ProcessCounts
from cluster.protocol.process_memory import resident_bytes
from cluster.protocol.run_status import ActorStatus, NodeStatus, Status, TimedEvent
from shards.metric import Key, Readings


def make_report(core: ControlCore) -> RunReport:
    """Return the counters that changed since the last report, gauges, and the status."""
    status = make_status(core)
    own = ProcessCounts(f"control {core.term}", status.readings)
    return RunReport(
        counted=(own, *core.totals.take_counts()), gauges=gauges(core, status), status=status
    )


def make_status(core: ControlCore) -> Status:
    """Return the status of a run at this moment."""
    now = time.monotonic()
    members = core.members
    generation = members.generation if members.is_running else None
    nodes = core.nodes.latest
    decision = core.scaling.decision
    with core.planner.leases() as table:
        leases = table.snapshot(now)
    return Status(
        term=core.term,
        seconds=now - core.began,
        step=max(members.min_committed, core.state.step),
        num_steps=core.spec.num_steps,
        planned=core.planner.num_planned,
        generation=str(generation.number & 0xFFFFFFFF) if generation else "",
        world=len(generation.members) if generation else 0,
        step_seconds=members.median_step_seconds,
        wanted=core.actors.num_wanted,
        scaling=f"{decision.target} readers: {decision.reason}",
        rates=_rates(core),
        nodes=_node_statuses(core),
        actors=_actor_statuses(core, now),
        leases=leases,
        decisions=tuple(
            TimedEvent(seconds=now - at, what=what, why=why) for at, what, why in core.events()
        ),
        recoveries=tuple(
            TimedEvent(seconds=now - one.at, what=f"{one.seconds:.1f} s", why=one.why)
            for one in members.recoveries
        ),
        readings=counters(core),
        pending=tuple(f"{one.count} x {one.kind}" for one in nodes.pending) if nodes else (),
        failed=tuple(f"{one.kind}: {one.reason}" for one in nodes.failed) if nodes else (),
        pages=core.pages,
    )


def counters(core: ControlCore) -> Readings:
    """Return the counters of this Control, by key of the metric catalogue."""
    members, leases = core.members, core.table.counters
    found: dict[Key, float] = {
        **core.actors.counters(),
        **core.scaling.counters(),
        ("generations",): members.num_generations,
        ("recoveries",): len(members.recoveries),
        ("recovery_seconds",): sum(one.seconds for one in members.recoveries),
        ("leases_hedged",): leases.hedged,
        ("hedges_won",): leases.hedges_won,
        ("chunks_recropped",): leases.recropped,
        ("chunks_given_up",): leases.given_up,
        ("results_differing",): leases.differing,
    }
    for name, counts in (
        ("leases_reissued", leases.reissued),
        ("results_refused", leases.late),
        ("beats_refused", members.refused),
    ):
        found |= {(name, str(reason)): count for reason, count in counts.items()}
    return found


def gauges(core: ControlCore, status: Status) -> Readings:
    """Return the gauges of a run; numbers that were not measured are missing."""
    found: dict[Key, float] = {
        ("control_term",): core.term,
        ("world_size",): status.world,
        ("memory_bytes", "control"): resident_bytes(),
    }
    roles = Counter(str(one.role) for one in core.actors.started.values())
    for role, wanted in status.wanted.items():
        found["actors", role], found["actors_wanted", role] = roles[role], wanted
    if status.leases.oldest:
        found["oldest_lease_seconds",] = status.leases.oldest[0].seconds
    found["batches_ready", "planned"] = planned = max(0, status.planned - status.step)
    if status.step_seconds:
        found["lead_seconds",] = planned * status.step_seconds
    members = core.members.members.values()
    return found | _reader_gauges(core) | _trainer_gauges(members) | _node_gauges(core, status)


def _reader_gauges(core: ControlCore) -> dict[Key, float]:
    found: dict[Key, float] = {
        ("buffer_bytes", "reader"): core.totals.held_bytes,
        ("buffer_limit_bytes", "reader"): core.planner.max_bytes,
    }
    if core.totals.memory_bytes:
        found["memory_bytes", "reader"] = core.totals.memory_bytes
    return found


def _trainer_gauges(members: Iterable[Member]) -> dict[Key, float]:
    """Return the shortest lead, the largest memory, and the sum of all buffers of trainers."""
    usages = [one.heartbeat.usage for one in members if one.heartbeat.usage is not None]
    if not usages:
        return {}
    found: dict[Key, float] = {
        ("batches_ready", "taken"): min(usage.batches_ready for usage in usages),
        ("buffer_bytes", "trainer"): sum(usage.held_bytes for usage in usages),
        ("buffer_limit_bytes", "trainer"): sum(usage.limit_bytes for usage in usages),
        ("memory_bytes", "trainer"): max(usage.memory_bytes for usage in usages),
    }
    kinds = {kind for usage in usages for kind in usage.device_bytes}
    return found | {
        ("device_memory_bytes", kind): max(usage.device_bytes.get(kind, 0) for usage in usages)
        for kind in kinds
    }


def _node_gauges(core: ControlCore, status: Status) -> dict[Key, float]:
    """Return gauges of nodes and pools. An actor counts for the first pool that holds its node."""
    found: dict[Key, float] = {}
    seen = core.nodes.latest
    if seen is None:
        return found
    found["nodes", "staying"] = sum(not node.drains for node in seen.alive)
    found["nodes", "leaving"] = sum(node.drains for node in seen.alive)
    found["nodes", "pending"] = sum(one.count for one in seen.pending)
    used = [node.used_share("object_store_memory") for node in seen.alive]
    if known := [share for share in used if share is not None]:
        found["object_store_used_ratio",] = max(known)
    for role, pools in core.spec.pools.items():
        names = [str(pool) for pool in pools]
        ready = Counter(one.pool for one in status.actors if one.role == role and one.pool)
        number = core.scaling.decision.pool % len(names) if role == "reader" else 0
        for name in names:
            elsewhere = sum(ready.values()) - ready[name]
            found["pool_ready", role, name] = ready[name]
            found["pool_desired", role, name] = (
                max(0, status.wanted[role] - elsewhere) if name == names[number] else ready[name]
            )
    return found


def _rates(core: ControlCore) -> dict[str, float]:
    """Return samples cropped and trained on per second, and the busy share of readers' time."""
    first, last = core.history[0], core.history[-1]
    seconds = last.at - first.at
    if seconds <= 0:
        return {}
    num_readers = max(1, sum(one.role == "reader" for one in core.actors.started.values()))
    trained = (last.committed - first.committed) * core.spec.stream.batch_size
    return {
        "cropped": (last.num_made - first.num_made) / seconds,
        "trained": trained / seconds,
        "busy": (last.busy_seconds - first.busy_seconds) / seconds / num_readers,
    }


def _node_statuses(core: ControlCore) -> tuple[NodeStatus, ...]:
    seen = core.nodes.latest
    if seen is None:
        return ()
    counts = Counter((one.node, one.role) for one in core.actors.started.values())
    return tuple(
        NodeStatus(
            node=node.id,
            address=node.address,
            labels=node.labels,
            num_readers=counts[node.id, "reader"],
            num_trainers=counts[node.id, "trainer"],
            cores=node.total.get("CPU", 0.0),
            is_head=node.is_head,
            leaves_in=None if node.leaves_at is None else max(0.0, node.leaves_at - time.time()),
        )
        for node in seen.alive
    )


def _actor_statuses(core: ControlCore, now: float) -> tuple[ActorStatus, ...]:
    ranks = core.members.generation.members if core.members.generation else ()
    found = []
    for name, one in sorted(core.actors.started.items()):
        member = core.members.members.get(name)
        phase = "works" if member is None else member.heartbeat.phase
        found.append(
            ActorStatus(
                name=name,
                role=one.role,
                node=one.node,
                pid=one.pid,
                phase="leaves" if name in core.actors.draining else phase,
                step=member.heartbeat.committed if member else -1,
                rank=ranks.index(name) if name in ranks else -1,
                doing=member.heartbeat.doing if member else "",
                heartbeat_age=now - member.heard if member else 0.0,
                pool=_pool_of(core, one),
                pages=one.pages,
            )
        )
    return tuple(found)


def _pool_of(core: ControlCore, actor: ActorEvent) -> str:
    """Return the first pool of its role that holds the node of an actor; empty if unknown."""
    seen = core.nodes.latest
    node = None if seen is None else seen.find(actor.node)
    if node is None:
        return ""
    pools = core.spec.pools[actor.role]
    return str(next((pool for pool in pools if pool.holds(node.labels)), pools[0]))
