"""Drift: it is the same for any number of ranks, and starts the queue."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cluster.protocol.step_report import StepReport
from shards.errors import ConfigError
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.config.run_config import RunConfig
from streamssl.modules.drift import DriftProbe
from tests.gloo_ranks import with_ranks
from tests.streamssl.tiny import images
from tests.streamssl.training.test_learner import PLAIN, build, learn, numbers_of, of_twelve
from tests.tinyrun import tiny_moco, tiny_swav

NUM_STEPS = 24
QUEUE = QueueConfig(capacity=24, start_step=3)
SWAV = of_twelve(tiny_swav(), queue=QUEUE)
MOCO = of_twelve(tiny_moco(), queue=QueueConfig(capacity=24), key_batch_norm_rows=2)


def turned(degrees: float) -> Any:
    """Return an encoder to the plane with rotated features."""
    angle = math.radians(degrees)
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

    def encode(crops: Tensor) -> Tensor:
        return crops.mean((2, 3))[:, :2] @ turn.T

    return encode


def measure(probe: DriftProbe, step: int, degrees: float, seed: int = 0) -> float:
    probe.measure(images(8, 8, seed), turned(degrees), step=step, group=None)
    return float(probe.readings()["queue_drift"])


def test_drift_is_the_change_since_the_last_measurement() -> None:
    """1 - cos 60 degrees is a half, for any later images and sizes."""
    probe = DriftProbe(QueueConfig(capacity=8), 8, 2)
    assert math.isnan(measure(probe, 0, 0.0))
    assert measure(probe, 10, 60.0, seed=1) == pytest.approx(0.5, abs=1e-6)
    assert measure(probe, 20, 60.0) == pytest.approx(0.0, abs=1e-6)
    larger = DriftProbe(QueueConfig(capacity=8), 12, 2)
    assert math.isnan(measure(larger, 0, 0.0))
    assert measure(larger, 10, 60.0) == pytest.approx(0.5, abs=1e-6)


def test_drift_is_measured_once_in_the_age_of_the_oldest() -> None:
    """15 batches of 8 in a queue of 120; at most every ten steps."""
    for capacity, every in ((120, 15), (8, 10)):
        probe = DriftProbe(QueueConfig(capacity=capacity), 8, 2)
        looks = []
        for step in range(46):
            measure(probe, step, 0.0)
            looks.append(int(probe.num_looks))
        assert [step for step in range(1, 46) if looks[step] > looks[step - 1]] == [
            *range(every, 46, every)
        ]


def test_the_queue_starts_at_low_drift_and_stays_in_use() -> None:
    """Not before its step, and not before it is full."""
    config = QueueConfig(capacity=8, start_step=15, max_drift=0.1)
    probe = DriftProbe(config, 8, 2)
    started = []
    for step in range(60):
        measure(probe, step, {0: 0.0, 10: 10.0, 20: 70.0, 30: 80.0}.get(step, 80.0 * (step > 40)))
        started.append(probe.has_started(step, is_full=step > 16))
    assert started.index(True) == 17 and all(started[17:])
    assert int(probe.started) == 17


def test_the_queue_waits_for_low_drift() -> None:
    """70 degrees in ten steps are too much, 5 are not."""
    probe = DriftProbe(QueueConfig(capacity=8, max_drift=0.1), 8, 2)
    started = []
    for step in range(30):
        measure(probe, step, {0: 0.0, 10: 70.0, 20: 75.0}.get(step, 0.0))
        started.append(probe.has_started(step, is_full=True))
    assert started.index(True) == 20 and all(started[20:])


def test_without_a_limit_the_queue_starts_at_its_step() -> None:
    """As SwAV's authors do."""
    probe = DriftProbe(QueueConfig(capacity=8, start_step=5), 8, 2)
    assert [probe.has_started(step, is_full=True) for step in (4, 5)] == [False, True]
    assert not probe.has_started(5, is_full=False)


@pytest.fixture(scope="module")
def by_drift() -> tuple[RunConfig, int]:
    """Return a run with a limit between its first two drifts, and the step of the second."""
    config, method = SWAV, SWAV.method
    idle = replace(config, method=replace(method, queue=replace(method.queue, start_step=1000)))
    found = [report.readings["queue_drift"] for report in learn(None, build(idle), 21)]
    first, second = found[10], found[20]
    assert second < first
    queue = replace(method.queue, max_drift=(first + second) / 2, start_step=0)
    return replace(config, method=replace(method, queue=queue)), 20


def assert_same_numbers(ours: list[StepReport], theirs: list[StepReport]) -> None:
    """Compare losses and readings; some readings are means in single precision."""
    for found, expected in zip(ours, theirs, strict=True):
        numbers = numbers_of(expected)
        assert numbers_of(found) == pytest.approx(numbers, abs=1e-7, nan_ok=True)


@pytest.mark.slow
def test_changing_the_number_of_ranks_changes_nothing(by_drift: tuple[RunConfig, int]) -> None:
    """Queue, drift and the start of the queue must be those of one process."""
    config = by_drift[0]
    alone = build(config, torch.float64)
    expected = learn(None, alone, NUM_STEPS)
    member = build(config, torch.float64)
    found = learn(None, member, 7)
    for num_ranks, num_steps in ((2, 6), (3, 8)):
        members = [build(config, torch.float64) for _ in range(num_ranks)]
        for each in members:
            each.load(member.state())
        found += with_ranks(learn, num_ranks, members, [num_steps] * num_ranks)[0]
        assert len({each.digest() for each in members}) == 1
        member = members[-1]
    found += learn(None, member, NUM_STEPS - len(found))
    assert_same_numbers(found, expected)
    assert not math.isnan(expected[-1].readings["queue_drift"])
    assert [report.readings["queue_used"] for report in found] == [0.0] * 20 + [1.0] * 4
    tensors = alone.state().tensors
    for key, value in member.state().tensors.items():
        torch.testing.assert_close(value, tensors[key], rtol=1e-8, atol=1e-9, msg=key)


def test_a_restored_run_starts_its_queue_at_the_same_step(by_drift: tuple[RunConfig, int]) -> None:
    """Stopped at a measurement, between two, and at the start of the queue."""
    config, start = by_drift
    alone, last = build(config), build(config)
    expected = learn(None, alone, NUM_STEPS)
    found: list[StepReport] = []
    for stop in (10, 15, 20, NUM_STEPS):
        resumed = build(config)
        if found:
            resumed.load(last.state())
        found += learn(None, resumed, stop - len(found))
        last = resumed
    assert [report.loss for report in found] == [report.loss for report in expected]
    assert last.digest() == alone.digest()
    assert int(last.train_state.method.probe.started) == start


def test_measuring_does_not_change_the_network() -> None:
    """Batch norm must keep its statistics and its mode."""
    method = build(replace(tiny_swav(), backbone=PLAIN)).train_state.method
    before = {name: value.clone() for name, value in method.backbone.state_dict().items()}
    method._encode(images(4, 32, 0))
    for name, value in method.backbone.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(module.training for module in method.modules())


@pytest.mark.parametrize("limit", [0.0, -0.1, 2.5])
def test_an_impossible_drift_limit_is_refused(limit: float) -> None:
    """Found, allowed, remedy."""
    with pytest.raises(ConfigError, match=r"max_drift=.*above 0 and at most 2.*0\.175 fits"):
        QueueConfig(capacity=8, max_drift=limit)
    with pytest.raises(ConfigError, match=r"max_drift=0\.1; MoCo has no loss without its queue"):
        replace(MOCO.method, queue=QueueConfig(capacity=24, max_drift=0.1))
