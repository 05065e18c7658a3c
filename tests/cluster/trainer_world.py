"""A simulated world around `Membership`: trainers die, freeze, hang and lose messages.

Trainers follow `HeartbeatMessage` and `Directive`. A step is a collective: it ends when all members
of the generation are in it, and then every member finishes it on its own. Each method asserts the
rules that it could break.
"""

import random

from cluster.membership.failure_detector import MembershipConfig
from cluster.membership.membership import GENERATIONS_PER_TERM, Membership
from cluster.protocol.messages import Directive, HeartbeatMessage
from cluster.protocol.step_report import StepReport
from shards.records import Cursor

TICK = 0.25
CONFIG = MembershipConfig(
    silence_seconds=2.0,
    hang_seconds=3.0,
    lone_seconds=6.0,
    build_seconds=5.0,
    join_seconds=6.0,
    gather_seconds=4.0,
    settle_seconds=1.0,
)


def cursor(step):
    return Cursor(manifest="m", order="o", slot=step)


def made_report(step):
    return StepReport(step=step, cursor=cursor(step), digest="", loss=0.0, lr=0.0, num_samples=12)


class Trainer:
    """One process: `World.tick` advances its training thread and its heartbeat thread."""

    def __init__(self, name, now):
        self.name, self.ready_at = name, now + 0.5
        self.phase, self.term, self.generation, self.committed = "starting", 0, 0, -1
        self.members, self.source, self.address = (), "", ""
        self.regroup = self.leaving = self.stop = False
        self.doing, self.reports = "", {}
        self.frozen_until, self.hung, self.alive, self.draining = 0.0, False, True, False
        self.expelled, self.over_since = False, 0.0
        self.trained, self.directive = 0, Directive(term=0)

    def beat(self, now):
        """Return the message to send; after a while `broken` for a step that will be undone."""
        is_over = self.phase in ("joining", "running") and self.directive.over >= self.generation
        self.over_since = (self.over_since or now) if is_over else 0.0
        gives_up = is_over and now - self.over_since >= 1.0
        return HeartbeatMessage(
            member=self.name,
            term=self.term,
            phase="broken" if gives_up else self.phase,
            generation=self.generation,
            committed=self.committed,
            cursor=cursor(self.committed) if self.committed >= 0 else None,
            address=f"{self.name}:1" if self.members[:1] == (self.name,) else "",
            reports=tuple(self.reports[step] for step in sorted(self.reports)),
            doing=self.doing,
        )

    def receive(self, directive):
        """Take a directive; only the training thread changes the phase."""
        if directive.term < self.term:
            return
        self.term, self.directive = directive.term, directive
        self.stop |= directive.stop
        self.leaving |= directive.leave
        self.reports = {n: r for n, r in self.reports.items() if n > directive.acknowledged}
        if directive.generation == self.generation:
            self.regroup |= directive.regroup
            self.address = directive.address or self.address

    def follow(self):
        """Follow the directive, in the training thread."""
        directive = self.directive
        if self.phase in ("joining", "running") and directive.over >= self.generation:
            self.phase, self.doing = "broken", ""
        if directive.generation > self.generation and self.phase in ("ready", "broken"):
            assert self.name in directive.members
            self.phase, self.generation = "joining", directive.generation
            self.members, self.source = directive.members, directive.source
            self.address = directive.address
            self.regroup, self.doing = False, ""


