"""SwAV as a whole: what it swaps, what it freezes, what it keeps between steps."""

import math

import torch
from torch import Tensor

from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.methods.swav import SwAV, swap_assignments
from streamssl.modules.feature_queue import FeatureQueue
from streamssl.modules.prototypes import Prototypes
from streamssl.optim.optim_config import OptimConfig
from streamssl.optim.optimizers import build_optimizer
from tests.streamssl.tiny import TinyBackbone, built, images

CONFIG = SwAVConfig(num_prototypes=10, dim=6, hidden_dim=8, freeze_steps=2)
WITH_QUEUE = SwAVConfig(
    num_prototypes=10, dim=6, hidden_dim=8, freeze_steps=2, queue=QueueConfig(capacity=8)
)


def build(config: SwAVConfig = CONFIG, seed: int = 0) -> SwAV:
    torch.manual_seed(seed)
    return built(config, TinyBackbone(), num_views=(2, 3), seed=seed)


def views(step: int, num_samples: int = 4) -> list[Tensor]:
    return [images(2 * num_samples, 16, step), images(3 * num_samples, 8, 100 + step)]


def train(method: SwAV, steps: range) -> list[float]:
    optimizer = build_optimizer(
        OptimConfig(name="sgd", base_lr=0.1), method.parameters_to_optimise()
    )
    losses = []
    for step in steps:
        optimizer.zero_grad()
        output = method.loss(views(step), step=step)
        output.loss.backward()
        method.after_backward(step)
        optimizer.step()
        method.after_step(step)
        losses.append(output.loss.item())
    return losses


def test_the_head_sees_crops_of_all_sizes_at_once() -> None:
    """Its batch norm must see all crops of all views, crop-major."""
    method, seen = build(), []
    method.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    given = views(0)
    method.loss(given, step=0)
    assert len(seen) == 1 and seen[0].shape == (20, 12)
    torch.testing.assert_close(seen[0][8:], method.backbone(given[1]).detach())


def test_prototypes_are_frozen_in_the_first_steps() -> None:
    """They are normalised from the start, and trained from `freeze_steps` on."""
    method = build()
    method.prototypes.normalise_()
    before = method.prototypes.weight.detach().clone()
    train(method, range(2))
    torch.testing.assert_close(method.prototypes.weight.detach(), before)
    train(method, range(2, 4))
    assert (method.prototypes.weight.detach() - before).abs().max() > 1e-4


def test_the_queue_is_used_only_when_full_and_after_its_start() -> None:
    """A partly filled queue, or one before `start_step`, must not be used."""
    method = build(WITH_QUEUE)
    used = [method.loss(views(step), step=step).readings["queue_used"] for step in range(4)]
    assert used == [0.0, 0.0, 1.0, 1.0]
    late = SwAVConfig(
        num_prototypes=10, dim=6, hidden_dim=8, queue=QueueConfig(capacity=8, start_step=3)
    )
    method = build(late)
    used = [method.loss(views(step), step=step).readings["queue_used"] for step in range(4)]
    assert used == [0.0, 0.0, 0.0, 1.0]


def test_there_is_no_queue_by_default() -> None:
    """A queue of 65,536 by default is 256 batches old."""
    method = build(SwAVConfig(num_prototypes=10, dim=6, hidden_dim=8))
    assert method.probe is None and len(method.queues) == 0
    for step in range(3):
        assert method.loss(views(step), step=step).readings["queue_used"] == 0.0


def test_each_assigned_crop_has_a_queue_of_its_own_embeddings() -> None:
    """Newest first, in sample order within a batch, as in the authors' code."""
    config = WITH_QUEUE
    prototypes, queues = Prototypes(10, 6), [FeatureQueue(8, 6), FeatureQueue(8, 6)]
    prototypes.normalise_()
    swaps = [
        swap_assignments(
            torch.randn(8, 6), prototypes, queues, config, num_crops=2, step=step, group=None
        )
        for step in range(2)
    ]
    for crop, queue in enumerate(queues):
        rows = slice(4 * crop, 4 * crop + 4)
        expected = torch.cat([swap.embeddings[rows] for swap in reversed(swaps)])
        assert torch.equal(queue.newest_first(), expected.detach())


def test_the_loss_of_a_collapsed_encoder_is_ln_k() -> None:
    """Equal features must give uniform assignments and the plateau ln K."""
    prototypes = Prototypes(10, 6)
    prototypes.normalise_()
    features = torch.randn(1, 6).expand(8, 6)
    config = SwAVConfig(num_prototypes=10, dim=6, temperature=1e6)
    swap = swap_assignments(features, prototypes, [], config, num_crops=2, step=0, group=None)
    torch.testing.assert_close(swap.assignments[0], torch.full((4, 10), 0.1))
    assert math.isclose(swap.loss.item(), math.log(10), rel_tol=1e-4)


def test_gradients_reach_all_trained_parts_but_no_assignments() -> None:
    """Backbone, head and prototypes learn; assignments are constants."""
    method = build()
    method.loss(views(0), step=0).loss.backward()
    for name, parameter in method.named_parameters():
        # The bias before batch norm has a zero gradient, but it has one.
        assert parameter.grad is not None, name
    swap = swap_assignments(
        torch.randn(8, 6, requires_grad=True),
        method.prototypes,
        [],
        CONFIG,
        num_crops=2,
        step=0,
        group=None,
    )
    assert swap.scores.requires_grad and not any(q.requires_grad for q in swap.assignments.values())


def test_assignments_are_float32_under_autocast() -> None:
    """bf16 features must be compared with prototypes in float32."""
    prototypes, features = Prototypes(10, 6), torch.randn(8, 6).bfloat16()
    prototypes.normalise_()

    def swap(x: Tensor) -> tuple[Tensor, Tensor]:
        result = swap_assignments(x, prototypes, [], CONFIG, num_crops=2, step=0, group=None)
        return result.loss, result.assignments[0]

    expected = swap(features.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = swap(features)
        method_loss = build().loss(views(0), step=0).loss
    assert method_loss.dtype == torch.float32
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_learning_lowers_the_loss() -> None:
    """Crops of the same colour must get the same assignment."""
    method = build(SwAVConfig(num_prototypes=10, dim=6, hidden_dim=16, freeze_steps=0))
    optimizer = build_optimizer(
        OptimConfig(name="sgd", base_lr=0.1), method.parameters_to_optimise()
    )
    colours = 3.0 * torch.randn(16, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    losses = []
    for step in range(40):
        crops = [group + colours.repeat(len(group) // 16, 1, 1, 1) for group in views(step, 16)]
        optimizer.zero_grad()
        output = method.loss(crops, step=step)
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.7 * losses[0]
