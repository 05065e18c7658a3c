"""Settings of DeepCluster-v2 (arXiv:2006.09882, appendix D)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shards.errors import ConfigError
from streamssl.config.parts.method_config import (
    MethodConfig,
    check_assigned_crops,
    check_min,
    check_positive,
)
from streamssl.config.parts.size_rules import (
    SizeRules,
    size_cluster_heads,
    size_memory,
    size_relabelling,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepClusterConfig(MethodConfig):
    """The settings of the paper (appendix D); "stream" mode is our own.

    `num_prototypes` has one number for each head; head h clusters the features of crop
    `crops_for_assign[h % A]`. `memory`: samples remembered, in "epochs" mode the whole data
    (1,281,167 samples of two crops are 1.3 GB). `cluster_steps`: steps between two clusterings, an
    epoch as published. Before the first clustering a run only fills its memory.
    """

    mode: Literal["epochs", "stream"] = "epochs"
    num_prototypes: tuple[int, ...] = (3000, 3000, 3000)
    dim: int = 128
    hidden_dim: int = 2048
    temperature: float = 0.1
    crops_for_assign: tuple[int, ...] = (0, 1)
    kmeans_iterations: int = 10
    memory: int = 1_281_167
    cluster_steps: int = 5005

    def __post_init__(self) -> None:
        check_heads(self.num_prototypes, self.memory)
        check_assigned_crops(self.crops_for_assign)
        check_min(self, 1, "dim", "hidden_dim", "kmeans_iterations", "cluster_steps")
        check_positive(self, "the paper has 0.1", "temperature")

    def sized(self, rules: SizeRules, recipe: "DeepClusterConfig") -> "DeepClusterConfig":
        is_all = self.mode == "epochs"
        memory = size_memory(rules, recipe.memory, self.memory, is_all=is_all)
        size_cluster_heads(rules, memory, recipe.num_prototypes, self.num_prototypes)
        size_relabelling(
            rules,
            "cluster_steps",
            recipe.cluster_steps,
            self.cluster_steps,
            memory=memory,
            recipe_memory=recipe.memory,
        )
        return replace(self, **rules.chosen("method"))


def check_heads(num_prototypes: Sequence[int], memory: int) -> None:
    """Raise ConfigError unless the clusters of every head fit into the memory."""
    if not num_prototypes or min(num_prototypes) < 1 or memory < max(num_prototypes):
        raise ConfigError(
            f"memory={memory} with num_prototypes={tuple(num_prototypes)}; there is at least one "
            "head, each with at least one prototype and at most one for each sample of the memory; "
            "raise memory or ask for fewer prototypes"
        )
