"""Rules by which sizes of a method follow from the batch and the data (`--sizes auto`).

R is the recipe's value at its batch, B the batch, N the samples of the data if they are known.

- Rows from which assignments are computed: 4,096 for 3,000 prototypes, as in SwAV's 4096 without a
  queue and its 256 with a queue of 3,840. A batch with as many rows gets no queue. A queue holds
  whole batches and at most 15 of them, SwAV's 3,840 at 256: older entries disturb ("too
  inconsistent", README of SwAV; "smaller queue solved it", its issue 69).
- Prototypes: R, at most 3,000 for 4,096 of those rows, at most one for 100 samples of the data
  (CIFAR-10 has 512 for 50,000 in lightly's table, and 3,000 are too many in solo-learn's); for
  clusters of a memory, at most one for 20 of its samples (3,000 for a window of 65,536 here).
- Epsilon: R with 4,096 rows or more, else at most 0.03, as SwAV's authors advise if assignments
  stay uniform, and as in SEER.
- Frozen prototypes: as many samples as in the recipe (an epoch of ImageNet in both of SwAV's
  batches), at most one pass over the data.
- Start of a queue: as many samples as in the recipe, at most 15 passes over the data; at once if
  the queue is one batch (SwAV's at 2560). If the recipe has no queue, when drift moves the scores
  of the oldest entry by less than epsilon: its change is sqrt(1 - cos^2) long, and 1 / sqrt(D) of
  that lies along a prototype, so cos^2 must be over 1 - D epsilon^2 (derived).
- MoCo's queue: R, at most a twelfth of the data, in whole batches (4,096 for CIFAR-10's 50,000 in
  its authors' demonstration; more gained nothing). MoCHi mixes the same share of it.
- Memories of DeepCluster-v2, SeLa-v2 and SpCL: in epochs all of the data, in a stream R, at most
  the data; relabelled after as many samples as in the recipe.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Final

from streamssl.config.parts.queue_config import QueueConfig

ROWS_PER_PROTOTYPE: Final = 4096 / 3000
MAX_QUEUED_BATCHES: Final = 15
SAMPLES_PER_PROTOTYPE: Final = 100
REMEMBERED_PER_PROTOTYPE: Final = 20
MANY_ROWS: Final = 4096
SHARP_EPSILON: Final = 0.03
MAX_PASSES_BEFORE_QUEUE: Final = 15
SAMPLES_PER_KEY: Final = 12
_UNLIMITED: Final = 1 << 62


@dataclass(slots=True)
class SizeRules:
    """Batch, data and overrides of a run, and the sizes derived so far, with their origins.

    `by_hand` names settings that the user gave, such as `method.num_prototypes`; `num_samples` is
    None if the size of the data is not known.
    """

    batch: int
    recipe_batch: int
    num_samples: int | None = None
    by_hand: frozenset[str] = frozenset()
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def choose(self, name: str, value: Any, why: str, given: Any) -> Any:
        """Record and return the value of a setting: `given` if it was given by hand."""
        if name in self.by_hand:
            value, why = given, "by hand"
        self.values[name], self.origins[name] = value, why
        return value

    def steps_of(self, recipe_steps: int) -> int:
        """Return the steps of this run that take as many samples as `recipe_steps`."""
        return -(-recipe_steps * self.recipe_batch // self.batch)

    def steps_within_passes(self, recipe_steps: int, passes: int) -> tuple[int, str]:
        """Return `steps_of`, at most so many passes over the data, and the reason."""
        steps, known = self.steps_of(recipe_steps), self.num_samples
        if known is None or steps <= passes * -(-known // self.batch):
            return steps, f"as many samples as {recipe_steps} steps of {self.recipe_batch}"
        return passes * -(-known // self.batch), f"{passes} pass{'es' if passes > 1 else ''}"

    def chosen(self, table: str) -> dict[str, Any]:
        """Return the chosen fields of one table, without those of tables inside it."""
        names = {name: name.removeprefix(f"{table}.") for name in self.values}
        return {
            short: self.values[name]
            for name, short in names.items()
            if short != name and "." not in short
        }


def num_queued(num_prototypes: int, batch: int) -> int:
    """Return the rows of a queue, in whole batches, for so many prototypes; 0 is no queue."""
    missing = num_prototypes * ROWS_PER_PROTOTYPE - batch
    num_batches = min(MAX_QUEUED_BATCHES, -(-round(missing) // batch))
    return max(0, num_batches) * batch


def max_prototypes(num_rows: int | None, num_samples: int | None) -> int:
    """Return how many prototypes so many rows and so much data allow; None is unlimited."""
    by_rows = _UNLIMITED if num_rows is None else int(num_rows / ROWS_PER_PROTOTYPE)
    by_data = _UNLIMITED if num_samples is None else num_samples // SAMPLES_PER_PROTOTYPE
    return max(2, min(by_rows, by_data))


def max_drift(epsilon: float, dim: int) -> float:
    """Return the drift (1 - a cosine) above which it blurs the assignments."""
    return float(f"{1 - math.sqrt(max(0.0, 1 - dim * epsilon**2)):.3g}")


def size_prototypes(rules: SizeRules, wanted: int, given: int) -> int:
    """Choose the number of prototypes of a batch and a queue."""
    known, max_rows = rules.num_samples, (1 + MAX_QUEUED_BATCHES) * rules.batch
    limit = max_prototypes(max_rows, known)
    why = f"the recipe's {wanted}"
    if wanted > limit:
        why = f"3,000 for 4,096 rows, of which there are at most {max_rows:,}"
        if limit < max_prototypes(max_rows, None):
            why = f"one for {SAMPLES_PER_PROTOTYPE} of {known:,} samples"
    chosen: int = rules.choose("method.num_prototypes", min(wanted, limit), why, given)
    return chosen


def size_epsilon(rules: SizeRules, num_rows: int, wanted: float, given: float) -> float:
    """Choose Sinkhorn's epsilon for assignments from so many rows."""
    epsilon, why = wanted, f"the recipe's, with {num_rows} rows"
    if num_rows < MANY_ROWS and epsilon > SHARP_EPSILON:
        epsilon, why = SHARP_EPSILON, f"sharper, with {num_rows} rows, below {MANY_ROWS}"
    chosen: float = rules.choose("method.epsilon", epsilon, why, given)
    return chosen


