"""Membership: generations of trainers, the state that counts, and failed trainers."""

import pytest

from cluster.membership.failure_detector import MembershipConfig
from cluster.membership.membership import GENERATIONS_PER_TERM, Membership
from cluster.protocol.messages import HeartbeatMessage
from shards.records import Cursor
from tests.cluster.trainer_world import World, made_report

TERM = 3


def cursor(step):
    return Cursor(manifest="m", order="o", slot=step)


class Group:
    """A membership, and trainers whose heartbeats the test writes."""

    def __init__(self, *names, batch=12, wanted=3, **config):
        self.membership = Membership(TERM, batch, wanted, MembershipConfig(**config))
        self.now = 0.0
        self.say("ready", *names)

    @property
    def number(self):
        return self.membership.generation.number

    @property
    def members(self):
        return self.membership.generation.members

    @property
    def start(self):
        return self.membership.generation.start

    def say(self, phase, *names, committed=-1, generation=None, term=TERM, **fields):
        if generation is None:
            current = self.membership.generation
            generation = 0 if current is None else current.number
            generation = generation if phase not in ("ready", "starting") or current else 0
        records = tuple(made_report(step) for step in fields.pop("steps", range(1, committed + 1)))
        directives = [
            self.membership.beat(
                HeartbeatMessage(
                    member=name,
                    term=term,
                    phase=phase,
                    generation=generation,
                    committed=committed,
                    cursor=cursor(committed),
                    reports=records,
                    **fields,
                ),
                self.now,
            )
            for name in names
        ]
        return directives[-1] if directives else None

    def run(self, *names, committed=0):
        self.say("joining", *names, committed=committed, address="host:1")
        return self.say("running", *names, committed=committed)

    def wait(self, seconds, *names, phase="running", committed=0, **fields):
        """Let time pass while these members repeat a heartbeat; return the suspected ones."""
        blamed = []
        for _ in range(int(seconds)):
            self.now += 1.0
            self.say(phase, *names, committed=committed, **fields)
            blamed += self.membership.silent(self.now)
        return blamed


def test_generation_starts_when_all_wanted_trainers_are_ready():
    """The third of three comes a moment later, and would end a generation of two."""
    group = Group("a", "b")
    assert group.membership.generation is None
    directive = group.say("ready", "c")
    assert directive.members == ("a", "b", "c") and directive.source == ""
    assert directive.generation == TERM * GENERATIONS_PER_TERM + 1 > directive.over


def test_run_starts_with_a_fitting_world_size_after_a_while():
    """A cluster that never gives the last machine would hold the others up for ever."""
    group = Group("a", "b", "c", "d", "e", batch=8, wanted=8, gather_seconds=10)
    assert group.wait(9, "a", "b", "c", "d", "e", phase="ready", committed=-1) == []
    assert group.membership.generation is None
    group.wait(2, "a", "b", "c", "d", "e", phase="ready", committed=-1, generation=0)
    assert group.members == ("a", "b", "c", "d")  # 5 does not divide 8: the last one stands by


def test_directive_has_the_address_of_rank_0():
    """Only rank 0 knows its port."""
    group = Group("a", "b", "c")
    assert group.say("ready", "b", generation=0).address == ""
    group.say("joining", "a", address="host:7")
    assert group.say("ready", "b", generation=0).address == "host:7"


def test_survivors_continue_at_once_from_the_newest_step():
    """Waiting for a replacement would cost minutes; an older state would cost finished steps."""
    group = Group("a", "b", "c")
    group.run("a", "b", "c")
    group.say("running", "b", committed=5)
    group.say("running", "a", "c", committed=4)
    group.now = 10.0
    group.membership.lost("c", "killed", group.now)
    over = group.say("running", "a", committed=4)
    assert over.over == group.number and over.members == ()
    group.say("broken", "a", committed=4)
    directive = group.say("broken", "b", committed=5)
    assert (directive.members, directive.source, group.start) == (("b", "a"), "b", 5)
    group.now = 11.5
    group.run(*directive.members, committed=5)
    group.say("running", "b", committed=6)
    [recovery] = group.membership.recoveries
    assert recovery.seconds == 1.5 and "killed" in recovery.why


def test_next_generation_waits_until_all_survivors_undid_their_step():
    """A half collective would meet those of the next generation."""
    group = Group("a", "b", "c", silence_seconds=4)
    group.run("a", "b", "c")
    number = group.number
    group.membership.silent(group.now)
    group.membership.lost("c", "killed", group.now)
    group.say("broken", "a", committed=0)
    assert group.number == number
    assert group.wait(3, "b") == []
    group.say("broken", "a", committed=0, generation=number)
    assert "b" in group.wait(3, "b", generation=number)
    group.membership.lost("b", "late", group.now)
    assert group.number == number + 1 and group.members == ("a",)


