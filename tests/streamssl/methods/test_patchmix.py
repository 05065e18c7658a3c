"""PatchMix as a whole: what is mixed, what must be found, and who makes the keys."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.config.methods.patchmix_config import PatchMixConfig
from streamssl.methods.patchmix import (
    EncodedViews,
    MixingRing,
    MixingTargets,
    PatchMix,
    identity_targets,
    mix_patches,
    mixture_targets,
    patchmix_losses,
    source_targets,
)
from streamssl.modules.losses import soft_info_nce
from tests.streamssl.epochs import classes_apart, in_epochs, patterned, run
from tests.streamssl.tiny import TinyBackbone, built
from tests.streamssl.tiny import images as make_images

CONFIG = PatchMixConfig(patch_size=4, dim=6, hidden_dim=16, momentum=0.9)
ALONE = replace(CONFIG, keys="own")
# Every sample has a pattern of its own: what is contrasted here are samples.
CLASSES = 32


class DropsPaths(nn.Module):
    """Stands where a vision transformer drops paths."""

    drop_prob = 0.5

    def forward(self, x: Tensor) -> Tensor:
        return x


def build(config: PatchMixConfig = CONFIG, seed: int = 0) -> PatchMix:
    torch.manual_seed(seed)
    backbone = TinyBackbone(norm=DropsPaths())
    return built(config, backbone, num_views=(1, 1, 2), seed=seed, num_steps=20)


def views(numbers: list[int], step: int) -> list[Tensor]:
    return [
        patterned(numbers, 1, 16, step, CLASSES),
        patterned(numbers, 1, 16, 300 + step, CLASSES),
        patterned(numbers, 2, 8, 600 + step, CLASSES),
    ]


def train(method: PatchMix, steps: range, lr: float = 0.05) -> list[float]:
    return run(method, steps, views=views, numbers=in_epochs(32, 8), lr=lr)


@pytest.mark.parametrize("num_mixed", [1, 2, 3])
def test_a_mixed_image_has_patches_of_the_next_images(num_mixed: int) -> None:
    """Group j of image g must be that of image g + j, at its own place."""
    num, patch, side = 5, 2, 6
    # Every pixel tells its image and its patch.
    ids = torch.arange(num).view(-1, 1, 1, 1) * 100
    grid = torch.arange(9).view(3, 3).repeat_interleave(patch, 0).repeat_interleave(patch, 1)
    images = (ids + grid).float().expand(num, 3, side, side)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    mixed = mix_patches(
        images, order, patch_size=patch, num_mixed=num_mixed, following=images[: num_mixed - 1]
    )
    group = 9 // num_mixed
    for place, number in enumerate(order.tolist()):
        shift = min(place // group, num_mixed) % num_mixed if place < group * num_mixed else 0
        row, column = divmod(number, 3)
        found = mixed[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        expected = (torch.arange(num) + shift) % num * 100 + number
        assert (found == expected.view(-1, 1, 1, 1)).all()


def test_targets_follow_shared_sources() -> None:
    """m = 3: thirds for sources; 1, 2, 3, 2, 1 ninths for mixtures; around the ring."""
    ring = MixingRing(offset=4, length=7, num_columns=7)
    source = source_targets(2, ring, num_mixed=3, smoothing=0.0)
    assert torch.allclose(source[1, [5, 6, 0]], torch.tensor(1 / 3)) and source[1].sum() == 1
    mixture = mixture_targets(2, ring, num_mixed=3, smoothing=0.0)
    expected = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0]) / 9
    torch.testing.assert_close(mixture[0, [2, 3, 4, 5, 6]], expected)
    smooth = identity_targets(1, ring, smoothing=0.1)
    torch.testing.assert_close(smooth[0, 4], torch.tensor(0.9 + 0.1 / 7))
    torch.testing.assert_close(smooth.sum(), torch.tensor(1.0))


def test_the_loss_of_equal_similarities_is_ln_g() -> None:
    """The plateau of a collapsed encoder."""
    q, targets = F.normalize(torch.ones(4, 3), dim=1), torch.full((4, 6), 1 / 6)
    loss = soft_info_nce(q, q[:1].expand(6, 3), targets, 0.2)
    assert math.isclose(float(loss), math.log(6), rel_tol=1e-6)


def test_gradients_of_the_loss() -> None:
    """Of all queries, compared with differences in float64; keys get none."""
    generator = torch.Generator().manual_seed(0)

    def rows(num: int) -> Tensor:
        return torch.randn(num, 3, generator=generator, dtype=torch.float64)

    ring = MixingRing(0, 4, 4)
    targets = MixingTargets(
        identity_targets(4, ring, smoothing=0.1),
        source_targets(4, ring, num_mixed=2, smoothing=0.0),
        mixture_targets(4, ring, num_mixed=2, smoothing=0.0),
    )
    k1, k2, mixed_k1 = (rows(4).requires_grad_() for _ in range(3))

    def loss(q1: Tensor, mixed_q2: Tensor, crops: Tensor, mixed_crops: Tensor) -> Tensor:
        encoded = EncodedViews(q1, k1, k2, mixed_k1, mixed_q2, crops, mixed_crops)
        return torch.stack(list(patchmix_losses(encoded, targets, 0.2, None).values())).sum()

    queries = tuple(rows(num).requires_grad_() for num in (4, 4, 8, 8))
    assert torch.autograd.gradcheck(loss, queries)
    loss(*queries).backward()
    assert k1.grad is None and k2.grad is None and mixed_k1.grad is None


def test_momentum_follows_the_step() -> None:
    """In the authors' code a shadowed variable keeps it for an epoch."""
    method = build()
    found = [
        method.loss(views(list(range(8)), step), step=step).readings["key_momentum"]
        for step in (0, 1, 7, 19)
    ]
    expected = [1 - 0.1 * 0.5 * (1 + math.cos(math.pi * step / 20)) for step in (0, 1, 7, 19)]
    assert found == pytest.approx(expected)


