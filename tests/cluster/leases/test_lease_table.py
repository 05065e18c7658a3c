"""The lease table by hand: who gets what, what is refused, and what the numbers say."""

from collections.abc import Iterable

import pytest

from cluster.errors import NotReproducible, ReadersLost
from cluster.leases.lease_deadlines import LeaseConfig
from cluster.leases.lease_table import LeaseTable
from cluster.protocol.messages import ChunkHeader, FinishedLease, Lease, ReaderOrders, ReaderReport
from shards.errors import ConfigError, ShardUnreadable
from shards.records import Chunk, Turn
from tests.cluster.lease_world import SHARD, header, turn

CONFIG = LeaseConfig(min_deadline=3, max_deadline=12, isolated_seconds=20, silence_seconds=4)


class Desk:
    """A table with a clock that is moved by hand, in steps that the table is awake for.

    With `usual` seconds it knows from ten chunks before how long a chunk takes.
    """

    def __init__(self, num_tasks: int = 0, term: int = 1, usual: float = 0.0) -> None:
        self.table = LeaseTable(term, CONFIG)
        self.now = 100.0
        if usual:
            self._learn(usual)
        self.tasks = [self.table.add_task(turn(number), SHARD) for number in range(num_tasks)]

    def later(self, seconds: float) -> None:
        for _ in range(round(seconds * 2)):
            self.now += 0.5
            self.table.expired(self.now)

    def say(
        self,
        reader: str,
        *finished: FinishedLease,
        has: Iterable[Lease] = (),
        wanted: int = 0,
        held: Iterable[int] = (),
        term: int = 1,
    ) -> ReaderOrders:
        """A report; the first of the leases that it `has` is in hand."""
        tasks = [lease.task for lease in has]
        report = ReaderReport(
            reader=reader,
            term=term,
            finished=finished,
            current_task=tasks[0] if tasks else None,
            waiting=tuple(tasks[1:]),
            wanted=wanted,
            held=tuple(held),
        )
        return self.table.exchange(report, self.now)

    def take(self, reader: str) -> Lease:
        """Let a reader begin on one chunk."""
        (lease,) = self.say(reader, wanted=1).leases
        self.say(reader, has=[lease])
        return lease

    def die(self, reader: str) -> Lease:
        """Let a reader begin on one chunk, and die of it."""
        lease = self.take(reader)
        self.table.lost(reader, self.now)
        return lease

    def _learn(self, seconds: float) -> None:
        for _ in range(10):
            task = self.table.add_task(turn(90), SHARD)
            lease = self.take("pacer")
            self.say("pacer", done(lease, crop_seconds=seconds))
            self.table.results()
            self.table.release([task])
        self.table.lost("pacer", self.now, "left")


def done(lease: Lease, **changes: object) -> FinishedLease:
    return FinishedLease(lease.task, lease.epoch, header(lease.turn, **changes))


def test_the_oldest_chunks_are_given_first_each_with_a_newer_epoch() -> None:
    """The next batch waits for the oldest chunk; a fence needs epochs that rise."""
    desk = Desk(3)
    leases = desk.say("a", wanted=3).leases
    assert [lease.task for lease in leases] == desk.tasks
    assert [lease.epoch for lease in leases] == sorted({lease.epoch for lease in leases})
    assert not any(lease.isolated for lease in leases)


def test_readers_share_what_waits() -> None:
    """The first to ask would take everything ahead, and the others would stand idle."""
    desk = Desk(4)
    desk.say("a")
    desk.say("b")
    assert len(desk.say("a", wanted=4).leases) == 2
    assert len(desk.say("b", wanted=4).leases) == 1  # of the two that wait now, and then more
    assert len(desk.say("c", wanted=4).leases) == 1


def test_numbers_of_a_new_term_are_above_those_of_the_old_one() -> None:
    """A zombie's task 7 would be taken for another chunk."""
    old, new = Desk(3, term=1), Desk(3, term=2)
    assert min(new.tasks) > max(old.tasks)
    old_lease, new_lease = (d.say("a", wanted=1, term=d.table.term).leases[0] for d in (old, new))
    assert new_lease.epoch > old_lease.epoch and new_lease.term == 2


