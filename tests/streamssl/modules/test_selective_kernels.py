"""Selective kernels: two streams, one weight for each channel, in every bottleneck."""

import pytest
import torch

from shards.errors import ConfigError
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.modules.backbones import build_backbone
from streamssl.modules.selective_kernels import SelectiveKernels

OPTIONS = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "stem_type": "deep", "avg_down": True}


def test_a_channel_is_a_weighted_mean_of_its_two_streams() -> None:
    """Without a selection, half of each."""
    unit = SelectiveKernels(3, 5, stride=2, ratio=0.1).eval()
    unit.expand.weight.data.zero_()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    streams = unit.norm(unit.convolution(images)).relu()
    torch.testing.assert_close(unit(images), (streams[:, :5] + streams[:, 5:]) / 2)
    assert unit(images).shape == (2, 5, 4, 4) and unit.squeeze.out_channels == 32


def test_every_bottleneck_gets_selective_kernels() -> None:
    """Strides and widths are those of the replaced convolutions."""
    config = BackboneConfig(name="resnet50", options=OPTIONS, selective_kernels=0.0625)
    model = build_backbone(config, 32)
    units = [module for module in model.modules() if isinstance(module, SelectiveKernels)]
    assert [unit.convolution.stride[0] for unit in units] == [1, 2, 2, 2]
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(unit.expand.weight.grad is not None for unit in units)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_network_without_bottlenecks_is_refused() -> None:
    """ResNet-18 has none."""
    with pytest.raises(ConfigError, match=r"selective_kernels=0\.1 with backbone 'resnet18'"):
        build_backbone(BackboneConfig(name="resnet18", selective_kernels=0.1), 32)
    with pytest.raises(ConfigError, match=r"selective_kernels=2\.0; it must be from 0"):
        BackboneConfig(selective_kernels=2.0)