class World:
    """Trainers, a Control that may die, and a driver with the log and a checkpoint."""

    def __init__(self, seed, *, batch=12, wanted=3, num_steps=30, loss=0.0, control_dies=0.0):
        self.random = random.Random(seed)
        self.batch, self.wanted, self.num_steps = batch, wanted, num_steps
        self.loss, self.control_dies = loss, control_dies
        self.now, self.term, self.trainers, self.num_made = 0.0, 0, {}, 0
        self.kept, self.log, self.history, self.released = 0, 0, 0, -1
        self.killed, self.known, self.late, self.max_generation = [], {}, [], 0
        self.num_rewinds = 0
        self.starts = {}
        self.finished = False
        self.new_control()
        for _ in range(wanted):
            self.add()

    def new_control(self):
        self.term += 1
        self.control = Membership(self.term, self.batch, self.wanted, CONFIG)
        self.control.restore(self.kept, cursor(self.kept))
        self.control_back, self.released = 0.0, -1

    def add(self):
        self.num_made += 1
        name = f"t{self.num_made}"
        self.trainers[name] = Trainer(name, self.now)
        return name

    def tick(self):
        self.now += TICK
        trainers = [t for t in self.trainers.values() if t.alive and t.frozen_until <= self.now]
        self.random.shuffle(trainers)
        for trainer in trainers:
            if not trainer.hung:
                self.train(trainer)
        if self.now < self.control_back:
            return
        for trainer in trainers:
            self.exchange(trainer)
        for name, trainer in list(self.trainers.items()):
            if not trainer.alive and self.random.random() < 0.7:
                self.control.lost(name, "its process ended", self.now)
                del self.trainers[name]
        for name in self.control.silent(self.now):
            self.kill(name)
        assert not self.control.gave_up, self.story()
        self.check()
        self.drive()

    def kill(self, name):
        """Kill a process; an unreachable one becomes a zombie."""
        self.control.lost(name, "silent", self.now)
        trainer = self.trainers.get(name)
        if trainer is None:
            return  # dead: only a late message of it reached this Control
        self.killed.append(trainer)
        if trainer.frozen_until > self.now:
            trainer.expelled = True
        else:
            del self.trainers[name]

    def exchange(self, trainer):
        beat = trainer.beat(self.now)
        if self.random.random() < self.loss:
            self.late.append(beat)
            return
        directive = self.control.beat(beat, self.now)
        if self.control.generation is not None:
            self.starts[self.control.generation.number] = self.control.generation.start
        if self.late and self.random.random() < 0.5:
            self.control.beat(self.late.pop(0), self.now)  # a message that was delayed
        if self.random.random() >= self.loss:
            trainer.receive(directive)
            if trainer.leaving or (trainer.stop and trainer.phase in ("ready", "broken")):
                self.leave(trainer)

    def leave(self, trainer):
        trainer.alive = False
        if trainer.phase != "left":
            trainer.phase = "left"
            self.control.beat(trainer.beat(self.now), self.now)

    def train(self, me):
        me.follow()
        peers = [self.trainers.get(name) for name in me.members]
        if me.phase == "starting":
            me.phase = "ready" if self.now >= me.ready_at else "starting"
        elif me.phase == "joining":
            if any(peer is not None and not peer.alive for peer in peers):
                me.phase = "broken"
            elif all(self.meets(me, peer) for peer in peers):
                self.transfer(me)
        elif me.phase == "running":
            if any(peer is not None and not peer.alive for peer in peers):
                me.phase, me.doing = "broken", ""
            elif me.doing == "peers" and all(self.arrived(me, peer) for peer in peers):
                self.finish(me)
            elif me.doing == "step" and self.random.random() < 0.8:
                me.doing = "peers"

    def meets(self, me, peer):
        """Return True if this peer joins the same generation."""
        return peer is not None and peer.generation == me.generation and bool(me.address)

    def transfer(self, me):
        start = self.starts[me.generation]
        if me.source == "":
            me.committed = self.kept
        elif me.name == me.source:
            assert me.committed == start
        else:
            assert self.trainers[me.source].committed >= start
            me.committed = start
        me.phase, me.doing = "running", "step"

    def arrived(self, me, peer):
        if peer is None or peer.generation != me.generation or peer.phase in ("joining", "broken"):
            return False
        return peer.committed > me.committed or (
            peer.committed == me.committed and peer.doing == "peers"
        )

    def finish(self, me):
        """End a step after its collective, with the vote that all ranks share."""
        peers = [self.trainers[name] for name in me.members]
        key = me.generation, me.committed
        flag = self.known.setdefault(key, any(p.regroup or p.stop for p in peers))
        current = self.control.generation
        if current is not None and me.generation == current.number:
            assert me.committed >= current.start
        me.committed += 1
        me.trained += 1
        me.reports[me.committed] = made_report(me.committed)
        if me.committed >= self.num_steps:
            me.phase, me.doing = "left", ""
        elif flag:
            me.phase, me.doing = "ready", ""
        else:
            me.doing = "step"

    def check(self):
        """Check what must hold for every decision of Control."""
        generation = self.control.generation
        if generation is None:
            return
        assert self.batch % len(generation.members) == 0
        assert len(generation.members) <= max(self.wanted, 2)
        if generation.number > self.max_generation:
            self.max_generation = generation.number
            assert generation.number // GENERATIONS_PER_TERM == self.term
            # A released step is needed again only if all trainers beyond it are lost.
            beyond = [
                t for t in self.trainers.values() if t.alive and t.name in self.control.members
            ]
            if generation.source and generation.start < self.released:
                assert all(t.committed <= generation.start for t in beyond)
            self.released = generation.start
        self.released = max(self.released, self.control.min_committed)

    def drive(self):
        """Act as the driver: take reports, and save a state regularly."""
        records = self.control.records(self.log, self.history)
        if records.history != self.history:
            self.history, self.log = records.history, records.start
            self.num_rewinds += 1
        assert records.start <= self.log
        for record in records.records:
            if record.step > self.log:
                assert record.step == self.log + 1 or self.control.num_records_lost
                self.log = record.step
        if self.log // 8 * 8 > self.kept and self.control.is_running:
            self.kept = min(self.log // 8 * 8, self.control.min_committed)
            self.control.restore(self.kept, cursor(self.kept))
        self.finished = self.control.is_finished and self.log >= self.num_steps

    def disturb(self):
        """Cause a random failure, or add a trainer."""
        alive = [t for t in self.trainers.values() if t.alive and t.phase != "left"]
        what = self.random.choice(("kill", "kill", "freeze", "hang", "add", "drain", "control"))
        if what == "add" or not alive:
            self.add()
        elif what == "control":
            if self.random.random() < self.control_dies:
                self.new_control()
                self.control_back = self.now + self.random.uniform(0, 3)
        else:
            victim = self.random.choice(alive)
            if what == "kill":
                victim.alive = False
            elif what == "freeze":
                victim.frozen_until = self.now + self.random.uniform(0.5, 8)
            elif what == "hang":
                victim.hung = True
            else:
                victim.draining = True
                self.control.draining(victim.name, self.now)

    def replace_lost(self):
        """Replace lost trainers, as the restart policy does."""
        useful = [
            trainer
            for trainer in self.trainers.values()
            if trainer.alive
            and trainer.phase != "left"
            and not (trainer.draining or trainer.expelled)
        ]
        for _ in range(self.wanted - len(useful)):
            self.add()

    def play(self, *, disturb_until, timeout=120.0, chance=0.08):
        """Disturb for a while, then run to the last step."""
        while not self.finished:
            if self.now < disturb_until and self.random.random() < chance:
                self.disturb()
            if self.now >= disturb_until or self.random.random() < 0.2:
                self.replace_lost()
            self.tick()
            assert self.now < disturb_until + timeout, self.story()
        return self

    def story(self):
        lines = [f"{event.at:7.2f} {event.what} ({event.why})" for event in self.control.events]
        states = [
            f"{t.name} {t.phase} {t.generation % GENERATIONS_PER_TERM} {t.committed} {t.doing} "
            f"alive {t.alive} hung {t.hung} frozen {t.frozen_until}"
            for t in self.trainers.values()
        ]
        return "\n".join([*lines[-30:], *states, f"log {self.log} kept {self.kept}"])
