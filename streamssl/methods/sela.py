"""SeLa-v2: labels of one epoch are an optimal transport of its features to prototypes.

Asano et al., arXiv:1911.05371 (SeLa); Caron et al., arXiv:2006.09882, appendix D (SeLa-v2). As
DeepCluster-v2, but prototypes are learned by gradient, and labels come from a transport plan that
gives every prototype equally many samples. In "stream" mode the memory is a window. Between two
solutions, running potentials follow every batch and keep the shares equal, and the label of a crop
is the present one of another crop of the same sample.

Shape letters: B samples of this rank, V crops of a sample, N rows: of this rank's share of the
memory or, crop-major, V * B crops; H heads, K prototypes of a head, L memory, D feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from streamssl.config.methods.sela_config import SeLaConfig
from streamssl.devices.host_copy import HostCopy
from streamssl.distributed.collectives import (
    all_gather_rows,
    all_reduce_max,
    all_reduce_sum,
    world_size,
)
from streamssl.methods.base import BuildContext, Method, SampleInfo, StepOutput, check_crops
from streamssl.methods.deepcluster import (
    gather_assigned_crops,
    label_loss,
    label_plateau,
    label_readings,
    label_spread,
)
from streamssl.modules.heads import swav_head
from streamssl.modules.losses import at_least_float32
from streamssl.modules.prototypes import Prototypes
from streamssl.modules.sample_memory import (
    NO_LABEL,
    LabelTable,
    SampleMemory,
    join_shares,
    sample_keys,
    share_of,
)

# Iterations between two checks of the error, as in the authors' code.
_CHECK_EVERY = 10
# Far more than any recorded case needs; the plan is used as it is after so many.
_MAX_ITERATIONS = 10_000
# In a stream each batch starts from the potentials of the last one, so few iterations suffice.
_BATCH_ITERATIONS = 3


@dataclass(frozen=True, slots=True)
class TransportPlan:
    """A solution in float64: `log_r_K` and `log_c_N` scale P^exponent to the plan.

    `plan_NK` is this rank's part; over all ranks it sums to 1. `labels_N` is the best column.
    """

    log_r_K: Tensor
    log_c_N: Tensor
    log_q_NK: Tensor
    num_iterations: int
    error: float

    @property
    def plan_NK(self) -> Tensor:
        return (self.log_q_NK + self.log_r_K + self.log_c_N[:, None]).exp()

    @property
    def labels_N(self) -> Tensor:
        return (self.log_q_NK + self.log_r_K).argmax(dim=1)


@torch.no_grad()
def solve_transport(
    log_p_NK: Tensor, *, exponent: float, tolerance: float, group: ProcessGroup | None = None
) -> TransportPlan:
    """Run Sinkhorn-Knopp on P^exponent until it converges: arXiv:1911.05371, eq. 5-6, section 3.3.

    `log_p_NK`: log-probabilities of each row, up to a constant of the row. Rows and columns of the
    plan sum to 1 / N and 1 / K, over the rows of all ranks. Every tenth iteration the sum of
    |c / c_new - 1| over all rows is compared with `tolerance`. Computed in logarithms against
    underflow: the authors' own plans reach 1e-87.
    """
    log_q_NK = log_p_NK.double() * exponent
    count = torch.tensor([float(len(log_q_NK))], dtype=torch.float64, device=log_q_NK.device)
    log_num = all_reduce_sum(count, group).log()
    log_k = log_q_NK.new_tensor(float(log_q_NK.shape[1])).log()
    log_c_N = -log_num.expand(len(log_q_NK))
    for iteration in range(_MAX_ITERATIONS):
        log_r_K = -log_k - _logsumexp_rows(log_q_NK + log_c_N[:, None], group)
        new_N = -log_num - torch.logsumexp(log_q_NK + log_r_K, dim=1)
        changes = ((log_c_N - new_N).exp() - 1).abs().nansum()
        log_c_N = new_N
        if iteration % _CHECK_EVERY == 0:
            error = float(all_reduce_sum(changes, group))
            if not error > tolerance:
                break
    return TransportPlan(log_r_K, log_c_N, log_q_NK, iteration + 1, error)


def _logsumexp_rows(x_NK: Tensor, group: ProcessGroup | None) -> Tensor:
    """Return log sum exp (K,) over the rows of all ranks."""
    largest_K = all_reduce_max(x_NK.amax(dim=0), group)
    finite_K = torch.where(largest_K.isfinite(), largest_K, 0.0)
    return all_reduce_sum((x_NK - finite_K).exp().sum(dim=0), group).log() + finite_K


class RunningPotentials(nn.Module):
    """Potentials that keep a head's prototypes equally used between two solutions of the memory.

    `potentials` (K,) float64: an estimate of the present log r, up to a constant.
    """

    potentials: Tensor

    def __init__(self, num_prototypes: int) -> None:
        super().__init__()
        self.register_buffer("potentials", torch.zeros(num_prototypes, dtype=torch.float64))

    @torch.no_grad()
    def restart_(self, log_r_K: Tensor) -> None:
        """Restart from a solution."""
        self.potentials.copy_(log_r_K - log_r_K.mean())

    @torch.no_grad()
    def label_(self, log_q_BK: Tensor, group: ProcessGroup | None) -> Tensor:
        """Update the potentials by all ranks' samples, and return labels (B,) under them.

        The potentials move G / (G + K) of the way to the batch's own solution; G are the samples of
        all ranks, K the prototypes.
        """
        num_all, num_prototypes = len(log_q_BK) * world_size(group), log_q_BK.shape[1]
        solved_K = self.potentials.clone()
        for _ in range(_BATCH_ITERATIONS):
            log_c_B = -torch.logsumexp(log_q_BK + solved_K, dim=1)
            solved_K = -_logsumexp_rows(log_q_BK + log_c_B[:, None], group)
            # A share of 1 / K instead of 1 is a constant, and constants change no label.
            solved_K -= solved_K.mean()
        self.potentials.lerp_(solved_K, num_all / (num_all + num_prototypes))
        return (log_q_BK + self.potentials).argmax(dim=1)


class SeLa(Method):
    """Backbone, projection, prototypes of each head, the memory, and the labels of its samples."""

    num_labellings: Tensor

    def __init__(self, config: SeLaConfig, context: BuildContext) -> None:
        super().__init__(context)
        self.config = config
        self.num_crops = context.num_crops
        check_crops(config.crops_for_assign, self.num_crops)
        self.projection = swav_head(context.width, config.hidden_dim, config.dim)
        self.prototypes = nn.ModuleList(Prototypes(n, config.dim) for n in config.num_prototypes)
        self.memory = SampleMemory(config.memory, config.dim, len(config.crops_for_assign))
        capacity = config.memory if config.mode == "epochs" else 1
        self.labels = LabelTable(capacity, len(config.num_prototypes))
        self.balances = nn.ModuleList(RunningPotentials(num) for num in config.num_prototypes)
        self.register_buffer("num_labellings", torch.zeros((), dtype=torch.int64))
        self._known_labellings = HostCopy()

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: SampleInfo | None = None
    ) -> StepOutput:
        """Compute the loss of a step; label the memory first if it is due."""
        assert samples is not None, "labelling needs sample ids"
        for prototypes in self.prototypes:
            prototypes.normalise_()  # type: ignore[operator]
        if step and step % self.config.label_steps == 0:
            with torch.autocast(views[0].device.type, enabled=False):
                self.label()
        features_ND = self.projection(torch.cat([self.backbone(crops) for crops in views]))
        keys_B = sample_keys(samples.ids).to(features_ND.device, non_blocking=True)
        with torch.autocast(features_ND.device.type, enabled=False):
            z_ND = F.normalize(at_least_float32(features_ND), dim=1)
            scores = [prototypes(z_ND) for prototypes in self.prototypes]
            targets = self._targets(scores, keys_B)
            loss = label_loss(scores, targets, self.config.temperature, self.group)
        crops = self.config.crops_for_assign
        gathered_AGD = gather_assigned_crops(z_ND, crops, len(keys_B), self.group)
        self.memory.push(all_gather_rows(keys_B, self.group), gathered_AGD)
        spread_H = label_spread(targets, self.config.num_prototypes, self.group)
        readings = label_readings(scores[0], targets[0], spread_H)
        readings["memory_fill"] = self.memory.fill
        # Before the first labels there is no loss.
        plateau = label_plateau(self.config.num_prototypes) if self._has_labels else None
        return StepOutput(loss, readings, z_ND[: len(keys_B)].detach(), plateau)

    @torch.no_grad()
    def _targets(self, scores: Sequence[Tensor], keys_B: Tensor) -> list[Tensor]:
        """Return the labels (N,) of all crops for each head."""
        if self.config.mode == "epochs":
            return [labels_B.repeat(self.num_crops) for labels_B in self.labels.look_up(keys_B)]
        config, num_samples, targets = self.config, len(keys_B), []
        for number, (scores_NK, balance) in enumerate(zip(scores, self.balances, strict=True)):
            crop = config.crops_for_assign[number % len(config.crops_for_assign)]
            own = slice(crop * num_samples, (crop + 1) * num_samples)
            if not self._has_labels:
                labels_B = torch.full_like(keys_B, NO_LABEL)
            else:
                log_q_BK = scores_NK[own].double() * (config.exponent / config.temperature)
                labels_B = balance.label_(log_q_BK, self.group)  # type: ignore[operator]
            labels_N = labels_B.repeat(self.num_crops)
            labels_N[own] = NO_LABEL  # a crop must not predict its own label
            targets.append(labels_N)
        return targets

    @property
    def _has_labels(self) -> bool:
        """True after the first labelling."""
        return self._known_labellings.read(self.num_labellings) > 0

    @torch.no_grad()
    def label(self) -> None:
        """Solve the transport from the memory to the prototypes of every head."""
        slots_L = self.memory.oldest_first()
        if len(slots_L) < max(self.config.num_prototypes):
            return
        mine = slots_L[share_of(len(slots_L), self.group)]
        labels = []
        for number, (prototypes, balance) in enumerate(
            zip(self.prototypes, self.balances, strict=True)
        ):
            rows_ND = self.memory.rows[number % len(self.config.crops_for_assign), mine]
            found = solve_transport(
                prototypes(rows_ND) / self.config.temperature,
                exponent=self.config.exponent,
                tolerance=self.config.tolerance,
                group=self.group,
            )
            labels.append(join_shares(found.labels_N, len(slots_L), self.group))
            balance.restart_(found.log_r_K)  # type: ignore[operator]
        if self.config.mode == "epochs":
            self.labels.replace(self.memory.keys[slots_L], torch.stack(labels))
        self.num_labellings += 1
        self._known_labellings.forget()

    def after_backward(self, step: int) -> None:
        """Drop gradients before the first labels: no update, no momentum, no decay."""
        if not self._has_labels:
            for parameter in self.parameters():
                parameter.grad = None

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._known_labellings.forget()
