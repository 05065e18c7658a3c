"""Directives: the answers to heartbeats, as pure functions of the membership state."""

from cluster.membership.membership_state import (
    Ending,
    Finished,
    MembershipState,
    Regrouping,
    Running,
    Stopping,
)
from cluster.protocol.messages import Directive, HeartbeatMessage


def refusal(state: MembershipState, heartbeat: HeartbeatMessage) -> str:
    """Return why a message must be ignored; empty if it is valid."""
    if heartbeat.member in state.gone:
        return "gone"
    if heartbeat.term > state.term:
        return "term"
    return "generation" if heartbeat.generation > state.number else ""


def directive_for(
    state: MembershipState, heartbeat: HeartbeatMessage, acknowledged: int
) -> Directive:
    """Return the answer to a heartbeat, in the state after it."""
    refused = refusal(state, heartbeat)
    if refused:
        return Directive(term=state.term, over=state.over, leave=refused == "gone")
    stage, generation = state.inner_stage, state.generation
    stop = isinstance(state.stage, Stopping | Finished)
    if generation is None or state.is_broken or heartbeat.member not in generation.members:
        draining = state.members[heartbeat.member].draining
        return Directive(
            term=state.term,
            over=state.over,
            acknowledged=acknowledged,
            stop=stop,
            leave=draining and isinstance(stage, Running | Regrouping),
        )
    first = state.members.get(generation.members[0])
    has_joined = first is not None and first.heartbeat.generation == generation.number
    return Directive(
        term=state.term,
        over=state.over,
        generation=generation.number,
        members=generation.members,
        source=generation.source,
        address=first.heartbeat.address if first is not None and has_joined else "",
        regroup=isinstance(stage, Regrouping | Ending) and bool(stage.why),
        acknowledged=acknowledged,
        stop=stop,
    )
