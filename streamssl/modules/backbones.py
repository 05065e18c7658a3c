"""Backbones: networks of timm, adapted to the sizes of the crops.

Shape letters: N rows, S pixels, D = `num_features`.
"""

import functools
import inspect
import logging
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from shards.access import raise_denied
from shards.errors import ConfigError
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.config.parts.backbone_options import (
    MAX_PARAMETERS,
    check_options,
    error_words,
    explain_options,
    shortened,
)
from streamssl.modules.selective_kernels import select_kernels

# Crops up to this side in pixels lose too much in a stem made for ImageNet.
SMALL_CROP = 64
# First parts of the names of classifiers, which an encoder does not have.
_HEADS = ("fc", "head", "head_dist", "classifier")


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
    check_options(config)
    _check_parameters(config)
    is_small = config.stem == "small" or (config.stem == "auto" and crop_size <= SMALL_CROP)
    model = _create(config, {})
    if isinstance(model, VisionTransformer):
        size: dict[str, Any] = {"img_size": crop_size, "dynamic_img_size": True}
        if is_small:
            size["patch_size"] = 4 if crop_size <= 32 else 8
        model = _create(config, {**size, "dynamic_img_pad": True})
    loaded = list(model.parameters()) if config.weights else []
    if isinstance(model, VisionTransformer):
        pass  # its size was set when it was made
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
    if config.weights:
        _check_kept(model, config, loaded)
    # Some heads of timm widen the features after pooling; D is the width of the output.
    model.num_features = getattr(model, "head_hidden_size", None) or model.num_features
    model.image_size = crop_size  # type: ignore[assignment]
    return model


def _check_parameters(config: BackboneConfig) -> None:
    """Raise ConfigError for a network with more parameters than any machine holds.

    Only options change what timm offers, so a network without any is not counted.
    """
    plain = config.without_weights()
    if not plain.options:
        return
    try:
        with torch.device("meta"):  # shapes only: no time, no memory
            model = timm.create_model(plain.name, num_classes=0, **plain.options)
    except Exception:  # told when it is built
        return
    count = sum(parameter.numel() for parameter in model.parameters())
    if count > MAX_PARAMETERS:
        raise ConfigError(
            f"options={shortened(plain.options)} of backbone {config.name!r} make a network of "
            f"{count:,} parameters; at most {MAX_PARAMETERS:,} are possible: give smaller sizes"
        )


def _create(config: BackboneConfig, defaults: dict[str, Any]) -> nn.Module:
    try:
        with _KeyLog() as keys:
            model: nn.Module = timm.create_model(
                config.name, num_classes=0, **_timm_options({**defaults, **config.options})
            )
    except Exception as error:  # timm and its models raise any kind of error for wrong options
        if not config.weights:
            raise ConfigError(
                explain_options(config, error)
                + f"the options are the arguments of the model in timm{_near(config.name, error)}"
            ) from error
        _create(config.without_weights(), defaults)  # raises if the weights are not the reason
        raise_denied(error, config.weights)
        raise ConfigError(
            f"{config.weights} cannot be loaded into backbone {config.name!r} "
            f"({error_words(error)}); name weights of this network in [backbone.options], or "
            "remove checkpoint_path and pretrained to begin with random ones"
        ) from error
    if config.weights:
        keys.check(model, config)
    return model


def _timm_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return options with `checkpoint_path` as a file of pretrained weights.

    timm's own reading of `checkpoint_path` refuses every file that also has a classifier.
    """
    path = options.pop("checkpoint_path", None)
    overlay = dict(options.get("pretrained_cfg_overlay") or {})
    if path:
        file = Path(path).expanduser()
        overlay |= {"file": str(file), "custom_load": file.suffix in (".npz", ".npy")}
        options |= {"pretrained": True, "pretrained_cfg_overlay": overlay}
    if options.get("pretrained") and (used := overlay.get("file")):
        with open(used, "rb"):  # timm would raise an error without a word for a missing file
            pass
    return options


def _near(name: str, error: Exception) -> str:
    """Return the arguments that are near a name that the model does not have."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown is None:
        return ""
    with torch.device("meta"):
        known = inspect.signature(type(timm.create_model(name)).__init__).parameters
    close = get_close_matches(unknown[1], known)
    return f"; near it are {', '.join(close)}" if close else ""


class _KeyLog(logging.Handler):
    """Collects the keys that timm logs when it loads weights; it returns nothing about them."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: dict[str, list[str]] = {"Missing": [], "Unexpected": []}
        self._logger = logging.getLogger("timm.models._builder")

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        keys = re.match(r"(Missing|Unexpected) keys \((.*?)\)", record.getMessage())
        if keys is not None:
            self.found[keys[1]] = keys[2].split(", ")

    def check(self, model: nn.Module, config: BackboneConfig) -> None:
        """Raise ConfigError if a tensor of the model was not loaded."""
        needed = {name for name, _ in model.named_parameters()}
        needed |= {name for name, _ in model.named_buffers() if "running_" in name}
        missing = [name for name in self.found["Missing"] if name in needed]
        others = [name for name in self.found["Unexpected"] if name.split(".")[0] not in _HEADS]
        if others and not missing:
            _warn_once(
                f"{config.weights} has {len(others)} tensors that backbone {config.name!r} does "
                f"not use, such as {others[0]}"
            )
        if missing:
            unknown = f"; of its own it has {len(others)}, such as {others[0]}" if others else ""
            raise ConfigError(
                f"{config.weights} lacks {len(missing)} of the {len(needed)} tensors of backbone "
                f"{config.name!r}, such as {missing[0]}, which would stay random{unknown}: name "
                "weights of this network with timm's names, correct the other options, or remove "
                "checkpoint_path and pretrained from [backbone.options]"
            )

    def __enter__(self) -> "_KeyLog":
        self._before = self._logger.level, self._logger.propagate
        self._logger.addHandler(self)
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        return self

    def __exit__(self, *_: object) -> None:
        self._logger.removeHandler(self)
        self._logger.level, self._logger.propagate = self._before


@functools.cache
def _warn_once(text: str) -> None:
    logging.getLogger(__name__).warning(text)


def _check_kept(model: nn.Module, config: BackboneConfig, loaded: list[nn.Parameter]) -> None:
    """Raise ConfigError if settings replaced layers whose weights were just loaded."""
    kept = {id(parameter) for parameter in loaded}
    new = [name for name, parameter in model.named_parameters() if id(parameter) not in kept]
    if config.patches == "moco-v3":
        new.append("patch_embed.proj.weight")
    if new:
        raise ConfigError(
            f"stem={config.stem!r}, selective_kernels={config.selective_kernels} and patches="
            f"{config.patches!r} replace some weights of {config.weights} by random ones "
            f"({len(new)}, such as {new[0]}); give stem='imagenet', selective_kernels=0 and "
            "patches='trained', or remove checkpoint_path and pretrained"
        )


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