def test_a_result_is_told_once_and_held_until_it_is_released() -> None:
    """A report may arrive twice, and crops nobody drops fill the memory of a reader."""
    desk = Desk(1)
    lease = desk.take("a")
    desk.say("a", done(lease))
    desk.say("a", done(lease))
    ((task, result),) = desk.table.results()
    assert task == lease.task and isinstance(result, ChunkHeader)
    assert desk.table.results() == [] and desk.table.counters.late.total() == 0
    assert desk.say("a", held=[task]).release == () and desk.table.holders([task]) == {task: "a"}
    desk.table.release([task])
    for _ in range(2):  # until it names it no more
        assert desk.say("a", held=[task]).release == (task,)
    assert desk.say("a").release == () and desk.table.holders([task]) == {}


def test_a_lease_whose_answer_was_lost_is_given_again_with_its_epoch() -> None:
    """The chunk would be nobody's, and the stream would wait for it for ever."""
    desk = Desk(2)
    leases = desk.say("a", wanted=2).leases
    assert desk.say("a", wanted=2).leases == leases
    assert desk.say("a", has=leases).leases == ()


def test_what_a_reader_neither_names_nor_wants_goes_to_others() -> None:
    """A reader that leaves gives back what it has not begun."""
    desk = Desk(2)
    first, second = desk.say("a", wanted=2).leases
    desk.say("a", has=[first])
    assert desk.table.counters.reissued == {"returned": 1}
    (again,) = desk.say("b", wanted=2).leases
    assert again.task == second.task and again.epoch > second.epoch
    assert desk.say("a", has=[first, second]).drop == ((second.task, again.epoch),)


def test_a_drained_reader_gets_no_lease_and_is_told_to_leave() -> None:
    """A node that is to be emptied must not begin anything."""
    desk = Desk(2)
    lease = desk.take("a")
    desk.table.drain("a")
    orders = desk.say("a", done(lease), wanted=4)
    assert orders.leave and orders.leases == () and orders.release == ()
    assert desk.say("b", wanted=1).leave is False


def test_what_a_lost_reader_had_goes_to_others_and_what_it_says_later_is_refused() -> None:
    """A zombie's crops lie where nobody can fetch them."""
    desk = Desk(2)
    first, second = desk.say("a", wanted=2).leases
    desk.say("a", done(first), has=[second])
    desk.table.results()
    desk.table.lost("a", desk.now)
    desk.table.lost("a", desk.now)
    assert desk.table.counters.recropped == 1 and desk.table.counters.reissued == {"died": 1}
    orders = desk.say("a", done(second), wanted=1)
    assert orders.leave and orders.leases == () and desk.table.results() == []
    assert desk.table.counters.late == {"gone": 1}
    again = desk.say("b", wanted=2).leases
    assert {lease.task for lease in again} == {first.task, second.task}
    desk.say("b", *map(done, again))
    assert [task for task, _ in desk.table.results()] == [second.task]  # the first was known
    assert desk.table.holders(desk.tasks) == {first.task: "b", second.task: "b"}


def test_a_word_for_another_control_is_refused() -> None:
    """Two Controls would both believe that they decide."""
    desk = Desk(1)
    orders = desk.say("a", FinishedLease(7, 7, header(turn(0))), wanted=1, term=2)
    assert orders == ReaderOrders(term=1) and desk.table.counters.late == {"term": 1}


def test_a_reader_that_hangs_is_told_of_after_four_times_the_usual_and_blamed() -> None:
    """A decoder without end would hold the run up for ever."""
    desk = Desk(2, usual=1.0)
    leases = desk.say("a", wanted=2).leases
    desk.say("a", has=leases)
    desk.later(3.5)
    desk.say("a", has=leases)
    assert desk.table.expired(desk.now) == []
    desk.later(1.0)
    assert desk.table.expired(desk.now) == ["a"] and desk.table.silent(desk.now) == []
    desk.table.lost("a", desk.now, "hung")
    assert desk.table.counters.reissued == {"hung": 2}
    desk.die("b")  # the chunk that hung comes first again: its second death
    leases = desk.say("c", wanted=2).leases
    assert [lease.isolated for lease in leases] == [True, False]


