"""ElasticTrainer: the life of a trainer, from one generation to the next.

    ready    -- chosen by Control --> joining: meet the other ranks, receive the newest state
    joining  -----------------------> running: the training loop
    running  -- a peer is lost, or Control ends the generation --> broken: the step is undone
    running  -- all ranks leave after the same step -------------> ready, or left

It knows neither Ray nor the learner: its partners are arguments.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from cluster.protocol.learner import Batches, BuildLearner, Learner, LearnerState, StopVote
from cluster.protocol.messages import Directive, Doing
from cluster.protocol.step_report import StepReport
from cluster.trainers.heartbeat import Heartbeat, HeartbeatConfig
from cluster.trainers.rendezvous import Backend, GenerationOver, RankInfo, Ranks, RendezvousStore
from cluster.trainers.state_transfer import check_same, transfer_state
from cluster.trainers.training_loop import TrainingLoop
from shards.errors import StreamStopped
from shards.metric import Key


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerConfig:
    """Settings of a trainer beside those of its learner.

    Every `sync_check_every` steps all ranks compare their states. `num_threads` of torch; None
    leaves it alone. An abandoned collective may linger for `collective_seconds`.
    """

    num_steps: int
    save_every: int
    sync_check_every: int = 100
    num_threads: int | None = None
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    connect_seconds: float = 20.0
    collective_seconds: float = 1800.0
    heartbeat: HeartbeatConfig = field(default_factory=HeartbeatConfig)


class StateStore(Protocol):
    """The place of checkpoints, outside of the trainers."""

    def first(self) -> LearnerState | None:
        """Return the state to begin with when no trainer has one; None: that of a new learner."""

    def keep(self, state: LearnerState) -> None:
        """Save this state, in the background."""

    def flush(self) -> None:
        """Return when every state is saved."""


class ElasticTrainer:
    """One trainer, on the thread that calls `run`. Other ranks find its rank 0 at `store`.

    `counts`: the time that it spent, by key, since it started; any thread may copy it.
    """

    def __init__(
        self,
        build: BuildLearner,
        batches: Batches,
        states: StateStore,
        heartbeat: Heartbeat,
        store: RendezvousStore,
        config: TrainerConfig,
    ) -> None:
        self._build, self._batches, self._states = build, batches, states
        self._heartbeat, self._store, self._config = heartbeat, store, config
        self.counts: dict[Key, float] = {}
        self._rank = 0
        self._loop = TrainingLoop(config.num_steps, config.save_every, states.keep)

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Train until the last step, or until Control ends it.

        `on_ready` is called when the learner is built. A lost peer raises nothing: an error of
        this method means that this process, or every process, cannot go on.
        """
        if self._config.num_threads is not None:
            torch.set_num_threads(self._config.num_threads)
        self._learner = self._new_learner()
        on_ready()
        self._heartbeat.report("ready")
        vote = StopVote.CONTINUE
        while vote is not StopVote.STOP:
            directive = self._heartbeat.await_generation()
            if directive is None:
                self._save_alone()
                break
            vote = self._take_part(directive)
        self._heartbeat.report("left")

    def _take_part(self, directive: Directive) -> StopVote:
        """Train in one generation; return the vote that ended it, or CONTINUE after a break."""
        self._heartbeat.join(directive.generation)
        ranks: Ranks | None = None
        try:
            ranks = self._join(directive)
            self._heartbeat.interrupt = self._interrupter(ranks)
            self._heartbeat.check()
            self._receive_state(directive, ranks)
            self._learner.enter(ranks)
            self._batches.enter(self._rank, len(directive.members), self._learner.step)
            self._heartbeat.report("running")
            vote = self._train(ranks)
        except (GenerationOver, StreamStopped, RuntimeError) as error:
            # A device may report an interrupted operation by any RuntimeError.
            if isinstance(error, RuntimeError) and not self._heartbeat.is_over:
                raise
            self._learner.rollback()
            self._heartbeat.report("broken", str(error) or type(error).__name__)
            return StopVote.CONTINUE
        finally:
            self._heartbeat.doing = ""
            self._learner.enter(None)
            if ranks is not None:
                ranks.close()
        if vote is StopVote.REGROUP:
            self._heartbeat.report("ready")
        return vote

    def _join(self, directive: Directive) -> Ranks | None:
        """Meet the other ranks; None for a rank that is alone."""
        self._rank = directive.members.index(self._heartbeat.member)
        world = len(directive.members)
        if world == 1:
            return None
        address = self._store.address
        if self._rank > 0:
            address = self._heartbeat.await_address(directive.generation)
        return Ranks.join(
            RankInfo(directive.generation, self._rank, world, address),
            self._heartbeat,
            host=self._store.host,
            kind=self._backend(),
            connect_seconds=self._config.connect_seconds,
            collective_seconds=self._config.collective_seconds,
        )

    def _backend(self) -> Backend:
        if self._config.backend != "auto":
            return self._config.backend
        return "nccl" if torch.cuda.is_available() else "gloo"

    def _interrupter(self, ranks: Ranks | None) -> Callable[[], None]:
        def interrupt() -> None:
            self._batches.interrupt()
            if ranks is not None:
                ranks.abort()

        return interrupt

    def _receive_state(self, directive: Directive, ranks: Ranks | None) -> None:
        """Hold the state of the generation: that of the newest member, or the saved one."""
        source = directive.members.index(directive.source) if directive.source else 0
        if not directive.source and self._rank == source:
            self._load_saved()
        if ranks is not None:
            received = transfer_state(ranks, self._learner, source, self._heartbeat.reports)
            if received is not None and self._rank != source:
                self._heartbeat.take_reports(received)
        if self._loop.saved_step != self._learner.step:
            self._loop.saved_step = -1  # steps may be trained again, and are then saved again
        self._heartbeat.hold_state(self._learner)

    def _load_saved(self) -> None:
        saved = self._states.first()
        if saved is not None:
            self._learner.load(saved)
        elif self._learner.step > 0:
            self._learner = self._new_learner()

    def _new_learner(self) -> Learner:
        learner = self._build()
        learner.look_ahead(self._batches.peek)
        return learner

    def _train(self, ranks: Ranks | None) -> StopVote:
        control = _RankControl(self._heartbeat, self.counts, lambda: self._check_sync(ranks))
        vote = self._loop.run(self._learner, self._batches.next, control, rank=self._rank)
        if vote is StopVote.STOP:
            # Nobody leaves before the last state is safe: until then any rank can replace rank 0.
            self._heartbeat.doing = ""
            if self._rank == 0:
                self._states.flush()
            if ranks is not None:
                check_same(ranks, self._learner)
        return vote

    def _save_alone(self) -> None:
        """Save the state when all stop and no generation is left to do it together."""
        is_stop = self._heartbeat.vote is StopVote.STOP
        if is_stop and self._rank <= 1 and self._learner.step > 0:
            self._loop.save(self._learner)
            self._states.flush()

    def _check_sync(self, ranks: Ranks | None) -> None:
        """Compare the states of all ranks, now and then. Raises StateDiffers."""
        if ranks is not None and self._learner.step % self._config.sync_check_every == 0:
            check_same(ranks, self._learner)


class _RankControl:
    """The `LoopControl` of one rank: its heartbeat, its counts, and the check of its state."""

    def __init__(
        self, heartbeat: Heartbeat, counts: dict[Key, float], check_sync: Callable[[], None]
    ) -> None:
        self._heartbeat, self._counts, self._check_sync = heartbeat, counts, check_sync

    @property
    def doing(self) -> Doing:
        return self._heartbeat.doing

    @doing.setter
    def doing(self, doing: Doing) -> None:
        self._heartbeat.doing = doing

    def check(self) -> None:
        self._heartbeat.check()

    @property
    def vote(self) -> StopVote:
        return self._heartbeat.vote

    def finished(self, report: StepReport) -> None:
        self._counts["train_step",] = report.step
        phases = {**report.phase_seconds, "input_wait": report.data_wait_seconds}
        for phase, seconds in phases.items():
            key = ("step_phase_seconds", phase)
            self._counts[key] = self._counts.get(key, 0.0) + seconds
        self._heartbeat.finished(report)

    def after_step(self) -> StopVote:
        self._check_sync()
        return StopVote.CONTINUE