def test_only_queries_drop_paths() -> None:
    """As in the authors' code."""
    method = build()
    assert method.key_encoder is not None
    assert method.key_encoder.network[0].norm.drop_prob == 0.0
    assert method.backbone.norm.drop_prob == 0.5


def test_the_copy_moves_before_keys_are_encoded() -> None:
    """It must follow the step before."""
    method = build()
    train(method, range(2))
    assert method.key_encoder is not None
    momentum = 1 - 0.1 * 0.5 * (1 + math.cos(math.pi * 2 / 20))
    weight = method.key_encoder.network[0].linear.weight.clone()
    method.loss(views(list(range(8)), 2), step=2)
    expected = momentum * weight + (1 - momentum) * method.backbone.linear.weight.detach()
    torch.testing.assert_close(method.key_encoder.network[0].linear.weight, expected)


def test_without_a_copy_keys_are_the_encoders_own() -> None:
    """As for ViT-T: no predictor on keys, no gradient to them."""
    method, seen = build(ALONE), []
    method.projector.register_forward_hook(lambda *args: seen.append(args[2].requires_grad))
    output = method.loss(views(list(range(8)), 0), step=0)
    output.loss.backward()
    assert method.key_encoder is None and "key_momentum" not in output.readings
    assert seen.count(False) == 2 and seen.count(True) == 4
    for name, parameter in method.named_parameters():
        assert parameter.grad is not None, name


def test_mixing_depends_on_the_step_alone() -> None:
    """A draw from the global generator would break resume."""
    method = build()
    images = make_images(6, 16, 0)
    before = torch.get_rng_state()
    one, again, other = (method._mix(images, step, "view 1") for step in (3, 3, 4))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("config", [CONFIG, ALONE], ids=["momentum", "alone"])
def test_it_learns_to_recognise_a_sample(config: PatchMixConfig) -> None:
    """Images of one sample must become similar, for any colour."""
    method = build(replace(config, dim=16, hidden_dim=32))

    def encode(crops: Tensor) -> Tensor:
        return method.projector(method.backbone(crops))

    before = classes_apart(encode, CLASSES)
    run(method, range(60), views=views, numbers=in_epochs(32, 32), lr=0.05)
    assert classes_apart(encode, CLASSES) > before + 0.15


def test_patches_and_batches_that_cannot_be_mixed_are_refused() -> None:
    """Found, allowed, remedy."""
    with pytest.raises(ConfigError, match=r"num_views=\(6, 2\).*two large views first"):
        built(CONFIG, TinyBackbone(), num_views=(6, 2))
    with pytest.raises(ConfigError, match=r"patch_size=4 with views of 16 x 6"):
        mix_patches(
            torch.zeros(3, 3, 16, 6),
            torch.arange(4),
            patch_size=4,
            num_mixed=2,
            following=torch.zeros(1, 3, 16, 6),
        )
    method = build(replace(CONFIG, num_mixed=5))
    with pytest.raises(ConfigError, match=r"num_mixed=5 with a global batch of 8.*over 9"):
        method.loss(views(list(range(8)), 0), step=0)