def test_newcomer_enters_after_a_step_and_without_a_loss():
    """A returning trainer must cost no step."""
    group = Group("a", "b", wanted=2)
    group.run("a", "b")
    group.membership.lost("b", "killed", 0.0)
    group.say("broken", "a", committed=0)
    group.run("a", committed=0)
    group.say("running", "a", committed=7)
    group.say("ready", "new", generation=0)
    directive = group.say("running", "a", committed=7)
    assert directive.regroup and directive.over < directive.generation
    directive = group.say("ready", "a", committed=8)
    assert (directive.members, directive.source, group.start) == (("a", "new"), "a", 8)
    assert not directive.regroup


def test_draining_trainer_is_left_out_and_leaves_before_it_dies():
    """A notice of two minutes is enough to lose no step."""
    group = Group("a", "b", "c", "d", batch=12, wanted=4)
    group.run("a", "b", "c", "d")
    group.membership.draining("a", 1.0)
    assert group.say("running", "b").regroup
    directive = group.say("ready", "a", "b", "c", "d", committed=1)
    assert directive.members == ("b", "c", "d") and directive.source == "b"
    assert not group.say("ready", "a", committed=1).leave  # its state may be needed
    group.run("b", "c", "d", committed=1)
    assert group.say("ready", "a", committed=1, generation=group.number - 1).leave


def test_only_trainer_with_the_state_gives_it_before_it_leaves():
    """Left out at once, it would lose all steps since the last checkpoint."""
    group = Group("a", batch=12, wanted=1)
    group.run("a")
    group.membership.draining("a", 1.0)
    assert not group.say("running", "a", committed=3).regroup
    group.say("ready", "b", generation=0)
    assert group.say("running", "a", committed=3).regroup
    directive = group.say("ready", "a", committed=4)
    assert (directive.members, directive.source) == (("a", "b"), "a")
    group.run("a", "b", committed=4)
    assert group.say("running", "a", "b", committed=5).regroup
    assert group.say("ready", "a", "b", committed=6).members == ("b",)


def test_saved_state_counts_when_no_trainer_has_one():
    """A trainer on stand-by since step 2 must not take the run back from 100 to 2."""
    group = Group("a", "b", wanted=2)
    group.run("a", "b")
    group.membership.restore(100, cursor(100))
    group.say("running", "a", "b", committed=120)
    group.membership.lost("a", "node", 1.0)
    group.membership.lost("b", "node", 1.0)
    group.say("ready", "old", committed=2, generation=0)
    group.say("ready", "new", generation=0)
    generation = group.membership.generation
    assert (generation.source, generation.start) == ("", 100)
    assert generation.cursor == cursor(100)


def test_silent_trainer_is_declared_dead_and_refused_later():
    """A zombie would commit steps that no other trainer has."""
    group = Group("a", "b", wanted=2, silence_seconds=4)
    group.run("a", "b")
    group.membership.silent(0.0)
    assert "b" in group.wait(6, "a")
    group.membership.lost("b", "silent", group.now)
    assert group.say("running", "b", committed=50).leave
    assert group.membership.refused["gone"] == 1
    assert group.membership.min_committed == 0


def test_hanging_trainer_is_told_from_its_waiting_peers():
    """Killing the peers as well would lose the state."""
    group = Group("a", "b", "c", hang_seconds=10)
    group.run("a", "b", "c")
    blamed = []
    for _ in range(12):
        blamed += group.wait(1, "a", "b", doing="peers")
        blamed += group.wait(1, "c", doing="step")
    assert set(blamed) == {"c"}


def test_waiting_for_data_is_no_hang():
    """Readers may all be gone for a while; killing trainers would not help."""
    group = Group("a", "b", hang_seconds=5, wanted=2)
    group.run("a", "b")
    blamed = []
    for _ in range(30):
        blamed += group.wait(1, "a", doing="peers")
        blamed += group.wait(1, "b", doing="data")
    assert blamed == []


def test_pause_of_control_blames_no_trainer():
    """After a minute without Control all trainers would seem silent."""
    group = Group("a", "b", wanted=2)
    group.run("a", "b")
    group.membership.silent(0.0)
    assert group.membership.silent(60.0) == []
    assert group.membership.silent(61.0) == []


def test_members_of_an_old_term_undo_their_step_and_keep_their_state():
    """Finished steps must not be trained again under a new Control."""
    group = Group(wanted=2)
    old = (TERM - 1) * GENERATIONS_PER_TERM + 9
    for name in ("a", "b"):
        directive = group.say("running", name, committed=40, generation=old, term=TERM - 1)
        assert directive.over >= old and directive.term == TERM
    assert group.membership.refused["term"] == 2
    assert group.membership.generation is None
    group.say("broken", "a", committed=40, generation=old)
    directive = group.say("broken", "b", committed=41, generation=old)
    assert (directive.source, group.start) == ("b", 41)
    assert group.membership.generation.cursor == cursor(41)


def test_control_of_an_old_term_starts_no_generation():
    """Two Controls at once would form two generations out of the same trainers."""
    group = Group("a", "b", wanted=2)
    before = group.membership.generation
    directive = group.say("broken", "a", term=TERM + 1)
    assert directive.term == TERM and directive.members == ()
    assert group.membership.generation == before and group.membership.refused["term"] == 1


