"""Every recipe can be built and says what it is."""

import inspect
import re
from dataclasses import replace
from typing import Any

import pytest

from streamssl.config.run_config import METHODS
from streamssl.recipes import RECIPES, kind_of
from streamssl.recipes.swav_recipes import swav_demo
from streamssl.training.train_state import build_state
from tests.tinyrun import CPU, own_methods


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_states_paper_differences_and_results(name: str) -> None:
    """A run must be comparable with a publication."""
    text = inspect.getdoc(RECIPES[name]) or ""
    head, _, note = text.partition("\n\n")
    assert 20 < len(head) <= 100 and "\n" not in head
    assert re.match(r"Paper: arXiv:\d{4}\.\d{5}", note)
    if kind_of(name) == "small":
        assert "on a CPU" in head
        return
    if METHODS["fine-tune"] is not type(RECIPES[name]().method) and "distill" not in name:
        assert re.search(r"^Differs: ", note, re.MULTILINE)
    assert re.search(r"^Published: ", note, re.MULTILINE)


@pytest.mark.parametrize("name", RECIPES)
def test_a_published_number_has_a_source(name: str) -> None:
    """A reader must be able to look it up."""
    published = (inspect.getdoc(RECIPES[name]) or "").partition("\nPublished: ")[2]
    if re.search(r"\d+\.\d", published):
        assert "README" in published or "abstract" in published


OFFICIAL = [name for name in RECIPES if kind_of(name) == "official"]


@pytest.mark.parametrize("method", sorted(own_methods()))
def test_every_method_has_a_recipe_of_each_kind(method: str) -> None:
    """As its authors ran it, without an end, and for a CPU."""
    kinds = {kind_of(name) for name in RECIPES if RECIPES[name]().method_name == method}
    assert kinds == {"official", "stream", "small"}


VARIANTS = {"swav-large-batch": "swav", "moco-v3-vit": "moco-v3", "patchmix-cifar": "patchmix"}
VARIANTS |= {"simclr-multi-crop": "simclr", "spcl-domains": "spcl"}


@pytest.mark.parametrize("name", OFFICIAL)
def test_every_official_recipe_has_a_stream_variant(name: str) -> None:
    """Also versions that share a method, such as MoCo v1 and v2."""
    if RECIPES[name]().method_name in own_methods():
        assert f"{VARIANTS.get(name, name)}-stream" in RECIPES


def built_for(config: Any, num_steps: int) -> list[Any]:
    """Return what the settings of a run of so many steps give at some steps."""
    config = replace(config, num_steps=num_steps)
    optim, schedule = config.optim, config.schedule
    rates = [schedule.lr(step, num_steps, optim.base_lr) for step in (0, 100, 9_999)]
    return [rates, optim.final_weight_decay, getattr(config.method, "momentum_kind", "constant")]


STREAMS = [name for name in RECIPES if kind_of(name) == "stream"]


@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_does_not_depend_on_its_length(name: str) -> None:
    """Ten thousand steps must equal the first of a million."""
    config = RECIPES[name]()
    short, long = built_for(config, 10_000), built_for(config, 1_000_000)
    assert short == long and long[1:] == [None, "constant"]
    assert getattr(config.method, "mode", "stream") == "stream"
    assert config.num_steps == 1_000_000
    assert getattr(config.method, "memory", 0) <= 65_536


@pytest.mark.parametrize("name", RECIPES)
def test_queue_schedule_and_batch_of_a_recipe_fit(name: str) -> None:
    """A recipe must not fail after its start."""
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
    """The method must accept the views of the crops."""
    state = build_state(build(), CPU)
    assert sum(p.numel() for p in state.method.parameters()) < 4_000_000


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("swav")])
def test_queues_of_swav_hold_at_most_15_batches(name: str) -> None:
    """Its authors' limit; older entries disturb."""
    config = RECIPES[name]()
    queue = config.method.queue
    assert queue is None or queue.capacity <= 15 * config.stream.batch_size


MULTI_CROP = ("swav", "swav-large-batch", "deepcluster-v2", "sela-v2", "patchmix")


@pytest.mark.parametrize("name", [*MULTI_CROP, "simclr-multi-crop"])
def test_multi_crop_methods_have_small_crops(name: str) -> None:
    """Methods with multi-crop by their authors, or in SwAV's paper."""
    assert min(group.size for group in RECIPES[name]().crops.groups) == 96
