"""States that trainers give to Control: saved after the log of their steps, and never mixed up."""

from cluster.control.control_core import ControlCore
from cluster.protocol.driver_protocol import ActorEvent, DriverOrders, DriverReport, EventKind
from cluster.protocol.messages import HeartbeatMessage, StateRef
from cluster.protocol.step_report import StepReport
from shards.records import Cursor
from tests.cluster.monitoring.made_core import made_core


def beat(core: ControlCore, name: str, *steps: int) -> None:
    """Send the heartbeat of a trainer that finished these steps since the last answer."""
    at = Cursor(manifest="", order="")
    reports = tuple(
        StepReport(step=step, cursor=at, digest="", loss=0.0, lr=0.0, num_samples=1)
        for step in steps
    )
    generation = core.members.generation
    message = HeartbeatMessage(
        member=name,
        term=core.term,
        phase="ready" if generation is None else "running",
        generation=0 if generation is None else generation.number,
        committed=max(steps, default=-1 if generation is None else 0),
        reports=reports,
    )
    core.beat(message)


def begin(core: ControlCore) -> None:
    """Start the generation of two trainers."""
    beat(core, "t1")
    beat(core, "t2")
    assert core.members.generation is not None
    assert ask(core, 0).records.history == 0


def ask(core: ControlCore, recorded: int, unsaved: tuple[int, str] | None = None) -> DriverOrders:
    """Send the report of a driver whose log ends here."""
    sent = DriverReport(
        term=core.term,
        events=(),
        creating=frozenset(),
        killing=frozenset(),
        recorded=recorded,
        history=0,
        state=core.state,
        saving=-1,
        unsaved=unsaved,
        begun=True,
        stop=False,
    )
    core.take(sent)
    return core.orders(sent)


def given(name: str, step: int) -> StateRef:
    return StateRef(step, (f"of {name}",), giver=name)


def end(core: ControlCore, name: str, kind: EventKind) -> None:
    core.take_event(ActorEvent(number=1, name=name, role="trainer", kind=kind), 1.0)


def test_a_state_is_saved_after_the_steps_before_it_are_logged() -> None:
    """A run killed in between would resume after the state, and its log would lack the steps."""
    with made_core() as core:
        begin(core)
        core.keep(given("t1", 3))
        assert ask(core, 0).state is None
        beat(core, "t1", 1, 2)
        assert ask(core, 0).state is None
        beat(core, "t1", 1, 2, 3)
        orders = ask(core, 0)
        assert [report.step for report in orders.records.records] == [1, 2, 3]
        assert orders.state == given("t1", 3)
        assert ask(core, 3).state == given("t1", 3)


def test_a_state_whose_trainer_is_lost_does_not_hide_the_next_one() -> None:
    """The last state of a run would not be saved, although a second trainer had given it again."""
    with made_core() as core:
        begin(core)
        beat(core, "t1", 1, 2, 3)
        beat(core, "t2", 1, 2, 3)
        core.keep(given("t1", 3))
        assert ask(core, 3).state == given("t1", 3)
        end(core, "t1", "lost")
        core.keep(given("t2", 3))
        assert ask(core, 3, unsaved=(3, "t1")).state == given("t2", 3)


def test_a_state_of_a_lost_trainer_gives_way_to_an_earlier_one() -> None:
    """A stop right after a loss would wait for a state that nobody has."""
    with made_core() as core:
        begin(core)
        beat(core, "t1", 1, 2, 3)
        core.keep(given("t1", 3))
        end(core, "t1", "lost")
        beat(core, "t2", 1, 2)
        core.keep(given("t2", 2))
        assert ask(core, 2).state == given("t2", 2)


def test_a_state_of_a_trainer_that_left_is_not_replaced_by_an_earlier_one() -> None:
    """Its process waits until the state is saved; the steps after the earlier one would be lost."""
    with made_core() as core:
        begin(core)
        beat(core, "t1", 1, 2, 3)
        core.keep(given("t1", 3))
        end(core, "t1", "left")
        core.keep(given("t2", 2))
        assert ask(core, 3).state == given("t1", 3)
