"""Generations of trainers: who trains with whom, whose state counts, who is given up."""

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
    """A membership, and trainers that say what a test wants them to."""

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
        """Time passes, in which these members say the same again and again."""
        blamed = []
        for _ in range(int(seconds)):
            self.now += 1.0
            self.say(phase, *names, committed=committed, **fields)
            blamed += self.membership.silent(self.now)
        return blamed


def test_a_generation_starts_when_all_that_are_wanted_are_ready():
    """With two of three, the third would come a moment later and break everything up again."""
    group = Group("a", "b")
    assert group.membership.generation is None
    directive = group.say("ready", "c")
    assert directive.members == ("a", "b", "c") and directive.source == ""
    assert directive.generation == TERM * GENERATIONS_PER_TERM + 1 > directive.over


def test_after_a_while_the_run_starts_with_those_that_fit():
    """A cluster that never gives the last machine would hold the others up for ever."""
    group = Group("a", "b", "c", "d", "e", batch=8, wanted=8, gather_seconds=10)
    assert group.wait(9, "a", "b", "c", "d", "e", phase="ready", committed=-1) == []
    assert group.membership.generation is None
    group.wait(2, "a", "b", "c", "d", "e", phase="ready", committed=-1, generation=0)
    assert group.members == ("a", "b", "c", "d")  # 5 does not divide 8: the last one stands by


def test_rank_0_tells_the_others_where_it_waits():
    """Nobody else knows the port that it got."""
    group = Group("a", "b", "c")
    assert group.say("ready", "b", generation=0).address == ""
    group.say("joining", "a", address="host:7")
    assert group.say("ready", "b", generation=0).address == "host:7"


def test_after_a_loss_the_survivors_go_on_at_once_from_the_newest_step():
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


def test_nobody_goes_on_while_a_survivor_has_not_rolled_back():
    """Its half of a collective would meet the others' in the next generation."""
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


def test_a_newcomer_enters_after_a_step_and_without_a_loss():
    """To throw a step away for every trainer that comes back would punish elasticity."""
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


def test_who_has_to_go_is_left_out_before_it_dies_and_told_to_leave():
    """A notice of two minutes is enough to lose nothing at all."""
    group = Group("a", "b", "c", "d", batch=12, wanted=4)
    group.run("a", "b", "c", "d")
    group.membership.draining("a", 1.0)
    assert group.say("running", "b").regroup
    directive = group.say("ready", "a", "b", "c", "d", committed=1)
    assert directive.members == ("b", "c", "d") and directive.source == "b"
    assert not group.say("ready", "a", committed=1).leave  # its state may still be needed
    group.run("b", "c", "d", committed=1)
    assert group.say("ready", "a", committed=1, generation=group.number - 1).leave


def test_the_only_one_with_the_state_hands_it_over_before_it_leaves():
    """Left out at once, it would take everything since the last checkpoint with it."""
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


def test_if_nobody_has_a_state_the_one_that_was_kept_counts():
    """A trainer that stood by since step 2 must not take the run back from 100 to 2."""
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


def test_who_is_silent_is_given_up_and_its_late_word_refused():
    """A zombie that trains on would commit steps that nobody else knows."""
    group = Group("a", "b", wanted=2, silence_seconds=4)
    group.run("a", "b")
    group.membership.silent(0.0)
    assert "b" in group.wait(6, "a")
    group.membership.lost("b", "silent", group.now)
    assert group.say("running", "b", committed=50).leave
    assert group.membership.refused["gone"] == 1
    assert group.membership.min_committed == 0


def test_who_hangs_in_a_step_is_told_from_those_that_wait_for_it():
    """To kill the waiting ones as well would lose the state with them."""
    group = Group("a", "b", "c", hang_seconds=10)
    group.run("a", "b", "c")
    blamed = []
    for _ in range(12):
        blamed += group.wait(1, "a", "b", doing="peers")
        blamed += group.wait(1, "c", doing="step")
    assert set(blamed) == {"c"}


def test_who_waits_for_data_does_not_hang():
    """All readers may be gone for a while; trainers that are killed for it help nobody."""
    group = Group("a", "b", hang_seconds=5, wanted=2)
    group.run("a", "b")
    blamed = []
    for _ in range(30):
        blamed += group.wait(1, "a", doing="peers")
        blamed += group.wait(1, "b", doing="data")
    assert blamed == []


def test_a_pause_of_control_is_nobody_elses_fault():
    """After a minute in which nobody listened, everybody would seem to have been silent."""
    group = Group("a", "b", wanted=2)
    group.run("a", "b")
    group.membership.silent(0.0)
    assert group.membership.silent(60.0) == []
    assert group.membership.silent(61.0) == []


