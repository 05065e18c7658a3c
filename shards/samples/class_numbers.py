"""Class numbers of shard sets that were packed apart, so that a number means one class in a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

CLASSES_FILE: Final = "classes.txt"


@dataclass(frozen=True, slots=True)
class ClassNumbers:
    """Numbers of the classes `names` of a run.

    `lists` maps the numbers of each list of classes to those of the run, and `of_shard` names the
    list of each shard. A number beyond its list stays as it is.
    """

    names: tuple[str, ...]
    lists: tuple[tuple[int, ...], ...]
    of_shard: tuple[int, ...]

    def number(self, shard: int, label: int) -> int:
        """Return the number in the run of label `label` of a sample of row `shard`."""
        numbers = self.lists[self.of_shard[shard]]
        return numbers[label] if 0 <= label < len(numbers) else label


def join_classes(lists: Sequence[tuple[str, ...]], of_shard: Sequence[int]) -> ClassNumbers:
    """Return the numbers of all classes: those of the first list, then the new ones of the next."""
    names: dict[str, int] = {}
    for each in lists:
        for name in each:
            names.setdefault(name, len(names))
    numbers = tuple(tuple(names[name] for name in each) for each in lists)
    return ClassNumbers(tuple(names), numbers, tuple(of_shard))
