"""Lives of trainers: real groups and hearts on threads, and the real `Membership` behind them."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
import torch

from cluster.errors import StateDiffers
from cluster.membership.failure_detector import MembershipConfig
from cluster.membership.membership import Membership
from cluster.protocol.actor_rpc import Unreachable
from cluster.protocol.learner import LearnerState, StopVote
from cluster.protocol.messages import Directive, HeartbeatMessage
from cluster.protocol.step_report import StepReport
from cluster.trainers.elastic_training import ElasticTrainer, TrainerConfig
from cluster.trainers.heartbeat import Heartbeat, HeartbeatConfig
from cluster.trainers.rendezvous import RendezvousStore
from shards.errors import StreamStopped
from shards.records import CropBatch
from tests.cluster.toy_learner import (
    BATCH,
    ToyLearner,
    made_batch,
    made_report,
    part,
    trained_alone,
)

PATIENCE = MembershipConfig(gather_seconds=20.0, settle_seconds=0.3, silence_seconds=20.0)
HEART = HeartbeatConfig(beat_seconds=0.1, orphan_seconds=20.0)


class Board:
    """`Membership`, the clock, and the one lock that Control would be."""

    def __init__(self, num_trainers: int, config: MembershipConfig = PATIENCE) -> None:
        self.table = Membership(1, BATCH, num_trainers, config)
        self.lock = threading.Lock()
        self.is_away = False
        self.records: list[StepReport] = []
        self._history = 0

    def beat(self, beat: HeartbeatMessage) -> Directive:
        with self.lock:
            if self.is_away:
                raise Unreachable("Control is away")
            answer = self.table.beat(beat, time.monotonic())
            since = self.records[-1].step if self.records else 0
            found = self.table.records(since, self._history)
            self._history = found.history
            self.records += found.records
            return answer

    def tell(self, method: str, *arguments: Any) -> None:
        with self.lock:
            getattr(self.table, method)(*arguments, time.monotonic())


class Rows:
    """Every rank's rows of made batches; they do not go beyond `limit` while that is set."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self._changed = threading.Condition()
        self._interrupted = False
        self._place = (0, 1)
        self._step = 0

    def enter(self, rank: int, world: int, step: int) -> None:
        with self._changed:
            self._place, self._step, self._interrupted = (rank, world), step, False

    def next(self) -> CropBatch:
        with self._changed:
            while self._interrupted or (self.limit is not None and self._step >= self.limit):
                if self._interrupted:
                    raise StreamStopped("interrupted")
                self._changed.wait(0.02)
            self._step += 1
            return part(made_batch(self._step - 1), *self._place)

    def interrupt(self) -> None:
        with self._changed:
            self._interrupted = True
            self._changed.notify_all()

    def close(self) -> None:
        self.interrupt()


class Shelf:
    """Keeps states, and gives the newest to who starts with none."""

    def __init__(self) -> None:
        self.kept: list[LearnerState] = []

    def first(self) -> LearnerState | None:
        return self.kept[-1] if self.kept else None

    def keep(self, state: LearnerState) -> None:
        self.kept.append(state)

    def flush(self) -> None:
        """It is safe at once."""