def size_capacity(rules: SizeRules, num_prototypes: int, given: QueueConfig | None) -> int:
    """Choose the rows of a queue for so many prototypes; 0 if a batch is enough."""
    batch = rules.batch
    capacity = num_queued(num_prototypes, batch)
    if not capacity and "method.queue.capacity" not in rules.by_hand:
        why = f"none: {batch} rows are enough for {num_prototypes} prototypes"
        rules.origins["method.queue"] = why
        return 0
    why = f"in whole batches: {batch} rows are few for {num_prototypes} prototypes"
    chosen: int = rules.choose("method.queue.capacity", capacity, why, given and given.capacity)
    return chosen


def size_queue_start(
    rules: SizeRules,
    capacity: int,
    given: QueueConfig | None,
    recipe: QueueConfig | None,
    drift_limit: float,
) -> QueueConfig:
    """Choose the start of a queue: a step as in the recipe, or by drift if it has no queue."""
    start, why = 0, "a queue of one batch is fresh"
    drift = None if given is None else given.max_drift
    if capacity > rules.batch and recipe is None:
        why, drift = "drift decides", drift_limit
        rules.origins["method.queue.max_drift"] = "moves scores by less than epsilon"
    elif capacity > rules.batch and recipe is not None:
        start, why = rules.steps_within_passes(recipe.start_step, MAX_PASSES_BEFORE_QUEUE)
    start = rules.choose("method.queue.start_step", start, why, given and given.start_step)
    return QueueConfig(capacity=capacity, start_step=start, max_drift=drift)


def size_key_queue(rules: SizeRules, wanted: int, given: int) -> int:
    """Choose the keys of MoCo's queue."""
    known, capacity, why = rules.num_samples, wanted, f"the recipe's {wanted}"
    if known is not None and known // SAMPLES_PER_KEY < wanted:
        capacity, why = known // SAMPLES_PER_KEY, f"a twelfth of {known:,} samples"
    capacity = max(1, capacity // rules.batch) * rules.batch
    chosen: int = rules.choose("method.queue.capacity", capacity, f"{why}, in whole batches", given)
    return chosen


def size_memory(rules: SizeRules, wanted: int, given: int, *, is_all: bool) -> int:
    """Choose how many samples a memory holds; `is_all`: all of the data, however much it is."""
    known = rules.num_samples
    memory, why = wanted, "the recipe's"
    if known is not None and (is_all or known < memory):
        memory, why = known, "all samples of the data"
    chosen: int = rules.choose("method.memory", memory, why, given)
    return chosen


def size_cluster_heads(
    rules: SizeRules, memory: int, wanted: tuple[int, ...], given: tuple[int, ...]
) -> None:
    """Choose the number of clusters of each head for a memory of so many samples."""
    by_data = max_prototypes(None, rules.num_samples)
    limit = min(by_data, max(2, memory // REMEMBERED_PER_PROTOTYPE))
    why = f"the recipe's {max(wanted)}"
    if max(wanted) > limit:
        each = SAMPLES_PER_PROTOTYPE if limit == by_data else REMEMBERED_PER_PROTOTYPE
        why = f"one for {each} of the samples that are {'there' if limit == by_data else 'kept'}"
    heads = tuple(min(num, limit) for num in wanted)
    rules.choose("method.num_prototypes", heads, why, given)


def size_relabelling(
    rules: SizeRules, name: str, recipe_steps: int, given: int, *, memory: int, recipe_memory: int
) -> None:
    """Choose the steps between two labellings; a smaller memory is labelled sooner."""
    steps = max(1, round(rules.steps_of(recipe_steps) * memory / recipe_memory))
    why = f"as often as {recipe_steps} steps of {rules.recipe_batch}"
    rules.choose(f"method.{name}", steps, why, given)
