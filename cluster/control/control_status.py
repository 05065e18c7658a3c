"""How a run on a cluster stands, as its Control sees it."""

import time
from collections import Counter

from cluster.control.control_core import Core
from cluster.membership.members import Member
from cluster.protocol.driver_protocol import ActorEvent
from cluster.protocol.metric import Key, Readings
from cluster.protocol.run_status import ActorStatus, Decided, NodeStatus, Status


def status_of(core: Core) -> Status:
    """How the run of this Control stands at this moment."""
    now = time.monotonic()
    members, planned = core.members, core.planning.status()
    generation = members.generation if members.is_running else None
    nodes = core.nodes.latest
    decision = core.staff.decision
    with core.planning.leases() as table:
        leases = table.snapshot(now)
    return Status(
        term=core.term,
        seconds=now - core.began,
        step=max(members.min_committed, core.state.step),
        num_steps=core.spec.num_steps,
        planned=planned.get("planned", 0),
        generation=str(generation.number & 0xFFFFFFFF) if generation else "",
        world=len(generation.members) if generation else 0,
        step_seconds=members.median_step_seconds,
        wanted=core.staff.num_wanted,
        scaling=f"{decision.target} readers: {decision.reason}",
        rates=_rates(core),
        nodes=_nodes(core),
        actors=_actors(core, now),
        leases=leases,
        decisions=tuple(
            Decided(seconds=now - at, what=what, why=why) for at, what, why in core.events()
        ),
        recoveries=tuple(
            Decided(seconds=now - one.at, what=f"{one.seconds:.1f} s", why=one.why)
            for one in members.recoveries
        ),
        readings=counters_of(core),
        pending=tuple(f"{one.count} x {one.kind}" for one in nodes.pending) if nodes else (),
        failed=tuple(f"{one.kind}: {one.reason}" for one in nodes.failed) if nodes else (),
        pages=core.pages,
    )


def counters_of(core: Core) -> Readings:
    """Counters of this Control and no other, by key, as `cluster.monitoring` knows them."""
    members, leases = core.members, core.table.counters
    found: dict[Key, float] = {
        **core.staff.counters(),
        ("generations",): members.num_generations,
        ("recoveries",): len(members.recoveries),
        ("recovery_seconds",): sum(one.seconds for one in members.recoveries),
    }
    for name, counts in (
        ("leases_reissued", leases.reissued),
        ("results_refused", leases.late),
        ("beats_refused", members.refused),
    ):
        found |= {(name, str(reason)): count for reason, count in counts.items()}
    return found


def _rates(core: Core) -> dict[str, float]:
    """Images a second that are cropped and trained on, and what part of readers' time is work."""
    first, last = core.history[0], core.history[-1]
    seconds = last.at - first.at
    if seconds <= 0:
        return {}
    num_readers = max(1, sum(one.role == "reader" for one in core.staff.there.values()))
    trained = (last.committed - first.committed) * core.spec.stream.batch_size
    return {
        "cropped": (last.num_made - first.num_made) / seconds,
        "trained": trained / seconds,
        "busy": (last.busy_seconds - first.busy_seconds) / seconds / num_readers,
    }


def _nodes(core: Core) -> tuple[NodeStatus, ...]:
    seen = core.nodes.latest
    if seen is None:
        return ()
    there = Counter((one.node, one.role) for one in core.staff.there.values())
    return tuple(
        NodeStatus(
            node=node.id,
            address=node.address,
            labels=node.labels,
            num_readers=there[node.id, "reader"],
            num_trainers=there[node.id, "trainer"],
            cores=node.total.get("CPU", 0.0),
            is_head=node.is_head,
            leaves_in=None if node.leaves_at is None else max(0.0, node.leaves_at - time.time()),
        )
        for node in seen.alive
    )


def _actors(core: Core, now: float) -> tuple[ActorStatus, ...]:
    ranks = core.members.generation.members if core.members.generation else ()
    found = []
    for name, one in sorted(core.staff.there.items()):
        member = core.members.members.get(name)
        leaves = name in core.staff.leaving
        found.append(
            ActorStatus(
                name=name,
                role=one.role,
                node=one.node,
                pid=one.pid,
                phase="leaves" if leaves else _phase(member),
                step=member.beat.committed if member else -1,
                rank=ranks.index(name) if name in ranks else -1,
                doing=member.beat.doing if member else "",
                heard_seconds=now - member.heard if member else 0.0,
                pool=_pool(core, one),
                pages=one.pages,
            )
        )
    return tuple(found)


def _pool(core: Core, actor: ActorEvent) -> str:
    """The first pool of its role that holds its node."""
    seen = core.nodes.latest
    node = None if seen is None else seen.find(actor.node)
    if node is None:
        return ""
    pools = core.spec.pools[actor.role]
    return str(next((pool for pool in pools if pool.holds(node.labels)), pools[0]))


def _phase(member: Member | None) -> str:
    return "works" if member is None else member.beat.phase
