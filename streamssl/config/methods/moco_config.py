"""Settings of MoCo v1 (arXiv:1911.05722) and v2 (arXiv:2003.04297)."""

from dataclasses import dataclass, field, replace
from typing import Literal

from shards.errors import ConfigError
from streamssl.config.parts.method_config import (
    MethodConfig,
    RunFacts,
    check_min,
    check_momentum,
    check_positive,
    refuse_label,
)
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.config.parts.size_rules import SizeRules, size_key_queue


@dataclass(frozen=True, kw_only=True, slots=True)
class MoCoConfig(MethodConfig):
    """MoCo v2; v1 is `head="linear", temperature=0.07` (section 3.3 of each paper).

    `key_batch_norm_rows`: the approximate number of shuffled keys that share batch norm statistics;
    32 is the part of a GPU in the paper's batch of 256. The queue starts as noise and is used from
    the first step.
    """

    head: Literal["linear", "mlp"] = "mlp"
    dim: int = 128
    temperature: float = 0.2
    momentum: float = 0.999
    key_batch_norm_rows: int = 32
    queue: QueueConfig = field(default_factory=lambda: QueueConfig(capacity=65_536))

    def __post_init__(self) -> None:
        check_min(self, 1, "dim", "key_batch_norm_rows")
        check_positive(self, "MoCo v1 has 0.07, v2 has 0.2", "temperature")
        check_momentum(self.momentum, "the papers have 0.999")
        for name in ("start_step", "max_drift"):
            if getattr(self.queue, name):
                raise ConfigError(
                    f"queue {name}={getattr(self.queue, name)}; MoCo has no loss without its "
                    "queue, which starts with the first step; remove the setting"
                )

    def check(self, run: RunFacts) -> None:
        refuse_label(run)
        if run.batch_size is not None:  # a batch replaces exactly the oldest batch
            self.queue.check_batch(run.batch_size, whole_batches=True)

    def sized(self, rules: SizeRules, recipe: "MoCoConfig") -> "MoCoConfig":
        capacity = size_key_queue(rules, recipe.queue.capacity, self.queue.capacity)
        return replace(self, queue=replace(self.queue, capacity=capacity))
