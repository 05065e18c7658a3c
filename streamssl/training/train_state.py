"""Build the method and the optimizer of a run, with fresh weights."""

import torch

from streamssl.checkpoint import TrainState
from streamssl.config.run_config import RunConfig
from streamssl.modules.backbones import build_backbone


def build_state(config: RunConfig, device: torch.device) -> TrainState:
    """Method and optimizer with fresh weights that depend on `config.seed` alone."""
    torch.manual_seed(config.seed)
    backbone = build_backbone(config.backbone, config.largest_crop)
    num_views = [group.num_views for group in config.crops.groups]
    method = config.method.build(
        backbone, num_views=num_views, seed=config.seed, num_steps=config.num_steps
    )
    method = method.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainState(method, config.optim.build(method.parameters_to_optimise()))