def test_members_of_an_old_term_are_asked_to_roll_back_and_keep_their_state():
    """A new Control knows nothing; what was trained must not be trained again."""
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


def test_a_control_of_an_old_term_is_not_listened_to_and_does_not_listen():
    """Two Controls at once would form two generations out of the same trainers."""
    group = Group("a", "b", wanted=2)
    before = group.membership.generation
    directive = group.say("broken", "a", term=TERM + 1)
    assert directive.term == TERM and directive.members == ()
    assert group.membership.generation == before and group.membership.refused["term"] == 1


def test_a_message_that_comes_twice_changes_nothing():
    """Calls are answered at least once, not exactly once."""
    group = Group("a", "b", wanted=2)
    group.run("a", "b")
    group.say("running", "a", "b", committed=3)
    group.say("joining", "a", committed=0)
    assert group.membership.is_running and group.membership.min_committed == 3
    assert group.membership.refused["late"] == 1


def test_generations_that_come_to_nothing_end_with_their_reason():
    """What breaks for everybody, every time, would be tried again for ever."""
    group = Group("a", "b", wanted=2, max_fruitless=3)
    for _ in range(3):
        group.run("a", "b")
        group.say("broken", "a", "b", committed=0, reason="CUDA out of memory")
    assert "3 generations" in group.membership.gave_up
    assert "out of memory" in group.membership.gave_up


def test_when_asked_to_stop_all_leave_and_nobody_starts_again():
    """A Ctrl-C that only regroups would have to be pressed again."""
    group = Group("a", "b", wanted=2)
    group.run("a", "b")
    group.membership.stop(1.0)
    assert group.say("running", "a", committed=4).stop
    number = group.number
    group.say("left", "a", "b", committed=5)
    assert group.number == number


def test_who_waits_for_data_while_all_stop_gives_the_step_up():
    """Where readers or a bucket hang, nobody could leave: the step would never be finished."""
    group = Group("a", "b", wanted=2, stop_seconds=3)
    group.run("a", "b")
    group.membership.stop(group.now)
    group.wait(2, "a", doing="peers")
    group.wait(2, "b", doing="data")
    group.membership.silent(group.now)
    directive = group.say("running", "a", "b", committed=4)
    assert directive.over == group.number and directive.stop


def test_the_end_of_training_is_no_loss():
    """The last trainer to leave would be taken for a survivor."""
    group = Group("a", "b", wanted=2)
    group.run("a", "b")
    group.say("running", "b", committed=9)
    group.say("left", "a", committed=10)
    assert not group.membership.is_finished
    group.say("left", "b", committed=10)
    group.membership.lost("a", "exited", 1.0)
    assert group.membership.is_finished and group.membership.recoveries == []


def test_steps_are_told_once_and_in_order_whoever_reports_them():
    """The log of a run has one line for every step."""
    group = Group("a", "b", wanted=2)
    group.run("a", "b")
    group.say("running", "a", committed=2, steps=[1, 2])
    group.say("running", "b", committed=3, steps=[1, 2, 3])
    first = group.membership.records(0)
    assert [record.step for record in first.records] == [1, 2, 3]
    again = group.membership.records(0)
    assert again == first  # the answer was lost
    assert group.membership.records(3).records == ()
    assert group.say("running", "a", committed=3).acknowledged == 3


def test_a_log_that_is_ahead_of_all_survivors_goes_back():
    """The step that only the dead had finished is trained again, and its digest compared."""
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


def test_reports_that_died_with_all_who_had_them_are_counted():
    """A hole would hold up the log for ever, or go unnoticed."""
    group = Group("a", "b", wanted=2)
    group.run("a", "b")
    group.say("running", "a", "b", committed=4, steps=[1, 4])
    assert [record.step for record in group.membership.records(0).records] == [1, 4]
    assert group.membership.num_records_lost == 2


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_training_goes_on_and_nothing_is_lost(seed):
    """Kills, hangs, zombies, lost messages and new Controls in any order: see `trainer_world`."""
    world = World(
        seed, loss=0.05 * (seed % 3), control_dies=0.5 * (seed % 2), wanted=1 + seed % 4
    ).play(disturb_until=15.0)
    assert world.log >= world.num_steps


@pytest.mark.parametrize("seed", range(6))
def test_undisturbed_there_is_one_generation(seed):
    """What regroups without a reason costs steps for nothing."""
    world = World(seed).play(disturb_until=0.0)
    assert world.control.num_generations == 1 and world.killed == []
    assert {trainer.trained for trainer in world.trainers.values()} == {world.num_steps}
