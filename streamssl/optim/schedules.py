"""Learning rate and momentum as pure functions of the step. Steps are counted from 0.

A position is a step or a (fractional) epoch; all lengths must have the same unit.
"""

import math
from dataclasses import dataclass
from typing import Literal

from shards.errors import ConfigError


def cosine(progress: float, start: float, end: float) -> float:
    """Return half a cosine from `start` at progress 0 to `end` at 1, constant outside."""
    along = min(max(progress, 0.0), 1.0)
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * along))


def swav_lr(
    step: int,
    *,
    num_steps: int,
    warmup_steps: int,
    start_lr: float,
    base_lr: float,
    final_lr: float,
) -> float:
    """Return the rate of SwAV (arXiv:2006.09882, A.2), DINO and PatchMix.

    The line from `start_lr` includes `base_lr` as its last point, and the cosine to `final_lr`
    starts with `base_lr` again; it ends one step after the last step.
    """
    if step < warmup_steps:
        return start_lr + (base_lr - start_lr) * step / max(1, warmup_steps - 1)
    return cosine((step - warmup_steps) / max(1, num_steps - warmup_steps), base_lr, final_lr)


def warmup_cosine_lr(
    position: float, *, num_positions: float, warmup: float, base_lr: float, final_lr: float = 0.0
) -> float:
    """Return the rate of MoCo v3, BYOL and SimCLR: linear to `base_lr`, then half a cosine."""
    if position < warmup:
        return base_lr * position / warmup
    return cosine((position - warmup) / max(num_positions - warmup, 1e-12), base_lr, final_lr)


def stepped_lr(
    position: float, *, base_lr: float, milestones: tuple[float, ...], factor: float = 0.1
) -> float:
    """Return the rate of MoCo v1: times `factor` at milestones (epochs 120 and 160 of 200)."""
    rate = base_lr
    for milestone in milestones:
        rate *= factor if position >= milestone else 1.0
    return rate


def rising_momentum(position: float, *, num_positions: float, base_momentum: float) -> float:
    """Return an EMA momentum that rises from `base_momentum` to 1 along half a cosine.

    MoCo v3 (arXiv:2104.02057) and BYOL (tau, arXiv:2006.07733, section 3.2).
    """
    return 1.0 - (1.0 - base_momentum) * cosine(position / num_positions, 1.0, 0.0)


MomentumKind = Literal["cosine", "constant"]


def momentum_at(kind: MomentumKind, step: int, *, num_steps: int, base_momentum: float) -> float:
    """Return the EMA momentum of `step`: `rising_momentum`, or constant for runs without an end."""
    if kind == "constant":
        return base_momentum
    return rising_momentum(step, num_positions=num_steps, base_momentum=base_momentum)


def linearly_scaled_lr(base_lr: float, global_batch: int) -> float:
    """Return the rate of a batch from a rate per 256 samples: SwAV, MoCo v3, BYOL, SimCLR."""
    return base_lr * global_batch / 256


def root_scaled_lr(base_lr: float, global_batch: int) -> float:
    """Return `base_lr` times sqrt(batch): SimCLR for small batches (arXiv:2002.05709, B.1)."""
    return base_lr * math.sqrt(global_batch)


def simclr_num_steps(num_samples: int, *, epochs: int, global_batch: int) -> int:
    """Return the steps of SimCLR: one more than whole batches fit."""
    return num_samples * epochs // global_batch + 1


def simclr_warmup_steps(num_samples: int, *, epochs: float, global_batch: int) -> int:
    """Return the warm-up steps of SimCLR."""
    return round(epochs * num_samples // global_batch)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """Learning rate schedule, in steps.

    `kind`: "swav" is `swav_lr`; "warmup_cosine" is `warmup_cosine_lr` (from 0; `start_lr` is
    refused); "stepped" is `stepped_lr` with `milestones` as fractions of the run, after a linear
    warm-up; "constant" stays at the base rate after the warm-up.
    """

    kind: Literal["swav", "warmup_cosine", "stepped", "constant"] = "swav"
    warmup_steps: int = 0
    start_lr: float = 0.0
    final_lr: float = 0.0
    milestones: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("swav", "warmup_cosine", "stepped", "constant"):
            raise ConfigError(
                f"schedule kind={self.kind!r}; swav, warmup_cosine, stepped and constant are "
                "known; choose one"
            )
        if self.warmup_steps < 0:
            raise ConfigError(f"warmup_steps={self.warmup_steps}; it must be at least 0")
        self._refuse_unused("start_lr", self.start_lr, self.kind == "warmup_cosine")
        self._refuse_unused("final_lr", self.final_lr, self.kind in ("stepped", "constant"))
        self._refuse_unused("milestones", self.milestones, self.kind != "stepped")

    def _refuse_unused(self, name: str, value: object, unused: bool) -> None:
        if unused and value:
            raise ConfigError(
                f"{name}={value} with kind={self.kind!r}, which does not use it; "
                "remove it or choose another kind"
            )

    def lr(self, step: int, num_steps: int, base_lr: float) -> float:
        """Return the learning rate of `step` (from 0) of `num_steps`."""
        if self.kind == "swav":
            return swav_lr(
                step,
                num_steps=num_steps,
                warmup_steps=self.warmup_steps,
                start_lr=self.start_lr,
                base_lr=base_lr,
                final_lr=self.final_lr,
            )
        if self.kind == "warmup_cosine":
            return warmup_cosine_lr(
                step,
                num_positions=num_steps,
                warmup=self.warmup_steps,
                base_lr=base_lr,
                final_lr=self.final_lr,
            )
        if step < self.warmup_steps:
            return self.start_lr + (base_lr - self.start_lr) * step / self.warmup_steps
        milestones = tuple(fraction * num_steps for fraction in self.milestones)
        return stepped_lr(step, base_lr=base_lr, milestones=milestones)
