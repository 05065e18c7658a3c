"""Phases: where the time of a step goes, on a CPU and on a GPU, which works on its own."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from streamssl.training.utilization import Utilization, peak_flops


class Phases:
    """Told what a step does; `take` gives the seconds of each phase since it was asked last.

    On a GPU the time is that between the kernels of a phase; of those that still run `take` tells
    the next time. `utilization` counts operations.
    """

    def __init__(self, device: torch.device, utilization: Utilization | None = None) -> None:
        self._on_gpu = device.type == "cuda"
        self._utilization = utilization
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What happens inside is this phase."""
        if self._on_gpu:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            yield
            last.record()
            self._events.append((name, first, last))
            return
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Operations inside are counted, where they can be held against something."""
        with nullcontext() if self._utilization is None else self._utilization.counting():
            yield

    def add(self, name: str, seconds: float) -> None:
        """Seconds that were measured elsewhere."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Seconds by phase, rounded as the log has them."""
        running = []
        for name, first, last in self._events:
            if last.query():
                self.add(name, first.elapsed_time(last) / 1000)
            else:
                running.append((name, first, last))
        found, self._seconds, self._events = self._seconds, {}, running
        return {name: round(seconds, 4) for name, seconds in found.items()}

    def readings(self) -> dict[str, float]:
        """What a step that ends now says of its device, where that is known."""
        return {} if self._utilization is None else self._utilization.step_ended()


def phases_of(device: torch.device, precision: str) -> Phases:
    """Phases of steps on this device, whose operations are counted if it is a known GPU."""
    peak = peak_flops(device, precision)
    return Phases(device, None if peak is None else Utilization(peak))
