"""SwAV: unsupervised learning of visual features by contrasting cluster assignments.

Caron et al., arXiv:2006.09882. Some crops of an image get an assignment (the paper's "code"):
Sinkhorn distributes a batch of them over the prototypes in equal shares. Every other crop of the
image must predict it.

Shape letters: B samples of this rank, V crops of a sample, N = V * B crops in crop-major order
(rows [v * B, (v + 1) * B) are crop v), L rows of a queue, K prototypes, D feature.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from streamssl.config.methods.swav_config import SwAVConfig
from streamssl.distributed.collectives import all_gather_rows
from streamssl.methods.base import (
    BuildContext,
    Method,
    SampleInfo,
    StepOutput,
    TensorFunction,
    check_crops,
)
from streamssl.modules.drift import DriftProbe, evaluating
from streamssl.modules.feature_queue import FeatureQueue
from streamssl.modules.heads import swav_head
from streamssl.modules.losses import at_least_float32, swav_loss
from streamssl.modules.prototypes import Prototypes
from streamssl.modules.sinkhorn import sinkhorn


@dataclass(frozen=True, slots=True)
class SwapFunctions:
    """The two functions of a step that take time at many prototypes, plain or compiled."""

    solve: TensorFunction = sinkhorn
    compare: TensorFunction = swav_loss


@dataclass(frozen=True, slots=True)
class SwapOutput:
    """Results of one step of SwAV after the head.

    `embeddings` (N, D) of unit norm and `scores` (N, K) carry gradient. `sinkhorn_in` and
    `assignments` map the number of an assigned crop to the scores given to Sinkhorn (those of its
    share of the queue first) and to its assignments (B, K).
    """

    loss: Tensor
    embeddings: Tensor
    scores: Tensor
    sinkhorn_in: Mapping[int, Tensor]
    assignments: Mapping[int, Tensor]
    queue_used: bool


def swap_assignments(
    features_ND: Tensor,
    prototypes: Prototypes,
    queues: Sequence[FeatureQueue],
    config: SwAVConfig,
    *,
    num_crops: int,
    step: int,
    group: ProcessGroup | None,
    probe: DriftProbe | None = None,
    functions: SwapFunctions = SwapFunctions(),
) -> SwapOutput:
    """Compute the loss from head outputs; new embeddings enter the queues after they are scored.

    `features_ND` are the head's outputs of all crops, of any norm; prototypes must be normalised.
    `queues` has one queue for each crop of `config.crops_for_assign`, or is empty. Without a
    `probe` the start of the queue does not depend on drift. Section 3.1, and "working with small
    batches" there.
    """
    with torch.autocast(features_ND.device.type, enabled=False):
        z_ND = F.normalize(at_least_float32(features_ND), dim=1)
        scores_NK = prototypes(z_ND)
        num_samples = len(z_ND) // num_crops
        queue_used = _is_queue_used(queues, config, step, probe)
        sinkhorn_in, assignments = {}, {}
        with torch.no_grad():
            for place, crop in enumerate(config.crops_for_assign):
                rows = slice(crop * num_samples, (crop + 1) * num_samples)
                scores_BK, z_BD = scores_NK.detach()[rows], z_ND[rows]
                if queue_used:
                    # Features of earlier steps are compared with the prototypes of this step.
                    queued_LD = queues[place].share(num_samples, group)
                    scores_BK = torch.cat([prototypes(queued_LD), scores_BK])
                # A compiler cannot trace the collectives of ranks.
                solve = functions.solve if group is None else sinkhorn
                q = solve(
                    scores_BK,
                    epsilon=config.epsilon,
                    num_iterations=config.sinkhorn_iterations,
                    group=group,
                )
                sinkhorn_in[crop], assignments[crop] = scores_BK, q[-num_samples:]
                if queues:
                    # Reversed, so that reading newest first gives a batch back in sample order.
                    queues[place].push(all_gather_rows(z_BD, group).flip(0), step)
        loss = functions.compare(scores_NK, assignments, config.temperature)
    return SwapOutput(loss, z_ND, scores_NK, sinkhorn_in, assignments, queue_used)


def _is_queue_used(
    queues: Sequence[FeatureQueue], config: SwAVConfig, step: int, probe: DriftProbe | None
) -> bool:
    """Return True if assignments use the queue: after its start, and only when it is full."""
    if config.queue is None or step < config.queue.start_step:
        return False
    is_full = all(queue.is_full for queue in queues)
    return is_full if probe is None else probe.has_started(step, is_full=is_full)


class SwAV(Method):
    """Backbone, head, prototypes and one queue for each assigned crop."""

    def __init__(self, config: SwAVConfig, context: BuildContext) -> None:
        super().__init__(context)
        self.config, self.num_crops = config, context.num_crops
        check_crops(config.crops_for_assign, self.num_crops)
        self.head = swav_head(context.width, config.hidden_dim, config.dim)
        self.prototypes = Prototypes(config.num_prototypes, config.dim)
        self.queues = nn.ModuleList(
            FeatureQueue(config.queue.capacity, config.dim)
            for _ in config.crops_for_assign
            if config.queue is not None
        )
        self.functions = SwapFunctions()
        self.probe: DriftProbe | None = None
        if config.queue is not None:
            image_size = cast(int, context.backbone.image_size)
            self.probe = DriftProbe(config.queue, image_size, config.dim)

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: SampleInfo | None = None
    ) -> StepOutput:
        """Compute algorithm 1 of the paper (appendix A.1), with multi-crop and the queue."""
        self.prototypes.normalise_()
        if self.probe is not None:
            num_rows = sum(map(len, views)) // self.num_crops
            self.probe.measure(views[0][:num_rows], self._encode, step=step, group=self.group)
        # One pass for each resolution; the head sees all crops at once, and so does its batch norm.
        features_ND = self.head(torch.cat([self.backbone(crops) for crops in views]))
        swap = swap_assignments(
            features_ND,
            self.prototypes,
            list(self.queues),  # type: ignore[arg-type]
            self.config,
            num_crops=self.num_crops,
            step=step,
            group=self.group,
            probe=self.probe,
            functions=self.functions,
        )
        assigned_BK = torch.cat(list(swap.assignments.values()))
        readings: dict[str, Tensor | float] = {}
        readings |= self.prototypes.count_use(assigned_BK, self.group)
        for queue in self.queues[:1]:
            readings |= queue.readings(step)  # type: ignore[operator]
        if self.probe is not None:
            readings |= self.probe.readings()
        readings["queue_used"] = float(swap.queue_used)
        num_samples = len(assigned_BK) // len(swap.assignments)
        # Equal features have uniform assignments, which no crop can predict better than by chance.
        plateau = math.log(self.config.num_prototypes)
        return StepOutput(swap.loss, readings, swap.embeddings[:num_samples].detach(), plateau)

    def _encode(self, crops: Tensor) -> Tensor:
        """Return features of any norm, each computed from its image alone."""
        with evaluating(self.backbone, self.head):
            return self.head(self.backbone(crops))

    def compile_loss(self, compiled: Callable[[TensorFunction], TensorFunction]) -> None:
        """Compile Sinkhorn, which ranks do not use, and the loss: each is one pass over scores."""
        self.functions = SwapFunctions(compiled(sinkhorn), compiled(swav_loss))

    def after_backward(self, step: int) -> None:
        """Freeze the prototypes in the first steps (section 4.1: it helps early on)."""
        if step < self.config.freeze_steps:
            self.prototypes.drop_gradient()
