"""Execution of the encoders of a method, and of its loss, as the settings of a run say."""

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from streamssl.config.run_config import RunConfig
from streamssl.execution.compilation import check_compiler, compile_network, compiled
from streamssl.execution.micro_batches import split_into_micro_batches
from streamssl.execution.recomputation import recompute_blocks
from streamssl.methods.base import Method
from streamssl.modules.momentum import MomentumCopy


def set_execution(method: Method, config: RunConfig, device: torch.device) -> None:
    """Set how the encoders of a method run, in place. Raises ConfigError without a compiler.

    Encoders are the backbone and copies of it. Without such settings nothing is changed.
    """
    if config.compile:
        check_compiler(device.type)
        for encoder in _encoders(method):
            compile_network(encoder)
        method.compile_loss(compiled)
    if config.recompute:
        recompute_blocks(method.backbone)
    if config.micro_batches > 1:
        selecting = _encoders_of_selected_rows(method)
        for encoder in _encoders(method):
            if encoder not in selecting:
                split_into_micro_batches(encoder, config.micro_batches)


def _encoders(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the outermost modules that `build_backbone` made, and copies of them."""
    for child in network.children():
        if hasattr(child, "image_size"):
            yield child
        else:
            yield from _encoders(child)


def _encoders_of_selected_rows(method: nn.Module) -> set[nn.Module]:
    """Return encoders whose owner selects the rows that share batch norm statistics.

    They get few rows at a time already.
    """
    copies = (module for module in method.modules() if isinstance(module, MomentumCopy))
    return {
        encoder
        for copy in copies
        if copy.own_batch_norm and any(isinstance(part, _BatchNorm) for part in copy.modules())
        for encoder in _encoders(copy)
    }
