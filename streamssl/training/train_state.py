"""Build the method and the optimizer of a run, with fresh weights."""

import torch

from streamssl.checkpoint import TrainState
from streamssl.config.run_config import RunConfig
from streamssl.methods.base import BuildContext
from streamssl.methods.registry import build_method
from streamssl.modules.backbones import build_backbone
from streamssl.optim.optimizers import build_optimizer


def build_state(config: RunConfig, device: torch.device) -> TrainState:
    """Build method and optimizer with fresh weights that depend on `config.seed` alone."""
    torch.manual_seed(config.seed)
    context = BuildContext(
        backbone=build_backbone(config.backbone, config.largest_crop),
        num_views=tuple(group.num_views for group in config.crops.groups),
        num_steps=config.num_steps,
        seed=config.seed,
    )
    method = build_method(config.method, context)
    method = method.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainState(method, build_optimizer(config.optim, method.parameters_to_optimise()))
