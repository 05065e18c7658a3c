"""Networks, methods and images that cost no time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamssl.config.parts.method_config import MethodConfig
from streamssl.methods.base import BuildContext
from streamssl.methods.registry import build_method


class TinyBackbone(nn.Module):
    """Mean colours of a 2x2 grid, then one linear map: takes images of any size."""

    def __init__(self, num_features: int = 12, *, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.num_features, self.image_size = num_features, 8
        self.norm = norm or nn.Identity()
        self.linear = nn.Linear(12, num_features)

    def forward(self, crops: Tensor) -> Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(self.norm(crops), 2)
        return self.linear(pooled.flatten(1))


def built(
    config: MethodConfig, backbone: nn.Module, *, num_views: Sequence[int], **context: Any
) -> Any:
    """Build the method of `config`, as a run does."""
    return build_method(
        config, BuildContext(backbone=backbone, num_views=tuple(num_views), **context)
    )


def images(num_rows: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    crops = torch.randn(num_rows, 3, size, size, generator=generator)
    return crops.contiguous(memory_format=torch.channels_last)
