"""MoCo v3: symmetric contrast within the batch, a momentum copy, frozen patches."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.config.methods.moco_v3_config import MoCoV3Config
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.methods.moco_v3 import contrast_with_batch
from streamssl.modules.backbones import build_backbone, sine_positions
from streamssl.modules.heads import moco_v3_head
from tests.streamssl.tiny import TinyBackbone, built, images
from tests.streamssl.tiny_methods import build, views_of

GENERATOR = torch.Generator().manual_seed(0)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=GENERATOR, dtype=torch.float64)


def test_loss_is_that_of_the_paper() -> None:
    """Algorithm 1: cross entropy with the own key, times 2T."""
    q, k = noise(5, 6), noise(5, 6)
    cosines = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T
    p = (cosines / 0.3).softmax(dim=1).diagonal()
    loss, logits = contrast_with_batch(q, k, 0.3, None)
    torch.testing.assert_close(loss, -2 * 0.3 * p.log().mean())
    torch.testing.assert_close(logits, cosines / 0.3)


def test_gradients_of_the_loss() -> None:
    """Compared with differences in float64; keys get no gradient."""
    q, k = noise(4, 6).requires_grad_(), noise(4, 6).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: contrast_with_batch(x, k, 0.3, None)[0], q)
    contrast_with_batch(q, k, 0.3, None)[0].backward()
    assert k.grad is None


def test_the_copy_moves_before_keys_are_encoded() -> None:
    """The order is queries, average, keys."""
    method = build("moco-v3")
    with torch.no_grad():
        method.backbone.linear.weight += 1.0
    before = method.key_encoder.network[0].linear.weight.clone()
    method.loss(views_of("moco-v3", 0), step=0)
    after = method.key_encoder.network[0].linear.weight
    torch.testing.assert_close(after, 0.9 * before + 0.1 * method.backbone.linear.weight.detach())


def test_heads_of_resnets_and_transformers() -> None:
    """Layers, last norms, and no bias."""

    def kinds(head: nn.Module) -> list[str]:
        assert all(layer.bias is None for layer in head if isinstance(layer, nn.Linear))
        return [type(layer).__name__ for layer in head]

    layer = ["Linear", "BatchNorm1d", "ReLU"]
    resnet = built(MoCoV3Config(hidden_dim=8), TinyBackbone(), num_views=(2,), num_steps=1)
    assert (
        kinds(resnet.projection) == layer + layer[:2]
        and kinds(resnet.predictor) == layer + layer[:1]
    )
    vit = built(MoCoV3Config(head="vit", hidden_dim=8), TinyBackbone(), num_views=(2,), num_steps=1)
    assert (
        kinds(vit.projection) == layer * 2 + layer[:2] and kinds(vit.predictor) == layer + layer[:2]
    )
    assert not moco_v3_head(4, 8, 6, num_layers=2, ends_in_norm=True)[-1].affine


def test_frozen_patches_stay_random_and_positions_fixed() -> None:
    """Neither may be trained."""
    options = {"depth": 1, "embed_dim": 32, "num_heads": 2}
    config = BackboneConfig(name="vit_small_patch16_224", options=options, patches="moco-v3")
    model = build_backbone(config, 32)
    positions = model.pos_embed
    assert not positions.requires_grad and not model.patch_embed.proj.weight.requires_grad
    assert torch.equal(positions[:, 1:], sine_positions(8, 8, 32))
    assert not positions[:, 0].any() and len(positions[0].unique(dim=0)) == 65
    assert model.blocks[0].attn.qkv.weight.requires_grad
    trained = built(MoCoV3Config(head="vit", hidden_dim=8), model, num_views=(2,), num_steps=1)
    frozen = {id(positions), id(model.patch_embed.proj.weight), id(model.patch_embed.proj.bias)}
    assert not frozen & {id(p) for p in trained.parameters_to_optimise()}
    assert trained.loss([images(8, 32, 0)], step=0).loss.isfinite()


def test_freezing_patches_of_a_resnet_is_refused() -> None:
    """A ResNet has no patches; the message has its name."""
    with pytest.raises(ConfigError, match=r"patches='moco-v3' with backbone 'resnet18'"):
        build_backbone(BackboneConfig(name="resnet18", patches="moco-v3"), 32)
