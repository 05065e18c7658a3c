"""Backbones: networks of timm, adapted to the sizes of the crops.

Shape letters: N rows, S pixels, D = `num_features`.
"""

from difflib import get_close_matches
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from shards.errors import ConfigError
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.modules.selective_kernels import select_kernels

# Crops up to this side in pixels lose too much in a stem made for ImageNet.
SMALL_CROP = 64


def check_name(name: str) -> None:
    """Raise ConfigError unless timm has a model of this name."""
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
        raise ConfigError(
            f"backbone name={name!r} is no model of timm {timm.__version__}; "
            f"near it are {', '.join(close) or 'none'}; timm.list_models() lists all"
        )


def build_backbone(config: BackboneConfig, crop_size: int) -> nn.Module:
    """Build an encoder (N, 3, S, S) -> (N, D) with `num_features` = D, for S up to `crop_size`.

    Its `image_size` is `crop_size`. With the small stem a ResNet begins with a 3x3 convolution of
    stride 1 and no pooling, as is usual for CIFAR; a vision transformer has patches of 4 pixels (8
    above 32 pixels); other networks halve the stride of their first convolution. Raises ConfigError
    for an unknown name or option, and for a stem that the network cannot have.
    """
    check_name(config.name)
    is_small = config.stem == "small" or (config.stem == "auto" and crop_size <= SMALL_CROP)
    model = _create(config, {})
    if isinstance(model, VisionTransformer):
        size: dict[str, Any] = {"img_size": crop_size, "dynamic_img_size": True}
        if is_small:
            size["patch_size"] = 4 if crop_size <= 32 else 8
        model = _create(config, {**size, "dynamic_img_pad": True})
    elif config.stem == "half":
        _halve_stem(model, config.name)
    elif is_small and not _shrink_stem(model) and config.stem == "small":
        raise ConfigError(
            f"stem='small' with backbone {config.name!r}, whose stem is not known here; "
            "ResNets, vision transformers and networks that begin with a strided convolution have "
            "one; use stem='auto' and set the stem in `options`"
        )
    if config.selective_kernels and not select_kernels(model, config.selective_kernels):
        raise ConfigError(
            f"selective_kernels={config.selective_kernels} with backbone {config.name!r}, which "
            "has no bottlenecks; take resnet50 or a larger one, or remove the setting"
        )
    if config.patches == "moco-v3":
        _freeze_patches(model, config.name)
    # Some heads of timm widen the features after pooling; D is the width of the output.
    model.num_features = getattr(model, "head_hidden_size", None) or model.num_features
    model.image_size = crop_size  # type: ignore[assignment]
    return model


def _create(config: BackboneConfig, defaults: dict[str, Any]) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(
            config.name, num_classes=0, **{**defaults, **config.options}
        )
    except TypeError as error:
        raise ConfigError(
            f"options={config.options} of backbone {config.name!r}: {error}; "
            "the options are the arguments of the model in timm"
        ) from error
    return model


def _shrink_stem(model: nn.Module) -> bool:
    """Make the first layers keep more pixels; return False if the stem is not known."""
    if hasattr(model, "patch_embed"):
        return False
    stem = getattr(model, "conv1", None)
    if isinstance(stem, nn.Conv2d) and hasattr(model, "maxpool"):
        _replace_stem(model, stem, stride=1)
        return True
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None or max(first.stride) < 2:
        return False
    first.stride = tuple(max(1, stride // 2) for stride in first.stride)
    if hasattr(model, "maxpool"):
        model.maxpool = nn.Identity()
    return True


def _halve_stem(model: nn.Module, name: str) -> None:
    stem = getattr(model, "conv1", None)
    if not (isinstance(stem, nn.Conv2d) and hasattr(model, "maxpool")):
        raise ConfigError(
            f"stem='half' with backbone {name!r}; only ResNets with one convolution before the "
            "pooling have it; use stem='small' or 'auto'"
        )
    _replace_stem(model, stem, stride=2)


def _replace_stem(model: nn.Module, stem: nn.Conv2d, *, stride: int) -> None:
    """Replace a ResNet's stem by one 3x3 convolution without pooling."""
    model.conv1 = nn.Conv2d(
        stem.in_channels, stem.out_channels, 3, stride=stride, padding=1, bias=False
    )
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()


@torch.no_grad()
def _freeze_patches(model: nn.Module, name: str) -> None:
    """Freeze a random first layer and sine positions (MoCo v3, arXiv:2104.02057, section 4)."""
    if not (isinstance(model, VisionTransformer) and isinstance(model.pos_embed, nn.Parameter)):
        raise ConfigError(
            f"patches='moco-v3' with backbone {name!r}; only vision transformers with added "
            "positions have patches to freeze; remove the setting"
        )
    patches, positions = model.patch_embed.proj, model.pos_embed
    fan_in = patches.weight[0].numel()
    bound = (6 / (fan_in + model.embed_dim)) ** 0.5
    nn.init.uniform_(patches.weight, -bound, bound)
    nn.init.zeros_(patches.bias)
    positions.zero_()
    height, width = model.patch_embed.grid_size
    positions[:, -height * width :] = sine_positions(height, width, model.embed_dim)
    for parameter in (*patches.parameters(), positions):
        parameter.requires_grad_(False)


def sine_positions(height: int, width: int, dim: int) -> torch.Tensor:
    """Return sines and cosines of rows and columns, (1, height * width, dim), row by row."""
    frequencies = 10000.0 ** -(torch.arange(dim // 4) / (dim // 4))
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [place.flatten()[:, None] * frequencies for place in (rows, columns)]
    return torch.cat([part for a in angles for part in (a.sin(), a.cos())], dim=1)[None]
