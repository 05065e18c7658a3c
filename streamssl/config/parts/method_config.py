"""Base class of the settings of a method, and checks that they share."""

from dataclasses import dataclass
from typing import Any, ClassVar

from shards.errors import ConfigError
from streamssl.config.parts.size_rules import SizeRules


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """Settings of a run that the settings of its method must fit.

    `batch_size` is None while sizes are still to be derived from it.
    """

    method_name: str
    batch_size: int | None
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodConfig:
    """Settings of one method: frozen values, checked when they are made."""

    lr_power: ClassVar[float] = 1.0
    """Exponent by which the learning rate follows the batch size."""

    def check(self, run: RunFacts) -> None:
        """Raise ConfigError unless these settings fit the run; by default it has no label."""
        refuse_label(run)

    def sized(self, rules: SizeRules, recipe: Any) -> "MethodConfig":
        """Return a copy with sizes derived from batch and data; `recipe` has the recipe's."""
        return self


def refuse_label(run: RunFacts) -> None:
    """Raise ConfigError if the run names a label, which most methods do not learn from."""
    if run.label:
        raise ConfigError(
            f"label={run.label!r} with method {run.method_name}; only supcon, fine-tune and "
            "spcl with source_classes learn from labels: remove the setting"
        )


def check_min(config: MethodConfig, minimum: int, *names: str) -> None:
    """Raise ConfigError unless each named field is at least `minimum`."""
    for name in names:
        if (found := getattr(config, name)) < minimum:
            raise ConfigError(f"{name}={found}; it must be at least {minimum}; raise it")


def check_positive(config: MethodConfig, published: str, *names: str) -> None:
    """Raise ConfigError unless each named field is above 0; `published` ends the sentence."""
    for name in names:
        if not (found := getattr(config, name)) > 0:
            raise ConfigError(f"{name}={found}; it must be above 0; {published}")


def check_momentum(momentum: float, published: str) -> None:
    """Raise ConfigError unless `momentum` is in [0, 1]; `published` ends the sentence."""
    if not 0 <= momentum <= 1:
        raise ConfigError(f"momentum={momentum}; it must lie in [0, 1]; {published}")


def check_assigned_crops(crops_for_assign: tuple[int, ...]) -> None:
    """Raise ConfigError unless at least one crop is named, each once."""
    num_distinct = len(set(crops_for_assign))
    if num_distinct == 0 or num_distinct < len(crops_for_assign):
        raise ConfigError(
            f"crops_for_assign={crops_for_assign}; it names at least one crop, each once; "
            "the paper has (0, 1)"
        )
