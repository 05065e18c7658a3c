"""Settings of SwAV (arXiv:2006.09882)."""

from dataclasses import dataclass, replace

from streamssl.config.parts.method_config import (
    MethodConfig,
    RunFacts,
    check_assigned_crops,
    check_min,
    check_positive,
    refuse_label,
)
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.config.parts.size_rules import (
    SizeRules,
    max_drift,
    size_capacity,
    size_epsilon,
    size_prototypes,
    size_queue_start,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SwAVConfig(MethodConfig):
    """The settings of the paper for a batch of 4096 (section 4.1 and appendix A.2).

    `crops_for_assign` names the crops that get assignments, counted from 0 over all groups.
    `freeze_steps` is one epoch of ImageNet. A small batch needs a `queue` of about `num_prototypes`
    rows.
    """

    num_prototypes: int = 3000
    dim: int = 128
    hidden_dim: int = 2048
    temperature: float = 0.1
    epsilon: float = 0.05
    sinkhorn_iterations: int = 3
    crops_for_assign: tuple[int, ...] = (0, 1)
    freeze_steps: int = 313
    queue: QueueConfig | None = None

    def __post_init__(self) -> None:
        check_min(self, 1, "num_prototypes", "dim", "hidden_dim", "sinkhorn_iterations")
        check_positive(self, "the paper has 0.1 and 0.05", "temperature", "epsilon")
        check_assigned_crops(self.crops_for_assign)

    def check(self, run: RunFacts) -> None:
        refuse_label(run)
        if self.queue is not None and run.batch_size is not None:
            self.queue.check_batch(run.batch_size, whole_batches=False)

    def sized(self, rules: SizeRules, recipe: "SwAVConfig") -> "SwAVConfig":
        num = size_prototypes(rules, recipe.num_prototypes, self.num_prototypes)
        capacity = size_capacity(rules, num, self.queue)
        epsilon = size_epsilon(rules, rules.batch + capacity, recipe.epsilon, self.epsilon)
        frozen = rules.steps_within_passes(recipe.freeze_steps, 1)
        rules.choose("method.freeze_steps", *frozen, self.freeze_steps)
        queue = None
        if capacity:
            limit = max_drift(epsilon, self.dim)
            queue = size_queue_start(rules, capacity, self.queue, recipe.queue, limit)
        return replace(self, queue=queue, **rules.chosen("method"))