def test_a_whole_shard_may_take_as_many_times_longer_as_it_is_larger() -> None:
    """A compressed tar is one chunk: with the time of 16 MiB its readers would all be killed."""
    desk = Desk(usual=1.0)
    desk.table.add_task(Turn(Chunk(0, 0, 160 << 20), 0), SHARD)
    lease = desk.take("a")
    desk.later(39)
    assert desk.table.expired(desk.now) == []
    desk.say("a", has=[lease])
    desk.later(2)
    assert desk.table.expired(desk.now) == ["a"]


def test_a_reader_that_is_not_heard_of_is_silent_even_if_it_never_spoke() -> None:
    """A stopped process, or a node beyond a broken switch, tells nobody."""
    desk = Desk()
    desk.table.expect("new", desk.now)
    desk.say("a")
    desk.later(3.5)
    desk.say("b")
    desk.later(1)
    assert desk.table.silent(desk.now) == ["new", "a"]


def test_whoever_was_away_himself_blames_nobody() -> None:
    """A Control that was stopped for a minute would kill every reader when it goes on."""
    desk = Desk(1)
    lease = desk.take("a")
    desk.now += 60
    assert desk.table.silent(desk.now) == [] and desk.table.expired(desk.now) == []
    desk.later(2.5)
    assert desk.table.silent(desk.now) == ["a"]
    desk.say("a", has=[lease])
    assert desk.table.silent(desk.now) == []


def test_an_idle_reader_tries_what_another_is_slow_with_and_the_first_counts() -> None:
    """One slow node must not hold up the batch, and two results must not both count."""
    desk = Desk(2, usual=1.0)
    leases = desk.say("slow", wanted=2).leases
    desk.say("slow", has=leases)
    desk.later(2.5)
    assert desk.say("quick", wanted=1).leases == ()
    desk.later(1)
    (hedge,) = desk.say("quick", wanted=1).leases
    assert hedge.task == leases[0].task and hedge.epoch > leases[0].epoch
    (other,) = desk.say("third", wanted=1).leases
    assert other.task == leases[1].task  # it waits behind the slow one
    assert desk.say("fourth", wanted=1).leases == ()  # two are enough
    desk.say("quick", done(hedge))
    assert desk.say("slow", done(leases[0]), has=leases[1:], held=[hedge.task]).release
    counters = desk.table.counters
    assert (counters.hedged, counters.hedges_won, counters.late["fenced"]) == (2, 1, 1)
    assert desk.table.holders([hedge.task]) == {hedge.task: "quick"} and counters.differing == 0


def test_a_lost_hedge_leaves_the_chunk_with_the_other_reader() -> None:
    """It would be leased a third time, for nothing."""
    desk = Desk(1, usual=1.0)
    lease = desk.take("slow")
    desk.later(3.5)
    assert desk.say("quick", wanted=1).leases
    desk.table.lost("quick", desk.now)
    assert desk.say("new").leases == () and desk.table.snapshot(desk.now).num_waiting == 0
    desk.say("slow", done(lease))
    assert desk.table.holders([lease.task]) == {lease.task: "slow"}


def test_two_deaths_isolate_a_chunk_and_four_give_it_up_alone() -> None:
    """An image that kills readers would kill all of them, one after the other, for ever."""
    desk = Desk(1)
    isolated = [desk.die(f"r{number}").isolated for number in range(4)]
    assert isolated == [False, False, True, True]
    ((task, error),) = desk.table.results()
    assert task == desk.tasks[0] and isinstance(error, ReadersLost)
    assert "4 readers died" in str(error) and "bytes 0-100 of file:///shard.tar" in str(error)
    assert desk.table.counters.given_up == 1 and desk.say("new", wanted=1).leases == ()


def test_a_chunk_that_only_waited_and_one_whose_reader_left_are_not_blamed() -> None:
    """Innocent chunks would be isolated, and a shrinking cluster would end the run."""
    desk = Desk(2)
    for number in range(5):
        leases = desk.say(f"r{number}", wanted=2).leases
        desk.say(f"r{number}", has=leases)
        desk.table.lost(f"r{number}", desk.now, "left")
    assert not any(lease.isolated for lease in desk.say("next", wanted=2).leases)
    for number in range(3):
        desk.table.lost("next" if number == 0 else f"s{number}", desk.now)
        leases = desk.say(f"s{number + 1}", wanted=2).leases
    assert [lease.isolated for lease in leases] == [True, False]


