"""SwAV in plain PyTorch, as short as it can be written: what the project is compared with.

Without any of the project's guards: no check of finite numbers, no readings, no cursor.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.crops.recipe import IMAGENET_MEAN, IMAGENET_STD
from streamssl.config.run_config import RunConfig
from streamssl.modules.backbones import build_backbone

_TEMPERATURE, _EPSILON, _ITERATIONS = 0.1, 0.05, 3


class PlainSwAV:
    """Model and optimizer; `step` is one step on uint8 crops (N, V, S, S, 3) of the device."""

    def __init__(self, config: RunConfig, device: str) -> None:
        torch.manual_seed(0)
        backbone = build_backbone(config.backbone, config.largest_crop)
        width, method = backbone.num_features, config.method
        head = nn.Sequential(
            nn.Linear(width, method.hidden_dim),
            nn.BatchNorm1d(method.hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(method.hidden_dim, method.dim),
        )
        prototypes = nn.Linear(method.dim, method.num_prototypes, bias=False)
        parts = nn.ModuleDict({"backbone": backbone, "head": head, "prototypes": prototypes})
        self._model = parts.to(device, memory_format=torch.channels_last)
        self._optimizer = torch.optim.SGD(
            self._model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-6
        )
        self._autocast = partial(
            torch.autocast, device, dtype=torch.bfloat16, enabled=config.precision == "bf16"
        )
        self._mean = torch.tensor(IMAGENET_MEAN, device=device) * 255
        self._scale = 1 / (torch.tensor(IMAGENET_STD, device=device) * 255)

    def step(self, crops: Sequence[Tensor]) -> Tensor:
        """Train on a batch; return the loss."""
        views = [self._normalised(group) for group in crops]
        self._optimizer.zero_grad(set_to_none=True)
        prototypes = self._model["prototypes"]
        with torch.no_grad():
            prototypes.weight.copy_(F.normalize(prototypes.weight, dim=1))
        with self._autocast():
            features = torch.cat([self._model["backbone"](view) for view in views])
            outputs = self._model["head"](features)
        scores = prototypes(F.normalize(outputs.float(), dim=1))
        scores = scores.view(-1, len(crops[0]), scores.shape[1])
        log_p = F.log_softmax(scores / _TEMPERATURE, dim=2)
        losses = []
        for crop in (0, 1):
            q = _sinkhorn(scores[crop].detach())
            others = log_p.sum(dim=0) - log_p[crop]
            losses.append(-(q * others).sum(dim=1).mean() / (len(log_p) - 1))
        loss = torch.stack(losses).mean()
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def _normalised(self, group: Tensor) -> Tensor:
        rows = group.transpose(0, 1).flatten(0, 1)
        return ((rows - self._mean) * self._scale).permute(0, 3, 1, 2)


@torch.no_grad()
def _sinkhorn(scores: Tensor) -> Tensor:
    q = torch.exp((scores - scores.max()) / _EPSILON)
    for _ in range(_ITERATIONS):
        q = q / q.sum(dim=0, keepdim=True)
        q = q / q.sum(dim=1, keepdim=True)
    return q
