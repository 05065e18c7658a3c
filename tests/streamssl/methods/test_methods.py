"""Promises of every method: it resumes, it learns from crops, its loss is float32."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.crops import recipe as crops
from shards.errors import ConfigError
from streamssl import checkpoint
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.config.run_config import METHODS, RunConfig
from streamssl.methods.base import step_generator
from streamssl.methods.registry import ALGORITHMS
from streamssl.optim.optim_config import OptimConfig
from streamssl.optim.optimizers import build_optimizer
from streamssl.training.train_state import build_state
from tests.streamssl.epochs import who
from tests.streamssl.tiny import TinyBackbone, built, images
from tests.streamssl.tiny_methods import NUM_SAMPLES, TINY, WITH_MEMORY, build
from tests.tinyrun import BATCH, CPU, assert_same, tiny_moco, tiny_swav, train_on_noise

OWN = {"swav": (tiny_swav().method, (2, 1)), "moco": (tiny_moco().method, (1, 1))}
EVERY: dict[str, tuple[Any, tuple[int, ...]]] = {
    **OWN,
    **TINY,
    **{name: (method, (2, 2)) for name, method in WITH_MEMORY.items()},
}


def run_of(name: str) -> RunConfig:
    """Return a whole run: the smallest ResNet, with drop path, on batches of noise."""
    method, num_views = EVERY[name]
    if name == "mochi":
        method = replace(method, queue=QueueConfig(capacity=4 * BATCH), start_step=1)
    is_pair = sum(num_views) == 2
    views = crops.byol(size=32) if is_pair else crops.swav(counts=(2, 2), sizes=(32, 16))
    return tiny_swav(method=method, crops=views, optim=OptimConfig(name="lars", base_lr=0.1))


@pytest.mark.parametrize("name", EVERY)
def test_resume_continues_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Momentum copies, queues, memories and labels must be in the checkpoint."""
    config = run_of(name)
    unbroken, restored = build_state(config, CPU), build_state(config, CPU)
    train_on_noise(config, unbroken, 3)
    place = checkpoint.save(tmp_path, checkpoint.take(unbroken), config.method_name, keep=1)
    for value in restored.method.state_dict().values():
        value.add_(1)
    checkpoint.restore(place, restored, config.method_name)
    assert_same(unbroken, restored)
    ours, theirs = (train_on_noise(config, state, 2) for state in (unbroken, restored))
    assert [report.loss for report in ours] == [report.loss for report in theirs]
    assert_same(unbroken, restored)


@pytest.mark.parametrize("name", EVERY)
def test_loss_is_float32_under_autocast_and_readings_hold_no_graph(name: str) -> None:
    """In bfloat16 normalisation and similarities are noise; a kept graph fills the memory."""
    config, num_views = EVERY[name]
    method = built(config, TinyBackbone(), num_views=num_views, num_steps=10)
    views = [images(num * BATCH, 16, place) for place, num in enumerate(num_views)]
    before = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = method.loss(views, step=0, samples=who(range(BATCH)))
    assert torch.equal(torch.get_rng_state(), before), "draws depend on seed and step alone"
    assert output.loss.dtype == torch.float32
    assert output.features.shape[0] == BATCH and not output.features.requires_grad
    for reading, value in output.readings.items():
        assert isinstance(value, float) or (value.ndim == 0 and not value.requires_grad), reading


@pytest.mark.parametrize("name", ["deepcluster", "sela", "spcl"])
def test_labels_are_computed_in_float32(name: str) -> None:
    """In bfloat16 the nearest neighbour or centroid is arbitrary."""
    torch.manual_seed(0)
    method = built(WITH_MEMORY[name], TinyBackbone(), num_views=(2,))
    keys = torch.arange(2 * BATCH)
    rows = torch.randn(len(method.memory.rows), len(keys), method.memory.rows.shape[2])
    method.memory.push(keys, F.normalize(rows, dim=2))
    seen: list[bool] = []
    label = "label" if name == "sela" else "cluster"
    original = getattr(method, label)

    def watch(*arguments: int) -> None:
        seen.append(torch.is_autocast_enabled("cpu"))
        original(*arguments)

    setattr(method, label, watch)
    first = 3 if name == "spcl" else 1
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for step in (first, first + 1):
            method.loss([images(8, 16, step)], step=step, samples=who(range(4)))
    assert seen == [False]