def test_crops_that_a_reader_does_not_have_are_made_again_once() -> None:
    """Two ranks may miss the same chunk, and a late word must not take it from its new holder."""
    desk = Desk(1)
    lease = desk.take("a")
    desk.say("a", done(lease), held=[lease.task])
    for _ in range(2):
        desk.table.missing(lease.task, "a")
    assert desk.table.counters.recropped == 1
    orders = desk.say("a", wanted=1, held=[lease.task])
    assert orders.release == (lease.task,) and orders.leases == ()  # not while it names it
    (again,) = desk.say("a", wanted=1).leases
    desk.say("a", done(again))
    assert desk.table.holders([lease.task]) == {lease.task: "a"}
    desk.table.missing(lease.task, "b")
    assert desk.table.holders([lease.task]) == {lease.task: "a"}


def test_a_chunk_that_is_made_again_differently_ends_the_run() -> None:
    """Ranks would train on other images than the journal and the other ranks believe."""
    desk = Desk(1)
    lease = desk.take("a")
    desk.say("a", done(lease))
    assert len(desk.table.results()) == 1
    desk.table.lost("a", desk.now)
    again = desk.take("b")
    desk.say("b", done(again, offsets=header(again.turn).offsets + 512))
    ((task, error),) = desk.table.results()
    assert task == lease.task and isinstance(error, NotReproducible)
    assert "gave other samples" in str(error)


def test_a_late_result_that_differs_is_counted() -> None:
    """It is the first sign that nodes do not see the same data."""
    desk = Desk(1, usual=1.0)
    slow = desk.take("slow")
    desk.later(3.5)
    (hedge,) = desk.say("quick", wanted=1).leases
    desk.say("quick", done(hedge))
    desk.say("slow", done(slow, num_unselected=1))
    assert desk.table.counters.differing == 1


def test_an_error_that_no_reader_would_be_spared_decides_a_chunk() -> None:
    """A shard that cannot be read is told at once, and not tried on every node."""
    desk = Desk(1)
    lease = desk.take("a")
    error = ShardUnreadable("gone")
    desk.say("a", FinishedLease(lease.task, lease.epoch, None, error))
    assert desk.table.results() == [(lease.task, error)]
    assert desk.table.snapshot(desk.now).num_waiting == 0


def test_a_released_chunk_is_forgotten_whatever_became_of_it() -> None:
    """The order was revised, or the trainers start anew: nobody will ask for it."""
    desk = Desk(3)
    first, second = desk.say("a", wanted=2).leases
    desk.say("a", done(first), has=[second])
    desk.table.forget_all()
    assert desk.table.results() == []
    orders = desk.say("a", has=[second], held=[first.task], wanted=2)
    assert orders.release == (first.task,) and orders.leases == ()
    assert [task for task, _ in orders.drop] == [second.task]
    new = desk.table.add_task(turn(0), SHARD)
    assert new > max(desk.tasks) and desk.take("b").task == new


def test_many_readers_ask_less_often() -> None:
    """A thousand that ask five times a second would be all that Control does."""
    desk = Desk()
    for number in range(1000):
        orders = desk.say(f"r{number}")
    assert orders.seconds == pytest.approx(2.0)
    desk.later(7)
    assert desk.table.silent(desk.now) == []  # they were told to wait


def test_a_snapshot_names_the_oldest_leases() -> None:
    """Whoever looks at a run that stands still wants to know for whom it waits."""
    desk = Desk(3)
    first, second = desk.say("a", wanted=2).leases
    desk.say("a", has=[first, second])
    desk.later(2)
    desk.say("b", wanted=1)
    seen = desk.table.snapshot(desk.now)
    assert (seen.num_readers, seen.num_waiting, seen.num_running, seen.num_held) == (2, 0, 3, 0)
    oldest = seen.oldest[0]
    assert (oldest.reader, oldest.task, oldest.seconds) == ("a", first.task, 2.0)
    assert seen.oldest[-1].reader == "b" and oldest.shard == SHARD.uri


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_deadline": 0},
        {"min_deadline": 200},
        {"isolated_seconds": 60},
        {"poll_seconds": 0},
        {"silence_seconds": 0.3},
        {"reports_per_second": 0},
    ],
)
def test_times_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    """Every reader would be killed at once, or none ever."""
    with pytest.raises(ConfigError, match="must"):
        LeaseConfig(**wrong)