def test_repeated_message_changes_nothing():
    """Calls arrive at least once, not exactly once."""
    group = Group("a", "b", wanted=2)
    group.run("a", "b")
    group.say("running", "a", "b", committed=3)
    group.say("joining", "a", committed=0)
    assert group.membership.is_running and group.membership.min_committed == 3
    assert group.membership.refused["late"] == 1


def test_fruitless_generations_end_the_run_with_their_reason():
    """An error of every trainer would be tried again for ever."""
    group = Group("a", "b", wanted=2, max_fruitless=3)
    for _ in range(3):
        group.run("a", "b")
        group.say("broken", "a", "b", committed=0, reason="CUDA out of memory")
    assert "3 generations" in group.membership.gave_up
    assert "out of memory" in group.membership.gave_up


def test_stop_ends_all_and_starts_no_generation():
    """A user would have to press Ctrl-C twice."""
    group = Group("a", "b", wanted=2)
    group.run("a", "b")
    group.membership.stop(1.0)
    assert group.say("running", "a", committed=4).stop
    number = group.number
    group.say("left", "a", "b", committed=5)
    assert group.number == number


def test_stop_ends_a_step_that_waits_for_data():
    """With hanging readers the step would never finish, and no trainer could leave."""
    group = Group("a", "b", wanted=2, stop_seconds=3)
    group.run("a", "b")
    group.membership.stop(group.now)
    group.wait(2, "a", doing="peers")
    group.wait(2, "b", doing="data")
    group.membership.silent(group.now)
    directive = group.say("running", "a", "b", committed=4)
    assert directive.over == group.number and directive.stop


def test_an_end_of_the_data_ends_the_step_that_waits_for_it_at_once():
    """The run would wait for data that never comes before it saves."""
    group = Group("a", "b", wanted=2, stop_seconds=3)
    group.run("a", "b", committed=4)
    group.membership.stop_without_data("the data ended", group.now)
    directive = group.say("running", "a", "b", committed=4, doing="data")
    assert directive.over == group.number and directive.stop
    number = group.number
    group.say("broken", "a", "b", committed=4)
    group.say("left", "a", "b", committed=4)
    assert group.number == number and group.membership.members.keys() == {"a", "b"}


def test_end_of_training_is_no_loss():
    """The last trainer to leave would be taken for a survivor."""
    group = Group("a", "b", wanted=2)
    group.run("a", "b")
    group.say("running", "b", committed=9)
    group.say("left", "a", committed=10)
    assert not group.membership.is_finished
    group.say("left", "b", committed=10)
    group.membership.lost("a", "exited", 1.0)
    assert group.membership.is_finished and group.membership.recoveries == []


def test_steps_are_reported_once_and_in_order():
    """The log of a run has one line for every step."""
    group = Group("a", "b", wanted=2)
    group.run("a", "b")
    group.say("running", "a", committed=2, steps=[1, 2])
    group.say("running", "b", committed=3, steps=[1, 2, 3])
    first = group.membership.records(0)
    assert [record.step for record in first.records] == [1, 2, 3]
    again = group.membership.records(0)
    assert again == first  # as if the answer was lost
    assert group.membership.records(3).records == ()
    assert group.say("running", "a", committed=3).acknowledged == 3


def test_log_ahead_of_all_survivors_goes_back():
    """A step that only lost trainers had finished is trained again, and its digest compared."""
    group = Group("a", "b", wanted=2)
    group.run("a", "b")
    group.say("running", "a", committed=5, steps=range(1, 6))
    group.say("running", "b", committed=4, steps=range(1, 5))
    group.membership.records(0)
    assert group.membership.records(5).history == 0
    group.membership.lost("a", "killed", 1.0)
    directive = group.say("broken", "b", committed=4, steps=[])
    assert group.start == directive.acknowledged == 4
    group.run("b", committed=4)
    group.say("running", "b", committed=6, steps=[5, 6])
    records = group.membership.records(5, 0)
    assert records.history == group.number and records.start == 4
    assert [record.step for record in records.records] == [5, 6]


def test_lost_reports_are_counted():
    """A gap would hold the log up for ever, or stay unnoticed."""
    group = Group("a", "b", wanted=2)
    group.run("a", "b")
    group.say("running", "a", "b", committed=4, steps=[1, 4])
    assert [record.step for record in group.membership.records(0).records] == [1, 4]
    assert group.membership.num_records_lost == 2


@pytest.mark.parametrize("seed", range(40))
def test_training_continues_after_any_order_of_failures(seed):
    """Kills, hangs, zombies, lost messages and new Controls, in seeded random order."""
    world = World(
        seed, loss=0.05 * (seed % 3), control_dies=0.5 * (seed % 2), wanted=1 + seed % 4
    ).play(disturb_until=15.0)
    assert world.log >= world.num_steps


@pytest.mark.parametrize("seed", range(6))
def test_undisturbed_run_has_one_generation(seed):
    """A change of generations without a reason costs time."""
    world = World(seed).play(disturb_until=0.0)
    assert world.control.num_generations == 1 and world.killed == []
    assert {trainer.trained for trainer in world.trainers.values()} == {world.num_steps}
