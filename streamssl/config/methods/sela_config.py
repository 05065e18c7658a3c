"""Settings of SeLa-v2 (arXiv:2006.09882, appendix D)."""

from dataclasses import dataclass, replace
from typing import Literal

from streamssl.config.methods.deepcluster_config import check_heads
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
class SeLaConfig(MethodConfig):
    """SeLa-v2 (arXiv:2006.09882, appendix D); "stream" mode is our own.

    The paper does not say how sharp its transport is. `exponent` and `tolerance` are those of
    SeLa's own ImageNet runs: P^25, solved until the column scalings change by 0.1 in sum. For
    CIFAR-10 its authors have 10 and 0.01. Heads, memory and `label_steps` are as in DeepCluster-v2.
    """

    mode: Literal["epochs", "stream"] = "epochs"
    num_prototypes: tuple[int, ...] = (3000, 3000, 3000)
    dim: int = 128
    hidden_dim: int = 2048
    temperature: float = 0.1
    crops_for_assign: tuple[int, ...] = (0, 1)
    exponent: float = 25.0
    tolerance: float = 0.1
    memory: int = 1_281_167
    label_steps: int = 5005

    def __post_init__(self) -> None:
        check_heads(self.num_prototypes, self.memory)
        check_assigned_crops(self.crops_for_assign)
        check_min(self, 1, "dim", "hidden_dim", "label_steps")
        published = "the papers have 0.1, 25 and 0.1 for temperature, exponent and tolerance"
        check_positive(self, published, "temperature", "exponent", "tolerance")

    def sized(self, rules: SizeRules, recipe: "SeLaConfig") -> "SeLaConfig":
        is_all = self.mode == "epochs"
        memory = size_memory(rules, recipe.memory, self.memory, is_all=is_all)
        size_cluster_heads(rules, memory, recipe.num_prototypes, self.num_prototypes)
        size_relabelling(
            rules,
            "label_steps",
            recipe.label_steps,
            self.label_steps,
            memory=memory,
            recipe_memory=recipe.memory,
        )
        return replace(self, **rules.chosen("method"))