def noisy_views(name: str, step: int) -> list[Tensor]:
    """Return crops whose blue is that of the image; red and green are noise, six times stronger."""
    generator = torch.Generator().manual_seed(step)
    blue = torch.randn(NUM_SAMPLES, 1, 2, 2, generator=generator, dtype=torch.float64)
    views = []
    for num in TINY[name][1]:
        noise = torch.randn(num, NUM_SAMPLES, 3, 2, 2, generator=generator, dtype=torch.float64)
        strong, weak = 3 * noise[:, :, :2], blue + 0.5 * noise[:, :, 2:]
        views.append(torch.cat([strong, weak], dim=2).flatten(0, 1))
    return views


@torch.no_grad()
def retrieval_rate(method: nn.Module, name: str) -> float:
    """Return how often the backbone finds the other crop of an image among eight images."""
    method.eval()
    found = []
    for step in range(1000, 1016):
        views = noisy_views(name, step)
        first, second = views if sum(TINY[name][1]) == 2 else views[0].chunk(2)
        a, b = (F.normalize(method.backbone(view), dim=1) for view in (first, second))  # type: ignore[operator]
        found.append((a @ b.T).argmax(dim=1) == torch.arange(NUM_SAMPLES))
    method.train()
    return torch.cat(found).double().mean().item()


@pytest.mark.parametrize("name", TINY)
def test_a_method_learns_what_crops_of_an_image_share(name: str) -> None:
    """A hundred steps of a linear backbone must find it."""
    method = build(name).train()
    optimizer = build_optimizer(
        OptimConfig(name="adamw", base_lr=0.01), method.parameters_to_optimise()
    )
    before = retrieval_rate(method, name)
    for step in range(100):
        optimizer.zero_grad()
        method.loss(noisy_views(name, step), step=step).loss.backward()
        optimizer.step()
        method.after_step(step)
    assert retrieval_rate(method, name) > before + 0.3


VIEWS = [
    ("swav", (1,), r"crops_for_assign=\(0, 1\) with 1 crops"),
    ("deepcluster", (1,), r"\(0, 1\) with 1 crops"),
    ("sela", (1,), r"\(0, 1\) with 1 crops"),
    ("moco", (2, 6), r"num_views=\(2, 6\).*two views"),
    ("moco-v3", (3,), "MoCo v3 takes two views"),
    ("byol", (2, 6), r"num_views=\(2, 6\); BYOL takes two views"),
    ("simclr", (1,), r"num_views=\(1,\); SimCLR compares crops"),
    ("supcon", (1,), r"num_views=\(1,\); SupCon compares crops"),
    ("patchmix", (6, 2), r"num_views=\(6, 2\).*two large views first"),
]


@pytest.mark.parametrize(("name", "num_views", "words"), VIEWS)
def test_views_that_a_method_cannot_use_are_refused(
    name: str, num_views: tuple[int, ...], words: str
) -> None:
    """The crops of a run and its method must agree before the first step."""
    with pytest.raises(ConfigError, match=words):
        built(EVERY[name][0], TinyBackbone(), num_views=num_views)


def test_every_method_of_a_config_has_an_algorithm() -> None:
    """A name in config.toml must lead to a class."""
    assert set(METHODS.values()) <= set(ALGORITHMS)


def test_draws_depend_on_seed_step_and_purpose_alone() -> None:
    """Seed 0 step 1 must not be seed 1 step 0."""
    keys = [(0, 0, "a"), (0, 1, "a"), (1, 0, "a"), (0, 0, "b")]
    draws = [tuple(torch.randperm(50, generator=step_generator(*key)).tolist()) for key in keys]
    assert len(set(draws)) == len(draws)
    again = torch.randperm(50, generator=step_generator(*keys[0]))
    assert tuple(again.tolist()) == draws[0]
