"""StepPhases: seconds of each phase of a step, on a CPU or on an asynchronous GPU."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from streamssl.training.utilization import Utilization, peak_flops


class StepPhases:
    """Clock of the phases of a step.

    On a GPU the time is that between the first and the last kernel of a phase; `take` returns the
    time of phases that still run at the next call. `utilization` counts operations.
    """

    def __init__(self, device: torch.device, utilization: Utilization | None = None) -> None:
        self._on_gpu = device.type == "cuda"
        self._utilization = utilization
        self._seconds: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._last_mark: torch.cuda.Event | None = None
        self._device_seconds = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the block as this phase."""
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
        """Count the operations of the block, if the peak of the device is known."""
        with nullcontext() if self._utilization is None else self._utilization.counting():
            yield

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere."""
        self._seconds[name] = self._seconds.get(name, 0.0) + seconds

    def take(self) -> dict[str, float]:
        """Return the seconds of each phase since the last call, rounded as in the log."""
        running = []
        for name, first, last in self._events:
            if last.query():
                self.add(name, first.elapsed_time(last) / 1000)
            else:
                running.append((name, first, last))
        found, self._seconds, self._events = self._seconds, {}, running
        return {name: round(seconds, 4) for name, seconds in found.items()}

    def mark(self) -> torch.cuda.Event | None:
        """Mark this point of a step on the GPU, for `readings`; None if nothing is counted."""
        if self._utilization is None or not self._on_gpu:
            return None
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        return mark

    def readings(self, mark: torch.cuda.Event | None) -> dict[str, float]:
        """Return readings of the device for the step of `mark`, if its peak is known.

        Steps must be given in order, each after the GPU has reached its mark: it does not wait.
        """
        if self._utilization is None or mark is None:
            return {}
        if self._last_mark is not None:
            self._device_seconds += self._last_mark.elapsed_time(mark) / 1000
        self._last_mark = mark
        return self._utilization.step_ended(self._device_seconds)


def phases_of(device: torch.device, precision: str) -> StepPhases:
    """Return phases of steps on this device; on a known GPU they count operations."""
    peak = peak_flops(device, precision)
    return StepPhases(device, None if peak is None else Utilization(peak))
