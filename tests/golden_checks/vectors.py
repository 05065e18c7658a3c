"""One file of golden vectors, and the report of its comparison."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass
class Vectors:
    """Arrays of one file under a prefix such as `queue/` or `rank0/`; records which were read."""

    arrays: dict[str, NDArray[Any]]
    prefix: str = ""
    read: set[str] = field(default_factory=set)

    @classmethod
    def load(cls, path: Path) -> "Vectors":
        with np.load(path) as file:
            return cls({name: file[name] for name in file.files})

    def under(self, prefix: str) -> "Vectors":
        return Vectors(self.arrays, f"{self.prefix}{prefix}/", self.read)

    def names(self) -> list[str]:
        """Return the names under the prefix, without it."""
        return [n.removeprefix(self.prefix) for n in self.arrays if n.startswith(self.prefix)]

    def match(self, pattern: str) -> list[str]:
        """Return the first group of every name that `pattern` matches, each once, in order."""
        found = (re.match(pattern, name) for name in self.names())
        return list(dict.fromkeys(match[1] for match in found if match))

    def steps(self) -> Iterator[tuple[int, "Vectors"]]:
        """Yield every `step{t}` under the prefix, in order."""
        for step in sorted(int(text) for text in self.match(r"step(\d+)/")):
            yield step, self.under(f"step{step}")

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.arrays

    def array(self, name: str) -> NDArray[Any]:
        self.read.add(self.prefix + name)
        return self.arrays[self.prefix + name]

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.array(name).copy())

    def number(self, name: str, default: float | None = None) -> float:
        if name not in self and default is not None:
            return default
        return float(self.array(name))

    def count(self, name: str, default: int | None = None) -> int:
        return int(self.number(name, default))


@dataclass
class Report:
    """Largest absolute error of all comparisons, and messages of those that failed."""

    largest: float = 0.0
    num_compared: int = 0
    failures: list[str] = field(default_factory=list)

    def compare(self, name: str, found: Any, expected: Any, *, rtol: float = 1e-5) -> None:
        """Compare: |difference| <= 1e-6 + rtol |expected|; integers must be equal."""
        a, b = _as_array(found), _as_array(expected)
        self.num_compared += 1
        if a.shape != b.shape:
            self.failures.append(f"{name}: shape {a.shape}, expected {b.shape}")
            return
        exact = np.issubdtype(b.dtype, np.integer)
        difference = np.abs(a.astype(np.float64) - b.astype(np.float64))
        worst = float(difference.max(initial=0.0))
        self.largest = max(self.largest, worst) if worst == worst else float("nan")
        allowed = np.zeros(b.shape) if exact else 1e-6 + rtol * np.abs(b.astype(np.float64))
        if not (difference <= allowed).all():
            self.failures.append(f"{name}: largest absolute error {worst:.3g}")

    def compare_gradient(self, name: str, found: Any, expected: Any) -> None:
        self.compare(name, found, expected, rtol=1e-4)

    def add(self, other: "Report") -> None:
        self.num_compared += other.num_compared
        self.failures += other.failures
        worst = max(self.largest, other.largest)
        self.largest = worst if other.largest == other.largest else float("nan")


def _as_array(value: Any) -> NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
