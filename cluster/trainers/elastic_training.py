"""The life of a trainer: it waits to be called, joins a generation, trains, and outlives it.

    ready    -- called --> joining: meet the others, take over the newest state, compare digests
    joining  ------------> running: rows, step, commit, until a wish, the last step, or a break
    running  -- a peer is lost, or Control says so --> broken: the step under way is undone
    running  -- all part after the same step --------> ready, or left

It knows neither Ray nor what is learned; what it talks to is handed in.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch

from cluster.protocol.learner import Batches, BuildLearner, LearnerState, Wish
from cluster.protocol.messages import Directive
from cluster.protocol.metric import Key
from cluster.trainers.heartbeat import Pulse, PulseConfig
from cluster.trainers.rendezvous import Backend, Door, GenerationOver, Place, Ranks
from cluster.trainers.state_transfer import agree, check_same
from shards.errors import StreamStopped


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainerConfig:
    """What a trainer must know besides its learner.

    `sync_check_every` steps all ranks compare their states. `num_threads` of torch; None leaves it
    alone. `collective_seconds`: how long an operation that everybody has given up may linger.
    """

    num_steps: int
    save_every: int
    sync_check_every: int = 100
    num_threads: int | None = None
    backend: Literal["auto", "gloo", "nccl"] = "auto"
    connect_seconds: float = 20.0
    collective_seconds: float = 1800.0
    pulse: PulseConfig = field(default_factory=PulseConfig)


class Keeper(Protocol):
    """Who keeps states safe, and has the one to begin with."""

    def first(self) -> LearnerState | None:
        """The state that counts when no trainer has one; None: what the learner is built as."""

    def keep(self, state: LearnerState) -> None:
        """Take this state, in the background."""

    def flush(self) -> None:
        """Return when everything that was to be kept is safe."""


class Training:
    """One trainer, on the thread that calls `run`. `door` is where others find it as rank 0.

    `counts`: where its own time went, by key, since it started; any thread may copy it.
    """

    def __init__(
        self,
        build: BuildLearner,
        batches: Batches,
        keeper: Keeper,
        pulse: Pulse,
        door: Door,
        config: TrainerConfig,
    ) -> None:
        self._build, self._batches, self._keeper = build, batches, keeper
        self._pulse, self._door, self._config = pulse, door, config
        self.counts: dict[Key, float] = {}
        self._rank, self._kept_step = 0, -1
        self._keep_seconds = 0.0  # that copies for checkpoints took since the last report

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Train until Control says that it is enough, or the last step is done.

        `on_ready` is called when the learner is built. What it raises is no loss of a peer: either
        nobody could go on, or this process cannot.
        """
        if self._config.num_threads is not None:
            torch.set_num_threads(self._config.num_threads)
        self._learner = self._build()
        on_ready()
        self._pulse.say("ready")
        wish = Wish.GO_ON
        while wish is not Wish.STOP:
            called = self._pulse.await_call()
            if called is None:
                self._hand_in()
                break
            wish = self._take_part(called)
        self._pulse.say("left")

    def _take_part(self, called: Directive) -> Wish:
        """One generation; why it ended: GO_ON is a break."""
        self._pulse.enter(called.generation)
        ranks: Ranks | None = None
        try:
            ranks = self._join(called)
            self._pulse.interrupt = self._interrupter(ranks)
            self._pulse.check()
            self._take_over(called, ranks)
            self._learner.enter(ranks)
            self._batches.enter(self._rank, len(called.members), self._learner.step)
            self._pulse.say("running")
            wish = self._train(ranks)
        except (GenerationOver, StreamStopped, RuntimeError) as error:
            # What a device reports of an operation that was cut short can be anything.
            if isinstance(error, RuntimeError) and not self._pulse.is_over:
                raise
            self._learner.rollback()
            self._pulse.say("broken", str(error) or type(error).__name__)
            return Wish.GO_ON
        finally:
            self._pulse.doing = ""
            self._learner.enter(None)
            if ranks is not None:
                ranks.close()
        if wish is Wish.REGROUP:
            self._pulse.say("ready")
        return wish

    def _join(self, called: Directive) -> Ranks | None:
        """Meet the others; a rank that is alone has nobody to meet."""
        self._rank, world = called.members.index(self._pulse.member), len(called.members)
        if world == 1:
            return None
        address = self._door.address
        if self._rank > 0:
            address = self._pulse.await_address(called.generation)
        return Ranks.join(
            Place(called.generation, self._rank, world, address),
            self._pulse,
            host=self._door.host,
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

    def _take_over(self, called: Directive, ranks: Ranks | None) -> None:
        """Hold the state that counts: that of the newest member, or what was kept."""
        source = called.members.index(called.source) if called.source else 0
        if not called.source and self._rank == source:
            self._start_over()
        if ranks is not None:
            inherited = agree(ranks, self._learner, source, self._pulse.records)
            if inherited is not None and self._rank != source:
                self._pulse.inherit(inherited)
        if self._kept_step != self._learner.step:
            self._kept_step = -1  # steps may be trained again, and are then kept again
        self._pulse.hold(self._learner)

    def _start_over(self) -> None:
        kept = self._keeper.first()
        if kept is not None:
            self._learner.load(kept)
        elif self._learner.step > 0:
            self._learner = self._build()

    def _train(self, ranks: Ranks | None) -> Wish:
        """Step after step; the wish with which all ranks part."""
        wish = Wish.GO_ON
        while wish is Wish.GO_ON and self._learner.step < self._config.num_steps:
            wish = self._step()
            self._after_step(ranks)
        if self._learner.step >= self._config.num_steps:
            wish = Wish.STOP
        if wish is Wish.STOP:
            self._part(ranks)
        return wish

    def _step(self) -> Wish:
        pulse = self._pulse
        pulse.check()
        asked = time.monotonic()
        pulse.doing = "data"
        batch = self._batches.next()
        began = time.monotonic()
        pulse.doing = "step"
        record, wish = self._learner.train_step(batch, pulse.wish)
        step_seconds, wait_seconds = time.monotonic() - began, began - asked
        phases: Any = record.fields.get("phase_seconds", {})
        times: dict[str, Any] = {
            "step_seconds": round(step_seconds, 4),
            "data_wait_seconds": round(wait_seconds, 4),
            "phase_seconds": {**phases, "checkpoint": round(self._keep_seconds, 4)},
        }
        self._keep_seconds = 0.0
        record = replace(record, fields={**record.fields, **times})
        self._count(record.step, {**times["phase_seconds"], "input_wait": wait_seconds})
        pulse.finished(record, step_seconds, wait_seconds)
        return wish

    def _count(self, step: int, phase_seconds: Mapping[str, float]) -> None:
        self.counts["train_step",] = step
        for phase, seconds in phase_seconds.items():
            key = ("step_phase_seconds", phase)
            self.counts[key] = self.counts.get(key, 0.0) + seconds

    def _after_step(self, ranks: Ranks | None) -> None:
        step, config = self._learner.step, self._config
        if self._rank == 0 and step % config.save_every == 0:
            self._keep()
        if ranks is not None and step % config.sync_check_every == 0:
            check_same(ranks, self._learner)

    def _keep(self) -> None:
        if self._kept_step != self._learner.step:
            # Copying takes time in which nobody hangs.
            self._pulse.doing = ""
            began = time.monotonic()
            self._keeper.keep(self._learner.state())
            self._kept_step = self._learner.step
            self._keep_seconds += time.monotonic() - began

    def _part(self, ranks: Ranks | None) -> None:
        """The last state is safe before anybody leaves: until then each can stand in for rank 0."""
        self._pulse.doing = ""
        if self._rank == 0:
            self._keep()
            self._keeper.flush()
        if ranks is not None:
            check_same(ranks, self._learner)

    def _hand_in(self) -> None:
        """All stop, and no generation is there to do it together."""
        if self._pulse.wish is Wish.STOP and self._rank <= 1 and self._learner.step > 0:
            self._keep()
            self._keeper.flush()
