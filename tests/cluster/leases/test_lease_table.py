"""Lease table by hand: granted leases, refused results, lost readers, counters."""

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


class TableDriver:
    """A lease table, and a clock that is moved by hand in steps that count fully.

    With `usual` seconds, the table has seen ten chunks that took so long.
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

    def report(
        self,
        reader: str,
        *finished: FinishedLease,
        has: Iterable[Lease] = (),
        wanted: int = 0,
        held: Iterable[int] = (),
        term: int = 1,
    ) -> ReaderOrders:
        """Send a report; the first of the leases that the reader `has` is its current one."""
        tasks = [lease.task for lease in has]
        message = ReaderReport(
            reader=reader,
            term=term,
            finished=finished,
            current_task=tasks[0] if tasks else None,
            waiting=tuple(tasks[1:]),
            wanted=wanted,
            held=tuple(held),
        )
        return self.table.exchange(message, self.now)

    def take(self, reader: str) -> Lease:
        """Let a reader begin one chunk."""
        (lease,) = self.report(reader, wanted=1).leases
        self.report(reader, has=[lease])
        return lease

    def die(self, reader: str) -> Lease:
        """Let a reader begin one chunk, and die."""
        lease = self.take(reader)
        self.table.lost(reader, self.now)
        return lease

    def _learn(self, seconds: float) -> None:
        for _ in range(10):
            task = self.table.add_task(turn(90), SHARD)
            lease = self.take("pacer")
            self.report("pacer", done(lease, crop_seconds=seconds))
            self.table.results()
            self.table.release([task])
        self.table.lost("pacer", self.now, "left")


def done(lease: Lease, **changes: object) -> FinishedLease:
    return FinishedLease(lease.task, lease.epoch, header(lease.turn, **changes))


def test_the_oldest_chunks_are_leased_first_with_rising_epochs() -> None:
    """The next batch waits for the oldest chunk; a fence needs epochs that rise."""
    driver = TableDriver(3)
    leases = driver.report("a", wanted=3).leases
    assert [lease.task for lease in leases] == driver.tasks
    assert [lease.epoch for lease in leases] == sorted({lease.epoch for lease in leases})
    assert not any(lease.isolated for lease in leases)


def test_readers_share_the_waiting_chunks() -> None:
    """The first reader would take all chunks, and the others would be idle."""
    driver = TableDriver(4)
    driver.report("a")
    driver.report("b")
    assert len(driver.report("a", wanted=4).leases) == 2
    assert len(driver.report("b", wanted=4).leases) == 1  # its share of the two that wait now
    assert len(driver.report("c", wanted=4).leases) == 1


def test_task_numbers_and_epochs_rise_with_the_term() -> None:
    """Task 7 of an old Control would be taken for another chunk."""
    old, new = TableDriver(3, term=1), TableDriver(3, term=2)
    assert min(new.tasks) > max(old.tasks)
    old_lease, new_lease = (
        d.report("a", wanted=1, term=d.table.term).leases[0] for d in (old, new)
    )
    assert new_lease.epoch > old_lease.epoch and new_lease.term == 2


def test_a_result_is_returned_once_and_held_until_released() -> None:
    """A report may arrive twice; crops that are never dropped fill the memory of a reader."""
    driver = TableDriver(1)
    lease = driver.take("a")
    driver.report("a", done(lease))
    driver.report("a", done(lease))
    ((task, result),) = driver.table.results()
    assert task == lease.task and isinstance(result, ChunkHeader)
    assert driver.table.results() == [] and driver.table.counters.late.total() == 0
    assert driver.report("a", held=[task]).release == () and driver.table.holders([task]) == {
        task: "a"
    }
    driver.table.release([task])
    for _ in range(2):  # until the reader no longer names it
        assert driver.report("a", held=[task]).release == (task,)
    assert driver.report("a").release == () and driver.table.holders([task]) == {}


def test_a_lease_whose_answer_was_lost_is_sent_again() -> None:
    """The chunk would belong to no reader, and the stream would wait for ever."""
    driver = TableDriver(2)
    leases = driver.report("a", wanted=2).leases
    assert driver.report("a", wanted=2).leases == leases
    assert driver.report("a", has=leases).leases == ()


def test_leases_that_a_reader_neither_names_nor_wants_are_reissued() -> None:
    """A reader that leaves gives back the leases that it has not begun."""
    driver = TableDriver(2)
    first, second = driver.report("a", wanted=2).leases
    driver.report("a", has=[first])
    assert driver.table.counters.reissued == {"returned": 1}
    (again,) = driver.report("b", wanted=2).leases
    assert again.task == second.task and again.epoch > second.epoch
    assert driver.report("a", has=[first, second]).drop == ((second.task, again.epoch),)


def test_a_drained_reader_gets_no_lease_and_must_leave() -> None:
    """A node that is to be emptied must not begin anything."""
    driver = TableDriver(2)
    lease = driver.take("a")
    driver.table.drain("a")
    orders = driver.report("a", done(lease), wanted=4)
    assert orders.leave and orders.leases == () and orders.release == ()
    assert driver.report("b", wanted=1).leave is False


def test_leases_of_a_lost_reader_are_reissued_and_its_late_results_refused() -> None:
    """Crops of a dead reader cannot be fetched."""
    driver = TableDriver(2)
    first, second = driver.report("a", wanted=2).leases
    driver.report("a", done(first), has=[second])
    driver.table.results()
    driver.table.lost("a", driver.now)
    driver.table.lost("a", driver.now)
    assert driver.table.counters.recropped == 1 and driver.table.counters.reissued == {"died": 1}
    orders = driver.report("a", done(second), wanted=1)
    assert orders.leave and orders.leases == () and driver.table.results() == []
    assert driver.table.counters.late == {"gone": 1}
    again = driver.report("b", wanted=2).leases
    assert {lease.task for lease in again} == {first.task, second.task}
    driver.report("b", *map(done, again))
    assert [task for task, _ in driver.table.results()] == [second.task]  # the first was known
    assert driver.table.holders(driver.tasks) == {first.task: "b", second.task: "b"}


def test_a_result_for_another_control_is_refused() -> None:
    """Two Controls would both decide."""
    driver = TableDriver(1)
    orders = driver.report("a", FinishedLease(7, 7, header(turn(0))), wanted=1, term=2)
    assert orders == ReaderOrders(term=1) and driver.table.counters.late == {"term": 1}


def test_a_hanging_reader_expires_after_four_times_the_usual_time() -> None:
    """A decoder without end would stop the run."""
    driver = TableDriver(2, usual=1.0)
    leases = driver.report("a", wanted=2).leases
    driver.report("a", has=leases)
    driver.later(3.5)
    driver.report("a", has=leases)
    assert driver.table.expired(driver.now) == []
    driver.later(1.0)
    assert driver.table.expired(driver.now) == ["a"] and driver.table.silent(driver.now) == []
    driver.table.lost("a", driver.now, "hung")
    assert driver.table.counters.reissued == {"hung": 2}
    driver.die("b")  # the chunk that hung comes first again: its second death
    leases = driver.report("c", wanted=2).leases
    assert [lease.isolated for lease in leases] == [True, False]


def test_the_deadline_grows_with_the_size_of_the_chunk() -> None:
    """A compressed tar is one chunk: with the time of 16 MiB all its readers would be killed."""
    driver = TableDriver(usual=1.0)
    driver.table.add_task(Turn(Chunk(0, 0, 160 << 20), 0), SHARD)
    lease = driver.take("a")
    driver.later(39)
    assert driver.table.expired(driver.now) == []
    driver.report("a", has=[lease])
    driver.later(2)
    assert driver.table.expired(driver.now) == ["a"]


def test_a_reader_without_reports_is_silent_even_if_it_never_reported() -> None:
    """A stopped process, or a node beyond a broken switch, sends nothing."""
    driver = TableDriver()
    driver.table.expect("new", driver.now)
    driver.report("a")
    driver.later(3.5)
    driver.report("b")
    driver.later(1)
    assert driver.table.silent(driver.now) == ["new", "a"]


def test_a_pause_of_control_makes_no_reader_silent() -> None:
    """A Control that was stopped for a minute would kill every reader."""
    driver = TableDriver(1)
    lease = driver.take("a")
    driver.now += 60
    assert driver.table.silent(driver.now) == [] and driver.table.expired(driver.now) == []
    driver.later(2.5)
    assert driver.table.silent(driver.now) == ["a"]
    driver.report("a", has=[lease])
    assert driver.table.silent(driver.now) == []


def test_a_slow_chunk_is_hedged_and_only_the_first_result_counts() -> None:
    """One slow node must not delay the batch, and two results must not both count."""
    driver = TableDriver(2, usual=1.0)
    leases = driver.report("slow", wanted=2).leases
    driver.report("slow", has=leases)
    driver.later(2.5)
    assert driver.report("quick", wanted=1).leases == ()
    driver.later(1)
    (hedge,) = driver.report("quick", wanted=1).leases
    assert hedge.task == leases[0].task and hedge.epoch > leases[0].epoch
    (other,) = driver.report("third", wanted=1).leases
    assert other.task == leases[1].task  # it waits after the slow one
    assert driver.report("fourth", wanted=1).leases == ()  # two leases are enough
    driver.report("quick", done(hedge))
    assert driver.report("slow", done(leases[0]), has=leases[1:], held=[hedge.task]).release
    counters = driver.table.counters
    assert (counters.hedged, counters.hedges_won, counters.late["fenced"]) == (2, 1, 1)
    assert driver.table.holders([hedge.task]) == {hedge.task: "quick"} and counters.differing == 0


def test_a_lost_hedge_leaves_the_first_lease_valid() -> None:
    """The chunk would be leased a third time, in vain."""
    driver = TableDriver(1, usual=1.0)
    lease = driver.take("slow")
    driver.later(3.5)
    assert driver.report("quick", wanted=1).leases
    driver.table.lost("quick", driver.now)
    assert driver.report("new").leases == () and driver.table.snapshot(driver.now).num_waiting == 0
    driver.report("slow", done(lease))
    assert driver.table.holders([lease.task]) == {lease.task: "slow"}


def test_two_deaths_isolate_a_chunk_and_four_give_it_up() -> None:
    """An image that kills readers would kill all of them, one after the other."""
    driver = TableDriver(1)
    isolated = [driver.die(f"r{number}").isolated for number in range(4)]
    assert isolated == [False, False, True, True]
    ((task, error),) = driver.table.results()
    assert task == driver.tasks[0] and isinstance(error, ReadersLost)
    assert "4 readers died" in str(error) and "bytes 0-100 of file:///shard.tar" in str(error)
    assert driver.table.counters.given_up == 1 and driver.report("new", wanted=1).leases == ()


def test_waiting_chunks_and_those_of_a_reader_that_left_are_not_blamed() -> None:
    """Innocent chunks would be isolated, and a shrinking cluster would end the run."""
    driver = TableDriver(2)
    for number in range(5):
        leases = driver.report(f"r{number}", wanted=2).leases
        driver.report(f"r{number}", has=leases)
        driver.table.lost(f"r{number}", driver.now, "left")
    assert not any(lease.isolated for lease in driver.report("next", wanted=2).leases)
    for number in range(3):
        driver.table.lost("next" if number == 0 else f"s{number}", driver.now)
        leases = driver.report(f"s{number + 1}", wanted=2).leases
    assert [lease.isolated for lease in leases] == [True, False]


def test_missing_crops_are_made_again_once() -> None:
    """Two ranks may miss the same chunk; a late message must not take it from its new holder."""
    driver = TableDriver(1)
    lease = driver.take("a")
    driver.report("a", done(lease), held=[lease.task])
    for _ in range(2):
        driver.table.missing(lease.task, "a")
    assert driver.table.counters.recropped == 1
    orders = driver.report("a", wanted=1, held=[lease.task])
    assert orders.release == (lease.task,) and orders.leases == ()  # not while the reader names it
    (again,) = driver.report("a", wanted=1).leases
    driver.report("a", done(again))
    assert driver.table.holders([lease.task]) == {lease.task: "a"}
    driver.table.missing(lease.task, "b")
    assert driver.table.holders([lease.task]) == {lease.task: "a"}


def test_a_chunk_that_gives_other_samples_ends_the_run() -> None:
    """Ranks would train on other images than the journal says."""
    driver = TableDriver(1)
    lease = driver.take("a")
    driver.report("a", done(lease))
    assert len(driver.table.results()) == 1
    driver.table.lost("a", driver.now)
    again = driver.take("b")
    driver.report("b", done(again, offsets=header(again.turn).offsets + 512))
    ((task, error),) = driver.table.results()
    assert task == lease.task and isinstance(error, NotReproducible)
    assert "gave other samples" in str(error)


def test_a_differing_late_result_is_counted() -> None:
    """It is the first sign that nodes do not see the same data."""
    driver = TableDriver(1, usual=1.0)
    slow = driver.take("slow")
    driver.later(3.5)
    (hedge,) = driver.report("quick", wanted=1).leases
    driver.report("quick", done(hedge))
    driver.report("slow", done(slow, num_unselected=1))
    assert driver.table.counters.differing == 1


def test_an_error_of_the_data_decides_a_chunk() -> None:
    """An unreadable shard would be tried on every node first."""
    driver = TableDriver(1)
    lease = driver.take("a")
    error = ShardUnreadable("gone")
    driver.report("a", FinishedLease(lease.task, lease.epoch, None, error))
    assert driver.table.results() == [(lease.task, error)]
    assert driver.table.snapshot(driver.now).num_waiting == 0


def test_a_released_chunk_is_dropped_in_every_state() -> None:
    """A new sequencer would get results of the old one."""
    driver = TableDriver(3)
    first, second = driver.report("a", wanted=2).leases
    driver.report("a", done(first), has=[second])
    driver.table.forget_all()
    assert driver.table.results() == []
    orders = driver.report("a", has=[second], held=[first.task], wanted=2)
    assert orders.release == (first.task,) and orders.leases == ()
    assert [task for task, _ in orders.drop] == [second.task]
    new = driver.table.add_task(turn(0), SHARD)
    assert new > max(driver.tasks) and driver.take("b").task == new


def test_many_readers_report_less_often() -> None:
    """A thousand readers that report five times a second would use all time of Control."""
    driver = TableDriver()
    for number in range(1000):
        orders = driver.report(f"r{number}")
    assert orders.seconds == pytest.approx(2.0)
    driver.later(7)
    assert driver.table.silent(driver.now) == []  # their next report is due later


def test_a_snapshot_names_the_oldest_leases() -> None:
    """The user of a stalled run would not see which reader it waits for."""
    driver = TableDriver(3)
    first, second = driver.report("a", wanted=2).leases
    driver.report("a", has=[first, second])
    driver.later(2)
    driver.report("b", wanted=1)
    seen = driver.table.snapshot(driver.now)
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
def test_contradictory_limits_are_refused(wrong: dict[str, float]) -> None:
    """Every reader would be killed at once, or none ever."""
    with pytest.raises(ConfigError, match="must"):
        LeaseConfig(**wrong)
