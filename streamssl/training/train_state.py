"""Build the method and the optimizer of a run, with fresh weights, or to be filled."""

import torch

from streamssl.checkpoint import TrainState
from streamssl.config.run_config import RunConfig
from streamssl.execution.encoder_execution import set_execution
from streamssl.methods.base import BuildContext
from streamssl.methods.registry import build_method
from streamssl.modules.backbones import build_backbone
from streamssl.optim.optimizers import build_optimizer


def build_state(config: RunConfig, device: torch.device, *, fresh: bool = True) -> TrainState:
    """Build method and optimizer with the weights of step 0.

    They depend on `config.seed`, and on the weights that the settings name. Unless `fresh`, those
    are not loaded: the state is then to be filled from a checkpoint.
    """
    torch.manual_seed(config.seed)
    backbone = config.backbone if fresh else config.backbone.without_weights()
    context = BuildContext(
        backbone=build_backbone(backbone, config.largest_crop),
        fresh=fresh,
        num_views=tuple(group.num_views for group in config.crops.groups),
        num_steps=config.num_steps,
        seed=config.seed,
    )
    method = build_method(config.method, context)
    method = method.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    set_execution(method, config, device)
    return TrainState(method, build_optimizer(config.optim, method.parameters_to_optimise()))
