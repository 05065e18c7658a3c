"""Schedules: their ends, their corners, and what they refuse."""

import pytest

from shards.errors import ConfigError
from streamssl.optim.schedules import (
    ScheduleConfig,
    cosine,
    linearly_scaled_lr,
    rising_momentum,
    root_scaled_lr,
    stepped_lr,
)


def test_the_schedule_of_swav_has_the_ends_of_the_paper() -> None:
    """The base rate comes twice: last of the warm-up, first of the cosine."""
    schedule = ScheduleConfig(warmup_steps=10, start_lr=0.3, final_lr=0.0048)
    rates = [schedule.lr(step, 100, 4.8) for step in range(101)]
    assert rates[0] == 0.3
    assert rates[9] == pytest.approx(4.8) and rates[10] == pytest.approx(4.8)
    assert max(rates) <= 4.8 + 1e-12
    assert rates[100] == pytest.approx(0.0048)
    assert rates[55] == pytest.approx((4.8 + 0.0048) / 2)


def test_a_run_without_warm_up_starts_at_the_base_rate() -> None:
    """Also for the shortest run and the shortest warm-up."""
    for kind in ("swav", "warmup_cosine", "stepped", "constant"):
        assert ScheduleConfig(kind=kind).lr(0, 10, 0.6) == pytest.approx(0.6)  # type: ignore[arg-type]
    assert ScheduleConfig(warmup_steps=1, start_lr=0.1).lr(0, 1, 0.6) == pytest.approx(0.1)


def test_warmup_cosine_rises_from_zero_and_ends_at_the_final_rate() -> None:
    """MoCo v3, BYOL, SimCLR; the rate is constant after the end."""
    schedule = ScheduleConfig(kind="warmup_cosine", warmup_steps=4, final_lr=0.01)
    assert [schedule.lr(step, 20, 1.0) for step in (0, 2, 4)] == pytest.approx([0.0, 0.5, 1.0])
    assert schedule.lr(20, 20, 1.0) == schedule.lr(25, 20, 1.0) == pytest.approx(0.01)


def test_milestones_are_fractions_of_the_run() -> None:
    """MoCo v1: 120 and 160 of 200."""
    schedule = ScheduleConfig(kind="stepped", milestones=(0.6, 0.8))
    rates = [schedule.lr(step, 200, 0.03) for step in (0, 119, 120, 159, 160, 199)]
    assert rates == pytest.approx([0.03, 0.03, 0.003, 0.003, 0.0003, 0.0003])
    assert stepped_lr(5, base_lr=1.0, milestones=(), factor=0.5) == 1.0


def test_momentum_rises_to_one() -> None:
    """At the end the momentum copy does not move."""
    assert rising_momentum(0, num_positions=10, base_momentum=0.99) == pytest.approx(0.99)
    assert rising_momentum(10, num_positions=10, base_momentum=0.99) == 1.0


def test_cosine_is_constant_outside_its_range() -> None:
    """A step too many must not raise the rate again."""
    assert cosine(-1.0, 3.0, 1.0) == 3.0 and cosine(2.0, 3.0, 1.0) == 1.0


def test_rates_scale_with_the_batch() -> None:
    """Linearly per 256, or with the square root."""
    assert linearly_scaled_lr(0.3, 4096) == pytest.approx(4.8)
    assert root_scaled_lr(0.075, 4096) == pytest.approx(4.8)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "linear"}, "'linear'.*choose one"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
        ({"kind": "warmup_cosine", "start_lr": 0.1}, "does not use it"),
        ({"kind": "constant", "final_lr": 0.1}, "does not use it"),
        ({"milestones": (0.5,)}, "does not use it"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, object], words: str) -> None:
    """A misplaced setting must not be ignored."""
    with pytest.raises(ConfigError, match=words):
        ScheduleConfig(**settings)  # type: ignore[arg-type]
