"""Settings of SpCL (arXiv:2006.02713)."""

from dataclasses import dataclass, replace

from shards.errors import ConfigError
from streamssl.config.parts.method_config import (
    MethodConfig,
    RunFacts,
    check_min,
    check_positive,
    refuse_label,
)
from streamssl.config.parts.size_rules import SizeRules, size_memory


@dataclass(frozen=True, kw_only=True, slots=True)
class SpCLConfig(MethodConfig):
    """The settings of the paper (section 4.2) and of its code for unsupervised re-identification.

    `memory`: samples remembered. `cluster_steps`: steps between two clusterings, the paper's 400 of
    an epoch; for the first `fill_steps`, one pass over the data as published, features only enter
    the memory. `momentum` is the share of the old feature that stays. `source_classes`: the number
    of classes that the run's `label` distinguishes in the source domain; 0: no labels.
    """

    memory: int = 12_936
    temperature: float = 0.05
    momentum: float = 0.2
    k1: int = 30
    k2: int = 6
    epsilon: float = 0.6
    epsilon_gap: float = 0.02
    min_samples: int = 4
    cluster_steps: int = 400
    fill_steps: int = 203
    source_classes: int = 0

    def __post_init__(self) -> None:
        check_min(self, 1, "memory", "k2", "min_samples", "cluster_steps")
        if self.source_classes < 0:
            raise ConfigError(
                f"source_classes={self.source_classes}; it must be 0, for no labels, or the number "
                "of classes that the labelled samples have"
            )
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum={self.momentum}; it must lie in [0, 1); the paper has 0.2")
        check_positive(self, "the paper has 0.05", "temperature")
        if not 0 <= self.epsilon_gap < min(self.epsilon, 1 - self.epsilon):
            raise ConfigError(
                f"epsilon={self.epsilon} with epsilon_gap={self.epsilon_gap}; epsilon - gap must "
                "be above 0 and epsilon + gap below 1; the paper has 0.6 and 0.02"
            )
        if self.k1 < self.k2:
            raise ConfigError(f"k1={self.k1} with k2={self.k2}; k1 must be at least k2; raise k1")

    def check(self, run: RunFacts) -> None:
        if not self.source_classes:
            refuse_label(run)
        elif not run.label:
            raise ConfigError(
                f"source_classes={self.source_classes} and no label; the label tells the classes "
                "of the source: give --label, a member such as cls or a field of the samples' JSON"
            )

    def sized(self, rules: SizeRules, recipe: "SpCLConfig") -> "SpCLConfig":
        memory = size_memory(rules, recipe.memory, self.memory, is_all=False)
        # Of two domains in equal shares only the target's half of a batch enters the memory.
        num_new = rules.batch // 2 if self.source_classes else rules.batch
        fill_steps = -(-memory // num_new)
        rules.choose("method.fill_steps", fill_steps, "until the memory is full", self.fill_steps)
        return replace(self, **rules.chosen("method"))
