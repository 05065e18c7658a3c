"""SeLa-v2: labels of one epoch are an optimal transport of its features to prototypes.

Asano et al., arXiv:1911.05371 (SeLa); Caron et al., arXiv:2006.09882, appendix D (SeLa-v2). As
DeepCluster-v2, but prototypes are learned by gradient, and a sample's label comes from a transport
plan under which every prototype has equally many samples. In "stream" mode the memory is a window,
and between its solutions running potentials, led on by every batch, keep the shares equal; a crop's
label is then that of another crop of the same sample now.

Shape letters: B samples of this rank, V crops of a sample, N rows: of this rank's share of the
memory or, crop-major, V * B crops; H heads, K prototypes of a head, L memory, D feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.distributed.collectives import (
    all_gather_rows,
    all_reduce_max,
    all_reduce_sum,
    world_size,
)
from streamssl.methods.base import Samples, StepOutput
from streamssl.methods.deepcluster import (
    check_crops,
    check_label_settings,
    gather_crops,
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

# The error of a solution is looked at every so many iterations, as its authors do.
_LOOK_EVERY = 10
# Far beyond what any recorded case needs; a plan that is not found by then stays as good as it is.
_MAX_ITERATIONS = 10_000
# In a stream each batch goes on from the potentials of the last, so that few steps are enough.
_BATCH_ITERATIONS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class SeLaConfig:
    """SeLa-v2 (arXiv:2006.09882, appendix D); "stream" mode is ours.

    The paper does not say how sharp its transport is. `exponent` and `tolerance` are those of
    SeLa's own ImageNet runs: P^25, solved until the column scalings change by 0.1 in sum. For
    CIFAR-10 its authors have 10 and 0.01. Heads, memory and `label_steps` are as in DeepCluster-v2.
    """

    mode: Literal["epochs", "stream"] = "epochs"
    num_prototypes: tuple[int, ...] = (3000, 3000, 3000)
    dim: int = 128
    hidden_dim: int = 2048
    temperature: float = 0.1
    crops_for_assign: tuple[int, ...] = (0, 1)
    exponent: float = 25.0
    tolerance: float = 0.1
    memory: int = 1_281_167
    label_steps: int = 5005

    def __post_init__(self) -> None:
        check_label_settings(self.num_prototypes, self.crops_for_assign, self.memory)
        for name in ("dim", "hidden_dim", "label_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1; raise it")
        for name in ("temperature", "exponent", "tolerance"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    f"{name}={getattr(self, name)}; it must be above 0; the papers have 0.1, 25 "
                    "and 0.1 for temperature, exponent and tolerance"
                )

    def build(
        self,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        seed: int = 0,  # noqa: ARG002 - SeLa draws nothing of its own
        num_steps: int = 0,  # noqa: ARG002 - every method is built alike
        group: ProcessGroup | None = None,
    ) -> "SeLa":
        """`num_views`: how many views each view group has; `backbone.num_features` its width."""
        return SeLa(self, backbone, num_views=num_views, group=group)


@dataclass(frozen=True, slots=True)
class Transport:
    """A solution: `log_r_K` and `log_c_N` scale P^exponent to the plan; all float64.

    `plan_NK` is this rank's part of it, whose sum over all ranks is 1; `labels_N` its best column.
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
def transport(
    log_p_NK: Tensor, *, exponent: float, tolerance: float, group: ProcessGroup | None = None
) -> Transport:
    """Sinkhorn-Knopp on P^exponent until it settles: arXiv:1911.05371, eq. 5-6 and section 3.3.

    `log_p_NK`: logarithms of each row's probabilities, up to a constant of the row. Rows and
    columns of the plan sum to 1 / N and 1 / K of the rows of all ranks. Every tenth iteration the
    sum of |c / c_new - 1| over all rows is compared with `tolerance`. Logarithms, so that nothing
    underflows: the authors' own plans reach 1e-87.
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
        if iteration % _LOOK_EVERY == 0:
            error = float(all_reduce_sum(changes, group))
            if not error > tolerance:
                break
    return Transport(log_r_K, log_c_N, log_q_NK, iteration + 1, error)


def _logsumexp_rows(x_NK: Tensor, group: ProcessGroup | None) -> Tensor:
    """log sum exp (K,) over the rows of all ranks."""
    largest_K = all_reduce_max(x_NK.amax(dim=0), group)
    finite_K = torch.where(largest_K.isfinite(), largest_K, 0.0)
    return all_reduce_sum((x_NK - finite_K).exp().sum(dim=0), group).log() + finite_K


class RunningShares(nn.Module):
    """Keeps the shares of a head's prototypes equal between two solutions of the memory.

    `potentials` (K,) float64: what log r would be now, up to a constant.
    """

    potentials: Tensor

    def __init__(self, num_prototypes: int) -> None:
        super().__init__()
        self.register_buffer("potentials", torch.zeros(num_prototypes, dtype=torch.float64))

    @torch.no_grad()
    def restart_(self, log_r_K: Tensor) -> None:
        """Begin anew from a solution."""
        self.potentials.copy_(log_r_K - log_r_K.mean())

    @torch.no_grad()
    def label_(self, log_q_BK: Tensor, group: ProcessGroup | None) -> Tensor:
        """Labels (B,) under the potentials, once these have followed all ranks' samples.

        The batch's own solution is worth as much as it has samples for a prototype: the potentials
        go G / (G + K) of the way there, G samples of all ranks.
        """
        num_all, num_prototypes = len(log_q_BK) * world_size(group), log_q_BK.shape[1]
        solved_K = self.potentials.clone()
        for _ in range(_BATCH_ITERATIONS):
            log_c_B = -torch.logsumexp(log_q_BK + solved_K, dim=1)
            solved_K = -_logsumexp_rows(log_q_BK + log_c_B[:, None], group)
            # Shares of 1 / K in place of 1 are a constant only, and constants change no label.
            solved_K -= solved_K.mean()
        self.potentials.lerp_(solved_K, num_all / (num_all + num_prototypes))
        return (log_q_BK + self.potentials).argmax(dim=1)


class SeLa(nn.Module):
    """Backbone, projection, prototypes of each head, the memory, and labels of what is in it."""

    num_labellings: Tensor

    def __init__(
        self,
        config: SeLaConfig,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.config, self.group = config, group
        self.num_crops = sum(num_views)
        check_crops(config.crops_for_assign, self.num_crops)
        self.backbone = backbone
        self.projection = swav_head(int(backbone.num_features), config.hidden_dim, config.dim)  # type: ignore[arg-type]
        self.prototypes = nn.ModuleList(Prototypes(n, config.dim) for n in config.num_prototypes)
        self.memory = SampleMemory(config.memory, config.dim, len(config.crops_for_assign))
        capacity = config.memory if config.mode == "epochs" else 1
        self.labels = LabelTable(capacity, len(config.num_prototypes))
        self.balances = nn.ModuleList(RunningShares(num) for num in config.num_prototypes)
        self.register_buffer("num_labellings", torch.zeros((), dtype=torch.int64))

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: Samples | None = None
    ) -> StepOutput:
        """One training step; labels are made anew first, when it is time."""
        assert samples is not None, "labels are of samples"
        for prototypes in self.prototypes:
            prototypes.normalise_()  # type: ignore[operator]
        if step and step % self.config.label_steps == 0:
            with torch.autocast(views[0].device.type, enabled=False):
                self.label()
        features_ND = self.projection(torch.cat([self.backbone(crops) for crops in views]))
        keys_B = sample_keys(samples.ids).to(features_ND.device)
        with torch.autocast(features_ND.device.type, enabled=False):
            z_ND = F.normalize(at_least_float32(features_ND), dim=1)
            scores = [prototypes(z_ND) for prototypes in self.prototypes]
            targets = self._targets(scores, keys_B)
            loss = label_loss(scores, targets, self.config.temperature, self.group)
        crops = self.config.crops_for_assign
        gathered_AGD = gather_crops(z_ND, crops, len(keys_B), self.group)
        self.memory.push(all_gather_rows(keys_B, self.group), gathered_AGD)
        spread_H = label_spread(targets, self.config.num_prototypes, self.group)
        readings = label_readings(scores[0], targets[0], spread_H)
        readings["memory_fill"] = self.memory.fill
        # Before the first labels there is no loss.
        plateau = label_plateau(self.config.num_prototypes) if self.num_labellings else None
        return StepOutput(loss, readings, z_ND[: len(keys_B)].detach(), plateau)

    @torch.no_grad()
    def _targets(self, scores: Sequence[Tensor], keys_B: Tensor) -> list[Tensor]:
        """Labels (N,) of all crops for each head."""
        if self.config.mode == "epochs":
            return [labels_B.repeat(self.num_crops) for labels_B in self.labels.look_up(keys_B)]
        config, num_samples, targets = self.config, len(keys_B), []
        for number, (scores_NK, balance) in enumerate(zip(scores, self.balances, strict=True)):
            crop = config.crops_for_assign[number % len(config.crops_for_assign)]
            own = slice(crop * num_samples, (crop + 1) * num_samples)
            if int(self.num_labellings) == 0:
                labels_B = torch.full_like(keys_B, NO_LABEL)
            else:
                log_q_BK = scores_NK[own].double() * (config.exponent / config.temperature)
                labels_B = balance.label_(log_q_BK, self.group)  # type: ignore[operator]
            labels_N = labels_B.repeat(self.num_crops)
            labels_N[own] = NO_LABEL  # a crop is not asked for what it said itself
            targets.append(labels_N)
        return targets

    @torch.no_grad()
    def label(self) -> None:
        """Solve the transport of the memory to the prototypes of every head."""
        slots_L = self.memory.oldest_first()
        if len(slots_L) < max(self.config.num_prototypes):
            return
        mine = slots_L[share_of(len(slots_L), self.group)]
        labels = []
        for number, (prototypes, balance) in enumerate(
            zip(self.prototypes, self.balances, strict=True)
        ):
            rows_ND = self.memory.rows[number % len(self.config.crops_for_assign), mine]
            found = transport(
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

    def after_backward(self, step: int) -> None:  # noqa: ARG002 - labellings are counted
        """Nothing is learned before the first labels: no momentum, no decay."""
        if int(self.num_labellings) == 0:
            for parameter in self.parameters():
                parameter.grad = None

    def after_step(self, step: int) -> None:
        """Nothing: features enter the memory while the loss is computed."""

    def parameters_to_optimise(self) -> list[nn.Parameter]:
        """Backbone, head and prototypes."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]
