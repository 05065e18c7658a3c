"""What holds for every method that `tiny_methods` lists: it goes on after a stop, and it learns."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.crops import recipe as crops
from streamssl import checkpoint
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.config.run_config import RunConfig
from streamssl.optim.optim_config import OptimConfig
from streamssl.optim.optimizers import build_optimizer
from streamssl.training.train_state import build_state
from tests.streamssl.tiny_methods import NUM_SAMPLES, TINY, build
from tests.tinyrun import BATCH, CPU, assert_same, tiny_swav, train_on_noise


def run_of(name: str) -> RunConfig:
    """A whole run of the method: the smallest ResNet, with drop path, on batches of noise."""
    method, num_views = TINY[name]
    if name == "mochi":
        method = replace(method, queue=QueueConfig(capacity=4 * BATCH), start_step=1)
    is_pair = sum(num_views) == 2
    views = crops.byol(size=32) if is_pair else crops.swav(counts=(2, 2), sizes=(32, 16))
    return tiny_swav(method=method, crops=views, optim=OptimConfig(name="lars", base_lr=0.1))


@pytest.mark.parametrize("name", TINY)
def test_a_restored_run_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Momentum copies, queues and who is in them are in the checkpoint, or nothing is."""
    config = run_of(name)
    unbroken, restored = build_state(config, CPU), build_state(config, CPU)
    train_on_noise(config, unbroken, 3)
    place = checkpoint.save(tmp_path, checkpoint.take(unbroken), config.method_name, keep=1)
    for value in restored.method.state_dict().values():
        value.add_(1)
    checkpoint.restore(place, restored, config.method_name)
    assert_same(unbroken, restored)
    ours, theirs = (train_on_noise(config, state, 2) for state in (unbroken, restored))
    assert [report.loss.item() for report in ours] == [report.loss.item() for report in theirs]
    assert_same(unbroken, restored)


def noisy_views(name: str, step: int) -> list[Tensor]:
    """Blue tells the image; red and green, six times as strong, change from crop to crop."""
    generator = torch.Generator().manual_seed(step)
    blue = torch.randn(NUM_SAMPLES, 1, 2, 2, generator=generator, dtype=torch.float64)
    views = []
    for num in TINY[name][1]:
        noise = torch.randn(num, NUM_SAMPLES, 3, 2, 2, generator=generator, dtype=torch.float64)
        strong, weak = 3 * noise[:, :, :2], blue + 0.5 * noise[:, :, 2:]
        views.append(torch.cat([strong, weak], dim=2).flatten(0, 1))
    return views


@torch.no_grad()
def found_again(method: nn.Module, name: str) -> float:
    """How often the backbone finds an image's other crop among those of eight images."""
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
    """Its own loss must make features of it, in a hundred steps of a linear backbone."""
    method = build(name).train()
    optimizer = build_optimizer(
        OptimConfig(name="adamw", base_lr=0.01), method.parameters_to_optimise()
    )
    before = found_again(method, name)
    for step in range(100):
        optimizer.zero_grad()
        method.loss(noisy_views(name, step), step=step).loss.backward()
        optimizer.step()
        method.after_step(step)
    assert found_again(method, name) > before + 0.3
