"""Sizes derived from the batch and the data, for runs with `--sizes auto`.

A recipe's sizes fit its own batch and data. The rules for other sizes are in `parts.size_rules`,
and each method's settings say which of them apply (`MethodConfig.sized`).

The learning rate is R (B / B_recipe)^p, and so are the rates at which it starts and ends. R is the
recipe's rate, B the batch. p = 1 for SGD, AdamW and LARS (MoCo's README has 0.015 at 128 for 0.03
at 256; the code of MoCo v3, BYOL and PatchMix scales this way); 1/2 for SimCLR (arXiv:2002.05709,
B.1, better for small batches); 3/4 for LARC, the line through both batches that SwAV's authors ran,
0.6 at 256 and 4.8 at 4096.

The number of ranks is no input: the batch is that of all ranks, and a run must not change when
ranks join or leave. Neither is the number of steps, which may change when a run is resumed.
"""

from dataclasses import dataclass, replace

from streamssl.config.parts.size_rules import SizeRules
from streamssl.config.run_config import RunConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizing:
    """Inputs from which sizes are derived, besides the run's own settings.

    `recipe` is the run before any setting was given by hand; `by_hand` names the settings given by
    hand, such as `method.num_prototypes`; `num_samples` is None if the size of the data is unknown.
    """

    recipe: RunConfig
    by_hand: frozenset[str] = frozenset()
    num_samples: int | None = None


def size(config: RunConfig, sizing: Sizing) -> RunConfig:
    """Return `config` with derived sizes and their origins. Raises ConfigError."""
    recipe = sizing.recipe
    rules = SizeRules(
        batch=config.stream.batch_size,
        recipe_batch=recipe.stream.batch_size,
        num_samples=sizing.num_samples,
        by_hand=sizing.by_hand,
    )
    _size_rates(rules, config, recipe)
    method = config.method
    if isinstance(recipe.method, type(method)):
        method = method.sized(rules, recipe.method)
    return replace(
        config,
        method=method,
        optim=replace(config.optim, **rules.chosen("optim")),
        schedule=replace(config.schedule, **rules.chosen("schedule")),
        sizes="given",
        origins=rules.origins,
    )


def lr_power(config: RunConfig) -> float:
    """Return the exponent by which the learning rate follows the batch."""
    return 0.75 if config.optim.name == "larc" else config.method.lr_power


def _size_rates(rules: SizeRules, config: RunConfig, recipe: RunConfig) -> None:
    power = lr_power(config)
    factor = (rules.batch / rules.recipe_batch) ** power
    why = (
        f"{recipe.optim.base_lr:g} at {rules.recipe_batch}, "
        f"times ({rules.batch} / {rules.recipe_batch})^{power:g}"
    )
    rate = float(f"{recipe.optim.base_lr * factor:.6g}")
    rules.choose("optim.base_lr", rate, why, config.optim.base_lr)
    if "optim.base_lr" in rules.by_hand:
        return
    for name in ("start_lr", "final_lr"):
        rate = float(f"{getattr(recipe.schedule, name) * factor:.6g}")
        if rate and config.schedule.kind == recipe.schedule.kind:
            given = getattr(config.schedule, name)
            rules.choose(f"schedule.{name}", rate, "as optim.base_lr", given)
