"""Settings of MoCHi (arXiv:2010.01028)."""

from dataclasses import dataclass, replace

from shards.errors import ConfigError
from streamssl.config.methods.moco_config import MoCoConfig
from streamssl.config.parts.method_config import check_min
from streamssl.config.parts.size_rules import MAX_PASSES_BEFORE_QUEUE, SizeRules, size_key_queue


@dataclass(frozen=True, kw_only=True, slots=True)
class MoCHiConfig(MoCoConfig):
    """MoCo v2 and (N, s, s') = (1024, 1024, 128) of the paper, after 15 epochs of ImageNet.

    Of the `num_hardest` keys, `num_mixed` pairs are mixed with each other and
    `num_mixed_with_query` with the query, which has the smaller share. Keys of the query's own
    sample are no negatives.
    """

    num_hardest: int = 1024
    num_mixed: int = 1024
    num_mixed_with_query: int = 128
    start_step: int = 75_075

    def __post_init__(self) -> None:
        MoCoConfig.__post_init__(self)
        if not 1 <= self.num_hardest <= self.queue.capacity:
            raise ConfigError(
                f"num_hardest={self.num_hardest}; it must be from 1 to the queue's "
                f"{self.queue.capacity} keys; the paper has 1,024 of 65,536"
            )
        check_min(self, 0, "num_mixed", "num_mixed_with_query", "start_step")

    def sized(self, rules: SizeRules, recipe: MoCoConfig) -> "MoCHiConfig":
        assert isinstance(recipe, MoCHiConfig)
        wanted = recipe.queue.capacity
        capacity = size_key_queue(rules, wanted, self.queue.capacity)
        hardest = max(1, recipe.num_hardest * capacity // wanted)
        why = f"as large a part of the queue as {recipe.num_hardest} of {wanted}"
        rules.choose("method.num_hardest", hardest, why, self.num_hardest)
        start = rules.steps_within_passes(recipe.start_step, MAX_PASSES_BEFORE_QUEUE)
        rules.choose("method.start_step", *start, self.start_step)
        queue = replace(self.queue, capacity=capacity)
        return replace(self, queue=queue, **rules.chosen("method"))