class Hand:
    """One trainer on a thread; `hang` holds its training thread in its next step."""

    def __init__(self, name: str, board: Board, shelf: Shelf, num_steps: int) -> None:
        self.name, self.board, self.rows = name, board, Rows()
        self.end: Future[None] = Future()
        self.dead = False
        self.wait_in_step = threading.Event()
        self.wait_in_step.set()
        self.learners: list[ToyLearner] = []
        door = RendezvousStore("127.0.0.1")
        first = HeartbeatMessage(
            member=name,
            term=0,
            phase="starting",
            generation=0,
            committed=-1,
            address=door.address,
        )
        self.heartbeat = Heartbeat(self._speak, first, HEART)
        config = TrainerConfig(
            num_steps=num_steps, save_every=10, sync_check_every=7, backend="gloo", heartbeat=HEART
        )
        self.training = ElasticTrainer(self._build, self.rows, shelf, self.heartbeat, door, config)
        threading.Thread(target=self._run, daemon=True).start()

    @property
    def learner(self) -> ToyLearner:
        return self.learners[-1]

    def _build(self) -> ToyLearner:
        learner = ToyLearner()
        step = learner.train_step

        def held(batch: CropBatch, wish: StopVote) -> Any:
            self.wait_in_step.wait(50)
            return step(batch, wish)

        learner.train_step = held  # type: ignore[method-assign]
        self.learners.append(learner)
        return learner

    def _speak(self, beat: HeartbeatMessage) -> Directive:
        if self.dead:
            raise Unreachable("the dead do not speak")
        return self.board.beat(beat)

    def _run(self) -> None:
        try:
            with self.heartbeat:
                self.training.run()
        except BaseException as error:
            self.end.set_exception(error)
        else:
            self.end.set_result(None)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that must happen."""
    deadline = time.monotonic() + 40
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def reached(hands: list[Hand], step: int) -> Callable[[], bool]:
    return lambda: all(hand.learners and hand.learner.step >= step for hand in hands)


def check_end(board: Board, hands: list[Hand], num_steps: int) -> None:
    """All hold what an undisturbed learner holds, and every step was reported once, in order."""
    for hand in hands:
        hand.end.result(timeout=40)
    expected = trained_alone(num_steps)
    for hand in hands:
        torch.testing.assert_close(hand.learner.weights, expected.weights, rtol=1e-12, atol=0)
    assert len({hand.learner.digest() for hand in hands}) == 1
    assert [record.step for record in board.records] == list(range(1, num_steps + 1))
    digests = [record.digest for record in board.records]
    assert digests == [made_batch(step).digest for step in range(num_steps)]


def start(num: int, num_steps: int, limit: int | None = None) -> tuple[Board, Shelf, list[Hand]]:
    board, shelf = Board(num), Shelf()
    hands = [Hand(f"t{place}", board, shelf, num_steps) for place in range(num)]
    for hand in hands:
        hand.rows.limit = limit
    return board, shelf, hands


@pytest.mark.parametrize("num_trainers", [1, 3])
def test_trainers_train_to_the_end_and_leave(num_trainers: int) -> None:
    """The last state is kept before anybody leaves; checkpoints are those of rank 0 alone."""
    board, shelf, hands = start(num_trainers, 25)
    check_end(board, hands, 25)
    assert [state.step for state in shelf.kept] == [10, 20, 25]
    assert board.table.is_finished


def test_a_trainer_that_is_lost_costs_one_step_at_most() -> None:
    """Survivors go on in a world that fits, and nothing is trained twice or left out."""
    board, _, hands = start(3, 60, limit=20)
    until(reached(hands, 20), "all train")
    lost = hands[1]
    lost.dead = True
    began = time.monotonic()
    board.tell("lost", lost.name, "killed")
    survivors = [hands[0], hands[2]]
    for hand in survivors:
        hand.rows.limit = None
    until(reached(survivors, 21), "they go on")
    assert time.monotonic() - began < 10
    check_end(board, survivors, 60)
    assert board.table.num_generations == 2


def test_who_hangs_in_a_step_holds_nobody_up_for_ever() -> None:
    """Its peers wait in a sum that it will never join; they are told, and roll back."""
    board, _, hands = start(3, 60, limit=15)
    until(reached(hands, 15), "all train")
    hanging = hands[2]
    hanging.wait_in_step.clear()
    for hand in hands:
        hand.rows.limit = None
    others = hands[:2]
    until(lambda: all(hand.heartbeat.doing == "peers" for hand in others), "they wait for it")
    board.tell("lost", hanging.name, "it hangs")
    check_end(board, others, 60)
    assert hanging.learner.step == 15
    hanging.wait_in_step.set()  # the zombie finds its generation over, and leaves
    hanging.end.result(timeout=40)


def test_a_newcomer_joins_at_a_step_and_takes_over_the_state() -> None:
    """All part after the same step: no step is lost by it."""
    board, shelf = Board(2, replace(PATIENCE, gather_seconds=0.2)), Shelf()
    first = Hand("t0", board, shelf, 80)
    first.rows.limit = 30
    until(reached([first], 20), "it trains alone")
    second = Hand("t1", board, shelf, 80)
    until(lambda: first.heartbeat.vote is StopVote.REGROUP, "it is heard of")
    first.rows.limit = None
    check_end(board, [first, second], 80)
    assert not [event for event in board.table.events if "is over" in event.what]


def test_a_trainer_whose_node_will_go_leaves_without_a_break() -> None:
    """The others go on from the very next step."""
    board, _, hands = start(2, 60, limit=20)
    until(reached(hands, 20), "all train")
    board.tell("draining", "t0")
    until(lambda: hands[1].heartbeat.vote is StopVote.REGROUP, "they hear of it")
    for hand in hands:
        hand.rows.limit = None
    hands[0].end.result(timeout=40)
    check_end(board, hands[1:], 60)
    assert not [event for event in board.table.events if "is over" in event.what]


def test_a_stop_ends_all_after_the_same_step_with_the_state_kept() -> None:
    """What was trained so far is not lost."""
    board, shelf, hands = start(2, 1000, limit=23)
    until(reached(hands, 23), "all train")
    board.tell("stop")
    until(lambda: hands[1].heartbeat.vote is StopVote.STOP, "they hear of it")
    for hand in hands:
        hand.rows.limit = None
    for hand in hands:
        hand.end.result(timeout=40)
    steps = {hand.learner.step for hand in hands}
    assert len(steps) == 1 and shelf.kept[-1].step == steps.pop() < 1000


def test_training_goes_on_while_control_is_away_and_under_its_successor() -> None:
    """Reports are kept; the new one, with a higher term, gathers everybody where they are."""
    board, _, hands = start(2, 120, limit=20)
    until(reached(hands, 20), "all train")
    board.is_away = True
    for hand in hands:
        hand.rows.limit = 50
    until(reached(hands, 50), "nobody needs Control for a step")
    with board.lock:
        board.table, board._history = Membership(2, BATCH, 2, PATIENCE), 0
        board.is_away = False
    until(lambda: board.table.is_running, "the new one has a generation")
    for hand in hands:
        hand.rows.limit = None
    check_end(board, hands, 120)


def test_who_is_lost_by_all_gives_itself_up() -> None:
    """An orphan would keep a GPU for ever."""
    board, _, hands = start(1, 1000, limit=5)
    until(reached(hands, 5), "it trains")
    hands[0].heartbeat._config = replace(HEART, orphan_seconds=0.5)
    board.is_away = True
    with pytest.raises(Unreachable, match="nobody answered this trainer"):
        hands[0].end.result(timeout=40)


def test_states_that_drift_apart_end_the_run() -> None:
    """At the next comparison, on all ranks, with the step in the sentence."""
    _, _, hands = start(2, 100, limit=14)
    until(reached(hands, 14), "all train")
    hands[1].learner.weights += 1e-9
    for hand in hands:
        hand.rows.limit = None
    for hand in hands:
        with pytest.raises(StateDiffers, match="after step 21 the 2 trainers do not hold the same"):
            hand.end.result(timeout=40)


def test_a_run_begins_with_the_state_that_was_kept() -> None:
    """One rank reads it, the others get it from that one."""
    board, shelf = Board(2), Shelf()
    shelf.kept.append(trained_alone(40).state())
    board.table.restore(40, trained_alone(40).cursor)
    hands = [Hand(f"t{place}", board, shelf, 60) for place in range(2)]
    board.records.append(made_report(40))
    for hand in hands:
        hand.end.result(timeout=40)
    assert {hand.learner.digest() for hand in hands} == {hands[0].learner.digest()}
    expected = trained_alone(60)
    torch.testing.assert_close(hands[1].learner.weights, expected.weights, rtol=1e-12, atol=0)
    assert [record.step for record in board.records] == list(range(40, 61))
