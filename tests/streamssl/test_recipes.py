"""Every recipe can be built and says what it is."""

import pytest

from streamssl.recipes import RECIPES
from streamssl.recipes.swav import swav_demo
from streamssl.run import build_state
from tests.tinyrun import CPU


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_lab_note(name: str) -> None:
    """A run nobody can place against a paper or a cost is not worth offering."""
    text = RECIPES[name].__doc__ or ""
    assert len(text.partition("\n")[0]) > 20
    assert "Paper" in text or "CPU" in text


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_together(name: str) -> None:
    """Queue, batch, views and schedule must agree before anything starts."""
    config = RECIPES[name]()
    queue = getattr(config.method, "queue", None)
    if queue is not None:
        assert queue.capacity % config.stream.batch_size == 0
    assert 0 <= config.schedule.warmup_steps < config.num_steps
    rates = [
        config.schedule.lr(step, config.num_steps, config.optim.base_lr)
        for step in range(0, config.num_steps, max(1, config.num_steps // 50))
    ]
    assert all(0 <= rate <= config.optim.base_lr for rate in rates)


SMALL = [build for name, build in RECIPES.items() if name.endswith("-small")]


@pytest.mark.parametrize("build", [*SMALL, swav_demo])
def test_a_small_recipe_can_be_built(build) -> None:
    """The method takes the views that the crops give."""
    state = build_state(build(), CPU)
    assert sum(p.numel() for p in state.method.parameters()) < 4_000_000
