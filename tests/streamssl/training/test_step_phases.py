"""Phases of a step, and the utilization of a device."""

import pytest
import torch
from torch import nn

from streamssl.distributed.gradients import gradient_norm
from streamssl.training.step_phases import StepPhases
from streamssl.training.utilization import Utilization, peak_flops

CPU = torch.device("cpu")


def test_seconds_are_counted_once_in_their_phase() -> None:
    """A phase that is entered twice adds up, and `take` starts anew."""
    phases = StepPhases(CPU)
    for _ in range(2):
        with phases.phase("copy"):
            sum(range(300_000))
    phases.add("checkpoint", 1.5)
    found = phases.take()
    assert found.keys() == {"copy", "checkpoint"} and found["checkpoint"] == 1.5
    assert 0 < found["copy"] < 10 and phases.take() == {}


def test_a_step_that_breaks_leaves_no_time_behind() -> None:
    """The step is undone, and its time would count twice."""
    phases = StepPhases(CPU)
    with pytest.raises(RuntimeError), phases.phase("copy"):
        raise RuntimeError
    assert phases.take() == {}


def test_utilization_is_operations_relative_to_the_peak() -> None:
    """Forward and backward of (8, 16) @ (16, 4): three products of 2 * 8 * 16 * 4."""
    layer, x = nn.Linear(16, 4, bias=False), torch.ones(8, 16, requires_grad=True)
    utilization = Utilization(peak=3 * 2 * 8 * 16 * 4 * 10.0)  # ten such steps a second
    for _ in range(2):
        with utilization.counting():
            layer(x).sum().backward()
    assert utilization.step_ended(now=100.0) == {}
    found = utilization.step_ended(now=100.5)
    assert found == {"flops_utilization": pytest.approx(1 / 5)}


def test_only_known_devices_have_a_peak() -> None:
    """A utilization of a guessed peak would be wrong."""
    assert peak_flops(CPU, "bf16") is None
    assert StepPhases(CPU).mark() is None and StepPhases(CPU).readings(None) == {}


def test_norm_is_that_of_all_gradients_together() -> None:
    """As torch's own clipping computes it."""
    layer = nn.Linear(3, 2)
    layer(torch.ones(1, 3)).pow(2).sum().backward()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    expected = nn.utils.clip_grad_norm_(layer.parameters(), 1e9)
    torch.testing.assert_close(gradient_norm(optimizer), expected)
    optimizer.zero_grad()
    assert gradient_norm(optimizer) == 0
