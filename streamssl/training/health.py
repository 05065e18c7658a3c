"""Health of a run: readings that show collapse, and a watch over them.

A collapsed encoder gives all images the same feature, or features in a few directions only, and its
loss may look normal. So every few steps the log gets readings that show it, and `HealthWatch`
warns when one of them has crossed its limit.

Shape letters: B samples of this rank, N rows that are measured, D feature.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

import torch
from torch.distributed import ProcessGroup

from streamssl.config.run_config import RunConfig
from streamssl.devices.number_transfer import Reading, read_on_host
from streamssl.distributed.collectives import all_gather_rows, world_size
from streamssl.methods.base import StepOutput
from streamssl.modules.feature_readings import effective_rank, feature_std
from streamssl.training import image_spread
from streamssl.training.advice import advice
from streamssl.training.collapse_limits import LIMITS
from streamssl.training.gradient_watch import GradientWatch
from streamssl.training.label_watch import LabelWatch

# Steps from one check to the next. On one core of a CPU a check takes 2 ms for 256 features of 128
# numbers, 13 ms for 512 features of 256 numbers.
EVERY = 10
# More rows do not change the rank in a few hundred dimensions; fewer span no space.
_MIN_ROWS, _MAX_ROWS = 16, 512


@torch.no_grad()
def measure(output: StepOutput, group: ProcessGroup | None) -> dict[str, Reading]:
    """Return readings of features and loss that show collapse, the same on every rank.

    `effective_rank` and `feature_std` are those of `StepOutput.features`; a batch of fewer than 16
    samples has neither.
    """
    readings: dict[str, Reading] = {}
    if output.features is not None and len(output.features) * world_size(group) >= _MIN_ROWS:
        x_ND = all_gather_rows(output.features, group)[:_MAX_ROWS].double().nan_to_num()
        # Singular values of a GPU are checked by the host, which waits for them.
        readings["effective_rank"] = read_on_host(x_ND, effective_rank)
        readings["feature_std"] = feature_std(x_ND)
    if output.plateau is not None:
        readings["loss_over_plateau"] = output.loss.detach() / output.plateau
    return readings


# A single batch may be an outlier.
_CHECKS_IN_A_ROW = 3
_MIN_GRACE_STEPS = 50


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """The result of one check; empty between two checks.

    `measured` are the readings that have limits, `crossed` the names of those beyond their limit,
    and `messages` sentences about changes. `readings` are for the log.
    """

    measured: Mapping[str, float] = field(default_factory=dict)
    crossed: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()

    @property
    def readings(self) -> dict[str, float]:
        return {"collapsing": float(len(self.crossed))} if self.measured else {}


class HealthWatch:
    """Watches the readings of a run, step after step, for collapse and for gradients that spike.

    A limit is crossed when a reading was beyond it in three checks in a row. The first steps do not
    count: fresh networks give all images about the same feature, and losses begin at their plateau.
    A resumed run starts the counts anew. A reading that stops being finite is told, too; before its
    first value, as in an empty queue, a reading is NaN.
    """

    def __init__(self, config: RunConfig) -> None:
        num_crops = sum(group.num_views for group in config.crops.groups)
        self._labels = LabelWatch(config.label, num_crops) if config.label else None
        self._gradients = GradientWatch(config.optim.base_lr, config.save_every)
        self._advice = advice(config)
        self._spreads: deque[float] = deque(maxlen=image_spread.WINDOW)
        # A hundredth of a long run: SwAV's authors freeze its prototypes for half as long.
        warmup_steps = config.schedule.warmup_steps
        self._grace = max(_MIN_GRACE_STEPS, warmup_steps, config.num_steps // 100)
        self._was_finite: dict[str, bool] = {}
        self._counts = dict.fromkeys((limit.reading for limit in LIMITS), 0)

    def check(self, step: int, readings: Mapping[str, float]) -> HealthCheck:
        """Check the readings of a finished step; limits only if it is the turn of this step."""
        lost = [x for x in readings if self._was_finite.get(x) and not isfinite(readings[x])]
        messages = [
            f"step {step}: {name} is {readings[name]}, no longer a finite number; metrics.jsonl "
            "has null for it"
            for name in lost
        ]
        found_finite = {name: True for name, found in readings.items() if isfinite(found)}
        # Told once: a lost reading stays False.
        self._was_finite = {**found_finite, **self._was_finite, **dict.fromkeys(lost, False)}
        messages += self._gradients.check(step, readings.get("gradient_norm"))
        if self._labels is not None:
            messages += self._labels.check(step, readings)
        if step % EVERY:
            return HealthCheck(messages=tuple(messages))
        if image_spread.NAME in readings:
            self._spreads.append(readings[image_spread.NAME])
        limits = [limit for limit in LIMITS if limit.reading in readings]
        crossed = []
        for limit in limits:
            found, count = readings[limit.reading], self._counts[limit.reading]
            is_beyond = step > self._grace and limit.is_crossed(found)
            self._counts[limit.reading] = count + 1 if is_beyond else 0
            if count + 1 >= _CHECKS_IN_A_ROW and is_beyond:
                crossed.append(limit.reading)
            if count + 1 == _CHECKS_IN_A_ROW and is_beyond:
                messages.append(limit.warning(step, found, self._remedy(limit.reading)))
            if count >= _CHECKS_IN_A_ROW and not is_beyond:
                messages.append(
                    f"step {step}: {limit.reading} is {found:.3g}, within its limit again"
                )
        measured = {limit.reading: readings[limit.reading] for limit in limits}
        return HealthCheck(measured, tuple(crossed), tuple(messages))

    def _remedy(self, reading: str) -> str:
        """Return what to change; first the images, if they are the cause."""
        if image_spread.are_alike(self._spreads):
            return f"{image_spread.alike_cause(self._spreads)}; otherwise {self._advice[reading]}"
        return self._advice[reading]
