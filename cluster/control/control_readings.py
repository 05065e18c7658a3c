"""What Control tells of a run for /metrics: its own counters, and gauges of all that it heard."""

from collections import Counter
from collections.abc import Iterable

from cluster.control.control_core import Core
from cluster.control.control_status import status_of
from cluster.membership.members import Member
from cluster.protocol.driver_protocol import Told
from cluster.protocol.metric import Counted, Key, Readings
from cluster.protocol.process_memory import resident_bytes
from cluster.protocol.run_status import Status


def told_of(core: Core) -> Told:
    """All that is new since this was asked last."""
    status = status_of(core)
    mine = Counted(f"control {core.term}", status.readings)
    return Told(
        counted=(mine, *core.tally.take_news()), gauges=gauges_of(core, status), status=status
    )


def gauges_of(core: Core, status: Status) -> Readings:
    """How things stand; what was not measured is missing."""
    found: dict[Key, float] = {
        ("control_term",): core.term,
        ("world_size",): status.world,
        ("memory_bytes", "control"): resident_bytes(),
    }
    roles = Counter(str(one.role) for one in core.staff.there.values())
    for role, wanted in status.wanted.items():
        found["actors", role], found["actors_wanted", role] = roles[role], wanted
    if status.leases.oldest:
        found["oldest_lease_seconds",] = status.leases.oldest[0].seconds
    found["batches_ready", "planned"] = planned = max(0, status.planned - status.step)
    if status.step_seconds:
        found["lead_seconds",] = planned * status.step_seconds
    return found | _buffers(core) | _trainers(core.members.members.values()) | _nodes(core, status)


def _buffers(core: Core) -> dict[Key, float]:
    found: dict[Key, float] = {
        ("buffer_bytes", "reader"): core.tally.held_bytes,
        ("buffer_limit_bytes", "reader"): core.planning.max_bytes,
    }
    if core.tally.memory_bytes:
        found["memory_bytes", "reader"] = core.tally.memory_bytes
    return found


def _trainers(members: Iterable[Member]) -> dict[Key, float]:
    """Of what trainers hold: the least lead, the largest memory, all buffers."""
    loads = [member.beat.load for member in members if member.beat.load is not None]
    if not loads:
        return {}
    found: dict[Key, float] = {
        ("batches_ready", "taken"): min(load.batches_ready for load in loads),
        ("buffer_bytes", "trainer"): sum(load.held_bytes for load in loads),
        ("buffer_limit_bytes", "trainer"): sum(load.limit_bytes for load in loads),
        ("memory_bytes", "trainer"): max(load.memory_bytes for load in loads),
    }
    whats = {what for load in loads for what in load.device_bytes}
    return found | {
        ("device_memory_bytes", what): max(load.device_bytes.get(what, 0) for load in loads)
        for what in whats
    }


def _nodes(core: Core, status: Status) -> dict[Key, float]:
    """Nodes, and what pools of them give. The first pool of a role that holds a node counts."""
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
        asked = names[core.staff.decision.pool % len(names)] if role == "reader" else names[0]
        for name in names:
            elsewhere = sum(ready.values()) - ready[name]
            found["pool_ready", role, name] = ready[name]
            found["pool_desired", role, name] = (
                max(0, status.wanted[role] - elsewhere) if name == asked else ready[name]
            )
    return found
