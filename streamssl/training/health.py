"""How features, codes and loss of a run are, and whether they collapse.

A collapsed encoder gives all images the same feature, or features in a few directions only; its
loss may look as good as any. So every few steps numbers that show it stand beside the loss, and
`HealthWatch` says when one of them is where only collapsed encoders have it.

Shape letters: B samples of this rank, G of all ranks, N rows that are looked at, D feature.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from streamssl.config.run_config import RunConfig
from streamssl.distributed.collectives import all_gather_rows, world_size
from streamssl.methods.base import StepOutput
from streamssl.modules.feature_readings import effective_rank, feature_std
from streamssl.training.collapse_limits import LIMITS

# Steps from one look to the next. On one core of a CPU a look at 256 features of 128 numbers takes
# 2 ms, at 512 of 256 numbers 13 ms: a tenth of that a step.
EVERY = 10
# More rows would say no more about spaces of a few hundred dimensions; fewer span none.
_MIN_ROWS, _MAX_ROWS = 16, 512


@torch.no_grad()
def measure(output: StepOutput, group: ProcessGroup | None) -> dict[str, Tensor | float]:
    """What features and loss say about collapse, the same on every rank.

    `effective_rank` and `feature_std` are of `StepOutput.features`, see `readings`; a batch of
    fewer than 16 samples has neither.
    """
    readings: dict[str, Tensor | float] = {}
    if output.features is not None and len(output.features) * world_size(group) >= _MIN_ROWS:
        x_ND = all_gather_rows(output.features, group)[:_MAX_ROWS].double().nan_to_num()
        readings["effective_rank"] = effective_rank(x_ND)
        readings["feature_std"] = feature_std(x_ND)
    if output.plateau is not None:
        readings["loss_over_plateau"] = output.loss.detach() / output.plateau
    return readings


# So many looks in a row, since a single batch may be an odd one.
_PATIENCE = 3
_MIN_GRACE = 50


@dataclass(frozen=True, slots=True)
class Look:
    """What a step showed: the readings that have limits, those beyond theirs for long enough, and
    sentences about what has changed. `readings` are for the log; all is empty between two looks."""

    looked_at: Mapping[str, float] = field(default_factory=dict)
    crossed: tuple[str, ...] = ()
    news: tuple[str, ...] = ()

    @property
    def readings(self) -> dict[str, float]:
        return {"collapsing": float(len(self.crossed))} if self.looked_at else {}


class HealthWatch:
    """Notices in the readings of one step after the other that a run collapses.

    A reading counts once it was beyond its limit in three looks in a row. For the first steps
    features may be anything: fresh networks give all images about the same, and losses begin at
    their plateau. A resumed run is watched anew from where it goes on.
    """

    def __init__(self, num_steps: int, warmup_steps: int = 0) -> None:
        # A hundredth of a long run: SwAV's authors freeze its prototypes for half as long.
        self._grace = max(_MIN_GRACE, warmup_steps, num_steps // 100)
        self._counts = dict.fromkeys((limit.reading for limit in LIMITS), 0)

    @classmethod
    def of(cls, config: RunConfig) -> "HealthWatch":
        return cls(config.num_steps, config.schedule.warmup_steps)

    def look(self, step: int, readings: Mapping[str, float]) -> Look:
        """What the readings of a finished step say, if it is one that is looked at."""
        if step % EVERY:
            return Look()
        limits = [limit for limit in LIMITS if limit.reading in readings]
        crossed, news = [], []
        for limit in limits:
            found, count = readings[limit.reading], self._counts[limit.reading]
            is_beyond = step > self._grace and limit.is_crossed(found)
            self._counts[limit.reading] = count + 1 if is_beyond else 0
            if count + 1 >= _PATIENCE and is_beyond:
                crossed.append(limit.reading)
            if count + 1 == _PATIENCE and is_beyond:
                news.append(limit.warning(step, found))
            if count >= _PATIENCE and not is_beyond:
                news.append(f"step {step}: {limit.reading} is {found:.3g}, within its limit again")
        looked_at = {limit.reading: readings[limit.reading] for limit in limits}
        return Look(looked_at, tuple(crossed), tuple(news))
