"""Check of the encoder at the start of a run: it is built, and takes crops of every size."""

import torch
from torch import Tensor, nn

from shards.errors import ConfigError
from streamssl.config.parts.backbone_config import BackboneConfig
from streamssl.config.parts.backbone_options import check_weights, explain_options
from streamssl.config.run_config import RunConfig
from streamssl.execution.recomputation import check_blocks
from streamssl.modules.backbones import build_backbone

# Batch norm needs two samples.
_NUM_ROWS = 2
_REMEDY = "correct the options or the sizes of the crops, or take another backbone"


def check_backbone(config: RunConfig, *, fresh: bool) -> None:
    """Raise ConfigError unless the encoder runs as the settings say on crops of each size.

    A `fresh` run loads its initial weights. Random numbers of torch stay as they are.
    """
    backbone = config.backbone if fresh else config.backbone.without_weights()
    if fresh:
        check_weights(backbone)
    sizes = sorted({group.size for group in config.crops.groups}, reverse=True)
    if not backbone.weights:
        try:
            with torch.device("meta"):  # shapes only: no time, no memory
                _run(backbone, sizes, recompute=config.recompute)
            return
        except Exception:  # some networks cannot be built so; the real one decides
            pass
    with torch.random.fork_rng(devices=[]):
        _run(backbone, sizes, recompute=config.recompute)


def _run(config: BackboneConfig, sizes: list[int], *, recompute: bool) -> None:
    try:
        model = build_backbone(config, sizes[0])
    except ConfigError:
        raise
    except Exception as error:  # options may break any layer that is changed after timm made it
        raise ConfigError(explain_options(config, error) + _REMEDY) from error
    for size in sizes:
        _check_vector(config, model, size)
    if recompute:
        check_blocks(model, config.name, torch.zeros(_NUM_ROWS, 3, sizes[0], sizes[0]))


@torch.no_grad()
def _check_vector(config: BackboneConfig, model: nn.Module, size: int) -> None:
    hint = f" with crops of {size} pixels"
    try:
        found = model(torch.zeros(_NUM_ROWS, 3, size, size))
    except Exception as error:  # a network raises any kind of error for a size that it cannot take
        raise ConfigError(explain_options(config, error, hint) + _REMEDY) from error
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if shape != (_NUM_ROWS, model.num_features):
        raise ConfigError(
            explain_options(
                config, ValueError(f"the output for {_NUM_ROWS} crops is {shape}"), hint
            )
            + f"it must be one vector of {model.num_features} numbers for each crop: correct or "
            "remove the options that change the layers, the pooling or the head"
        )
