"""Sizes that follow from the batch and the data, for whoever gives `--sizes auto`.

A recipe's sizes are right for its own batch and data. For others these are the rules; R is the
recipe's value at its batch, B the batch, N the samples of the data, where they are known.

- Learning rate: R (B / B_recipe)^p, and where it starts and ends alike. p = 1 for SGD, AdamW and
  LARS (MoCo's README has 0.015 at 128 for 0.03 at 256; MoCo v3, BYOL and PatchMix scale so in their
  code); 1/2 for SimCLR (arXiv:2002.05709, B.1, better for small batches); 3/4 for LARC, the line
  through both batches that SwAV's authors ran, 0.6 at 256 and 4.8 at 4096.
- Rows that codes are computed from: 4,096 for 3,000 prototypes, which is SwAV's 4096 without a
  queue and its 256 with a queue of 3,840. A batch that has as many by itself gets no queue. A queue
  holds whole batches and at most 15 of them, SwAV's 3,840 at 256: entries that are older disturb
  ("too inconsistent", README of SwAV; "smaller queue solved it", its issue 69).
- Prototypes: R, at most 3,000 for 4,096 of those rows, at most one for 100 samples of the data
  (CIFAR-10 has 512 for 50,000 in lightly's table, and 3,000 are too many in solo-learn's); where a
  memory is clustered, at most one for 20 of it (a window of 65,536 has 3,000 in our recipes).
- Epsilon: R with 4,096 rows or more, else at most 0.03, as SwAV's authors advise where codes stay
  uniform, and SEER has it.
- Frozen prototypes: as many samples as in the recipe (an epoch of ImageNet in both of SwAV's
  batches), at most one pass over the data.
- Start of a queue: as many samples as in the recipe, at most 15 passes over the data; at once where
  the queue is one batch (SwAV's at 2560). Where the recipe has no queue to tell, when drift moves
  the scores of the oldest entry by less than epsilon: its change is sqrt(1 - cos^2) long, and 1 /
  sqrt(D) of that lies along a prototype, so cos^2 must be over 1 - D epsilon^2 (derived).
- MoCo's queue: R, at most a twelfth of the data, in whole batches (4,096 for CIFAR-10's 50,000 in
  its authors' demonstration, beyond which nothing was gained); MoCHi mixes as large a part of it.
- Memories of DeepCluster-v2, SeLa-v2 and SpCL: by epochs all of the data, in a stream R, at most
  the data; relabelled after as many samples as in the recipe.

The number of ranks is no input: a batch is that of all of them, and a run must stay the same when
they come and go. Neither is the number of steps, which may change when a run goes on.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from streamssl.config.run_config import MethodConfig, RunConfig
from streamssl.methods.deepcluster import DeepClusterConfig
from streamssl.methods.mochi import MoCHiConfig
from streamssl.methods.moco import MoCoConfig
from streamssl.methods.sela import SeLaConfig
from streamssl.methods.simclr import SimCLRConfig
from streamssl.methods.spcl import SpCLConfig
from streamssl.methods.supcon import SupConConfig
from streamssl.methods.swav import SwAVConfig
from streamssl.modules.feature_queue import QueueConfig

ROWS_PER_PROTOTYPE: Final = 4096 / 3000
MAX_QUEUED_BATCHES: Final = 15
SAMPLES_PER_PROTOTYPE: Final = 100
REMEMBERED_PER_PROTOTYPE: Final = 20
MANY_ROWS: Final = 4096
SHARP_EPSILON: Final = 0.03
MAX_PASSES_BEFORE_QUEUE: Final = 15
DATA_PER_KEY: Final = 12
_WITHOUT_END: Final = 1 << 62


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizing:
    """What sizes are worked out from, besides the run's own settings.

    `recipe` is the run as it was before anything was given by hand; `by_hand` names what was, such
    as `method.num_prototypes`; `num_samples` is None where the data is not known to end.
    """

    recipe: RunConfig
    by_hand: frozenset[str] = frozenset()
    num_samples: int | None = None


@dataclass(slots=True)
class _Sizes:
    """Values and their origins by name, as they are found one after the other."""

    sizing: Sizing
    batch: int
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def choose(self, name: str, value: Any, why: str, given: Any) -> Any:
        """What holds from now on: what was `given` by hand, or else `value`."""
        if name in self.sizing.by_hand:
            value, why = given, "by hand"
        self.values[name], self.origins[name] = value, why
        return value

    def steps_of(self, recipe_steps: int) -> int:
        """As many samples as `recipe_steps` batches of the recipe have, in steps of this run."""
        return -(-recipe_steps * self.sizing.recipe.stream.batch_size // self.batch)


def size(config: RunConfig, sizing: Sizing) -> RunConfig:
    """`config` with its sizes worked out, and with the origin of each. Raises ConfigError."""
    sizes = _Sizes(sizing, config.stream.batch_size)
    _size_rates(sizes, config)
    method, recipe = config.method, sizing.recipe.method
    if isinstance(method, SwAVConfig) and isinstance(recipe, SwAVConfig):
        method = _size_swav(sizes, method, recipe)
    elif isinstance(method, MoCoConfig) and isinstance(recipe, MoCoConfig):
        method = _size_moco(sizes, method, recipe)
    elif isinstance(method, DeepClusterConfig) and isinstance(recipe, DeepClusterConfig):
        method = _size_labels(sizes, method, recipe, "cluster_steps", recipe.cluster_steps)
    elif isinstance(method, SeLaConfig) and isinstance(recipe, SeLaConfig):
        method = _size_labels(sizes, method, recipe, "label_steps", recipe.label_steps)
    elif isinstance(method, SpCLConfig) and isinstance(recipe, SpCLConfig):
        method = _size_spcl(sizes, method, recipe)
    rates = _part(sizes.values, "schedule")
    return replace(
        config,
        method=method,
        optim=replace(config.optim, base_lr=sizes.values["optim.base_lr"]),
        schedule=replace(config.schedule, **rates),
        sizes="given",
        origins=sizes.origins,
    )


def lr_power(config: RunConfig) -> float:
    """How the learning rate follows the batch."""
    if config.optim.name == "larc":
        return 0.75
    return 0.5 if isinstance(config.method, SimCLRConfig | SupConConfig) else 1.0


def num_queued(num_prototypes: int, batch: int) -> int:
    """Rows of a queue, in whole batches, that prototypes want besides a batch; 0 is none."""
    missing = num_prototypes * ROWS_PER_PROTOTYPE - batch
    num_batches = min(MAX_QUEUED_BATCHES, -(-round(missing) // batch))
    return max(0, num_batches) * batch


def max_prototypes(num_rows: int | None, num_samples: int | None) -> int:
    """How many prototypes codes from so many rows, and so much data, can have; None has no end."""
    by_rows = _WITHOUT_END if num_rows is None else int(num_rows / ROWS_PER_PROTOTYPE)
    by_data = _WITHOUT_END if num_samples is None else num_samples // SAMPLES_PER_PROTOTYPE
    return max(2, min(by_rows, by_data))


def max_drift(epsilon: float, dim: int) -> float:
    """How far entries may drift before it blurs their codes: 1 - a cosine, above 0."""
    return float(f"{1 - math.sqrt(max(0.0, 1 - dim * epsilon**2)):.3g}")


def _size_rates(sizes: _Sizes, config: RunConfig) -> None:
    recipe, batch = sizes.sizing.recipe, sizes.batch
    power, before = lr_power(config), recipe.stream.batch_size
    factor = (batch / before) ** power
    why = f"{recipe.optim.base_lr:g} at {before}, times ({batch} / {before})^{power:g}"
    rate = float(f"{recipe.optim.base_lr * factor:.6g}")
    sizes.choose("optim.base_lr", rate, why, config.optim.base_lr)
    if "optim.base_lr" in sizes.sizing.by_hand:
        return
    for name in ("start_lr", "final_lr"):
        rate = float(f"{getattr(recipe.schedule, name) * factor:.6g}")
        if rate and config.schedule.kind == recipe.schedule.kind:
            given = getattr(config.schedule, name)
            sizes.choose(f"schedule.{name}", rate, "as optim.base_lr", given)


def _size_swav(sizes: _Sizes, method: SwAVConfig, recipe: SwAVConfig) -> SwAVConfig:
    batch, known = sizes.batch, sizes.sizing.num_samples
    max_rows = (1 + MAX_QUEUED_BATCHES) * batch
    most = max_prototypes(max_rows, known)
    why = f"the recipe's {recipe.num_prototypes}"
    if recipe.num_prototypes > most:
        why = f"3,000 for 4,096 rows, of which there are at most {max_rows:,}"
        if most < max_prototypes(max_rows, None):
            why = f"one for {SAMPLES_PER_PROTOTYPE} of {known:,} samples"
    num = sizes.choose(
        "method.num_prototypes", min(recipe.num_prototypes, most), why, method.num_prototypes
    )
    capacity = _size_capacity(sizes, num, method.queue)
    rows = batch + capacity
    epsilon, why = recipe.epsilon, f"the recipe's, with {rows} rows"
    if rows < MANY_ROWS and epsilon > SHARP_EPSILON:
        epsilon, why = SHARP_EPSILON, f"sharper, with {rows} rows, below {MANY_ROWS}"
    epsilon = sizes.choose("method.epsilon", epsilon, why, method.epsilon)
    frozen = _at_most_passes(sizes, recipe.freeze_steps, 1)
    sizes.choose("method.freeze_steps", *frozen, method.freeze_steps)
    queue = None
    if capacity:
        limit = max_drift(epsilon, method.dim)
        queue = _size_start(sizes, capacity, method.queue, recipe.queue, limit)
    return replace(method, queue=queue, **_part(sizes.values, "method"))


def _size_capacity(sizes: _Sizes, num_prototypes: int, given: QueueConfig | None) -> int:
    """Rows of the queue that so many prototypes want; 0 where a batch is enough."""
    batch = sizes.batch
    capacity = num_queued(num_prototypes, batch)
    if not capacity and "method.queue.capacity" not in sizes.sizing.by_hand:
        why = f"none: {batch} rows are enough for {num_prototypes} prototypes"
        sizes.origins["method.queue"] = why
        return 0
    why = f"in whole batches: {batch} rows are few for {num_prototypes} prototypes"
    chosen: int = sizes.choose("method.queue.capacity", capacity, why, given and given.capacity)
    return chosen


def _size_start(
    sizes: _Sizes,
    capacity: int,
    given: QueueConfig | None,
    recipe: QueueConfig | None,
    limit: float,
) -> QueueConfig:
    """When a queue starts: by the step of the recipe, or by drift where it has no queue."""
    start, why = 0, "a queue of one batch is fresh"
    drift = None if given is None else given.max_drift
    if capacity > sizes.batch and recipe is None:
        why, drift = "drift decides", limit
        sizes.origins["method.queue.max_drift"] = "moves scores by less than epsilon"
    elif capacity > sizes.batch and recipe is not None:
        start, why = _at_most_passes(sizes, recipe.start_step, MAX_PASSES_BEFORE_QUEUE)
    start = sizes.choose("method.queue.start_step", start, why, given and given.start_step)
    return QueueConfig(capacity=capacity, start_step=start, max_drift=drift)


def _size_moco(sizes: _Sizes, method: MoCoConfig, recipe: MoCoConfig) -> MoCoConfig:
    batch, known = sizes.batch, sizes.sizing.num_samples
    wanted, why = recipe.queue.capacity, f"the recipe's {recipe.queue.capacity}"
    capacity = wanted
    if known is not None and known // DATA_PER_KEY < wanted:
        capacity, why = known // DATA_PER_KEY, f"a twelfth of {known:,} samples"
    capacity = max(1, capacity // batch) * batch
    capacity = sizes.choose(
        "method.queue.capacity", capacity, f"{why}, in whole batches", method.queue.capacity
    )
    method = replace(method, queue=replace(method.queue, capacity=capacity))
    if isinstance(method, MoCHiConfig) and isinstance(recipe, MoCHiConfig):
        hardest = max(1, recipe.num_hardest * capacity // wanted)
        why = f"as large a part of the queue as {recipe.num_hardest} of {wanted}"
        sizes.choose("method.num_hardest", hardest, why, method.num_hardest)
        start = _at_most_passes(sizes, recipe.start_step, MAX_PASSES_BEFORE_QUEUE)
        sizes.choose("method.start_step", *start, method.start_step)
    return replace(method, **_part(sizes.values, "method"))


def _size_labels(
    sizes: _Sizes,
    method: DeepClusterConfig | SeLaConfig,
    recipe: DeepClusterConfig | SeLaConfig,
    steps_name: str,
    recipe_steps: int,
) -> MethodConfig:
    memory = _size_memory(sizes, method, recipe, is_all=method.mode == "epochs")
    wanted, by_data = recipe.num_prototypes, max_prototypes(None, sizes.sizing.num_samples)
    most = min(by_data, max(2, memory // REMEMBERED_PER_PROTOTYPE))
    why = f"the recipe's {max(wanted)}"
    if max(wanted) > most:
        each = SAMPLES_PER_PROTOTYPE if most == by_data else REMEMBERED_PER_PROTOTYPE
        why = f"one for {each} of the samples that are {'there' if most == by_data else 'kept'}"
    heads = tuple(min(num, most) for num in wanted)
    sizes.choose("method.num_prototypes", heads, why, method.num_prototypes)
    steps = max(1, round(sizes.steps_of(recipe_steps) * memory / recipe.memory))
    why = f"as often as {recipe_steps} steps of {sizes.sizing.recipe.stream.batch_size}"
    sizes.choose(f"method.{steps_name}", steps, why, getattr(method, steps_name))
    return replace(method, **_part(sizes.values, "method"))


def _size_spcl(sizes: _Sizes, method: SpCLConfig, recipe: SpCLConfig) -> SpCLConfig:
    memory = _size_memory(sizes, method, recipe, is_all=False)
    # Of two domains in equal shares only the target's half of a batch enters the memory.
    fill = -(-memory // (sizes.batch // 2 if method.source_classes else sizes.batch))
    sizes.choose("method.fill_steps", fill, "until the memory is full", method.fill_steps)
    return replace(method, **_part(sizes.values, "method"))


def _size_memory(sizes: _Sizes, method: Any, recipe: Any, *, is_all: bool) -> int:
    known = sizes.sizing.num_samples
    memory, why = recipe.memory, "the recipe's"
    if known is not None and (is_all or known < memory):
        memory, why = known, "all samples of the data"
    chosen: int = sizes.choose("method.memory", memory, why, method.memory)
    return chosen


def _at_most_passes(sizes: _Sizes, recipe_steps: int, passes: int) -> tuple[int, str]:
    """Steps with as many samples as the recipe's, at most so many passes over the data; and why."""
    steps = sizes.steps_of(recipe_steps)
    known = sizes.sizing.num_samples
    if known is None or steps <= passes * -(-known // sizes.batch):
        batch = sizes.sizing.recipe.stream.batch_size
        return steps, f"as many samples as {recipe_steps} steps of {batch}"
    return passes * -(-known // sizes.batch), f"{passes} pass{'es' if passes > 1 else ''}"


def _part(values: Mapping[str, Any], table: str) -> dict[str, Any]:
    """The fields of one table itself, without those of tables within it."""
    names = {
        name: name.removeprefix(f"{table}.") for name in values if name.startswith(f"{table}.")
    }
    return {short: values[name] for name, short in names.items() if "." not in short}
