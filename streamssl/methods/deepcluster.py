"""DeepCluster-v2: clusters of the features of one epoch are the classes of the next.

Caron et al., arXiv:2006.09882, appendix D. Features of some crops are kept in a memory; now and
then spherical k-means gives every sample a cluster, and every crop must predict the cluster of its
sample. In "epochs" mode that is as published: clusters are made once an epoch, and a sample is
predicted by what it was an epoch ago. In "stream" mode, where no sample comes again, the memory is
a window: a crop's cluster is that of another crop of the same sample now, and the centroids follow
every batch.

Shape letters: B samples of this rank, G samples of the global batch, V crops of a sample, N = V * B
crops in crop-major order, A crops for assignment, H heads, K clusters of a head, L memory, D
feature.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.distributed.collectives import all_gather_rows, all_reduce_sum, world_size
from streamssl.methods.base import Samples, StepOutput, step_generator
from streamssl.modules.feature_readings import perplexity
from streamssl.modules.heads import swav_head
from streamssl.modules.kmeans import Centroids, nearest_centroids
from streamssl.modules.losses import assigned_cross_entropy, at_least_float32
from streamssl.modules.sample_memory import (
    NO_LABEL,
    LabelTable,
    SampleMemory,
    join_shares,
    sample_keys,
    share_of,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeepClusterConfig:
    """The settings of the paper (appendix D); "stream" mode is ours.

    `num_prototypes` has one number for each head; head h clusters the features of crop
    `crops_for_assign[h % A]`. `memory`: how many samples are remembered, which is the whole data in
    "epochs" mode (1,281,167 samples of two crops are 1.3 GB). `cluster_steps`: steps between
    clusterings, an epoch as published. Until the first one a run only fills its memory.
    """

    mode: Literal["epochs", "stream"] = "epochs"
    num_prototypes: tuple[int, ...] = (3000, 3000, 3000)
    dim: int = 128
    hidden_dim: int = 2048
    temperature: float = 0.1
    crops_for_assign: tuple[int, ...] = (0, 1)
    kmeans_iterations: int = 10
    memory: int = 1_281_167
    cluster_steps: int = 5005

    def __post_init__(self) -> None:
        check_label_settings(self.num_prototypes, self.crops_for_assign, self.memory)
        for name in ("dim", "hidden_dim", "kmeans_iterations", "cluster_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1; raise it")
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature={self.temperature}; it must be above 0; the paper has 0.1"
            )

    def build(
        self,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        seed: int = 0,
        num_steps: int = 0,  # noqa: ARG002 - every method is built alike
        group: ProcessGroup | None = None,
    ) -> "DeepCluster":
        """`num_views`: how many views each view group has; `backbone.num_features` its width."""
        return DeepCluster(self, backbone, num_views=num_views, seed=seed, group=group)


def check_label_settings(
    num_prototypes: Sequence[int], crops_for_assign: Sequence[int], memory: int
) -> None:
    """Raise ConfigError unless heads, crops and memory fit together."""
    if not num_prototypes or min(num_prototypes) < 1 or memory < max(num_prototypes):
        raise ConfigError(
            f"memory={memory} with num_prototypes={tuple(num_prototypes)}; there is at least one "
            "head, each with at least one prototype and at most one for each sample of the memory; "
            "raise memory or ask for fewer prototypes"
        )
    if not crops_for_assign or len(set(crops_for_assign)) < len(crops_for_assign):
        raise ConfigError(
            f"crops_for_assign={tuple(crops_for_assign)}; it names at least one crop, each once; "
            "the paper has (0, 1)"
        )


def check_crops(crops_for_assign: Sequence[int], num_crops: int) -> None:
    """Raise ConfigError unless the assigned crops are among those that the views give."""
    if num_crops < 2 or not set(crops_for_assign) <= set(range(num_crops)):
        raise ConfigError(
            f"crops_for_assign={tuple(crops_for_assign)} with {num_crops} crops a sample; at least "
            "two crops are needed, and assigned ones are counted from 0; add views or change "
            "crops_for_assign"
        )


def label_loss(
    scores: Sequence[Tensor],
    targets: Sequence[Tensor],
    temperature: float,
    group: ProcessGroup | None = None,
) -> Tensor:
    """The mean over heads of the cross entropy of `scores[h]` (N, K) with `targets[h]` (N,).

    Crops without a label are left out, so that the mean over ranks is the mean over all crops of
    the global batch that have one.
    """
    losses = []
    for scores_NK, targets_N in zip(scores, targets, strict=True):
        num_labelled = all_reduce_sum((targets_N != NO_LABEL).sum(), group) / world_size(group)
        losses.append(assigned_cross_entropy(scores_NK, targets_N, temperature, num_labelled))
    return torch.stack(losses).mean()


def balanced_label_loss(
    scores: Sequence[Tensor],
    targets: Sequence[Tensor],
    temperature: float,
    group: ProcessGroup | None = None,
) -> Tensor:
    """As `label_loss`, where every cluster that has crops counts as much as any other.

    DeepCluster, arXiv:1807.05520, section 3.3: without that one cluster may swallow the others,
    which in a stream it does within some ten steps.
    """
    losses = []
    for scores_NK, targets_N in zip(scores, targets, strict=True):
        labels = targets_N[targets_N != NO_LABEL]
        counts_K = all_reduce_sum(torch.bincount(labels, minlength=scores_NK.shape[1]), group)
        weights_K = torch.where(counts_K > 0, 1 / counts_K.clamp(min=1), 0.0).to(scores_NK.dtype)
        total = F.cross_entropy(
            scores_NK / temperature,
            targets_N,
            weight=weights_K,
            ignore_index=NO_LABEL,
            reduction="sum",
        )
        losses.append(total * world_size(group) / (counts_K > 0).sum().clamp(min=1))
    return torch.stack(losses).mean()


def label_plateau(num_prototypes: Sequence[int]) -> float:
    """What `label_loss` is where all prototypes are alike to a crop."""
    return sum(math.log(number) for number in num_prototypes) / len(num_prototypes)


def label_spread(
    targets: Sequence[Tensor], num_prototypes: Sequence[int], group: ProcessGroup | None
) -> Tensor:
    """Perplexity (H,) of each head's labels of all ranks: 1 where all have the same, NaN where
    there are none."""
    counts = [
        torch.bincount(targets_N[targets_N != NO_LABEL], minlength=num)
        for targets_N, num in zip(targets, num_prototypes, strict=True)
    ]
    shared = all_reduce_sum(torch.cat(counts).double(), group).split(list(num_prototypes))
    return torch.stack([perplexity(counts_K) for counts_K in shared])


def gather_crops(
    z_ND: Tensor, crops: Sequence[int], num_samples: int, group: ProcessGroup | None
) -> Tensor:
    """Embeddings (A, G, D) of the assigned crops of all ranks' samples, in global order."""
    parts = [z_ND[crop * num_samples : (crop + 1) * num_samples].detach() for crop in crops]
    return all_gather_rows(torch.stack(parts, dim=1), group).transpose(0, 1)


class DeepCluster(nn.Module):
    """Backbone, projection, centroids of each head, and the memory that they are clusters of."""

    num_clusterings: Tensor

    def __init__(
        self,
        config: DeepClusterConfig,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        seed: int = 0,
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.config, self.seed, self.group = config, seed, group
        self.num_crops = sum(num_views)
        check_crops(config.crops_for_assign, self.num_crops)
        self.backbone = backbone
        self.projection = swav_head(int(backbone.num_features), config.hidden_dim, config.dim)  # type: ignore[arg-type]
        self.heads = nn.ModuleList(Centroids(num, config.dim) for num in config.num_prototypes)
        self.memory = SampleMemory(config.memory, config.dim, len(config.crops_for_assign))
        capacity = config.memory if config.mode == "epochs" else 1
        self.labels = LabelTable(capacity, len(config.num_prototypes))
        self.register_buffer("num_clusterings", torch.zeros((), dtype=torch.int64))

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: Samples | None = None
    ) -> StepOutput:
        """One training step; clusters are made anew first, when it is time."""
        assert samples is not None, "clusters are of samples"
        if step and step % self.config.cluster_steps == 0:
            with torch.autocast(views[0].device.type, enabled=False):
                self.cluster(step)
        features_ND = self.projection(torch.cat([self.backbone(crops) for crops in views]))
        keys_B = sample_keys(samples.ids).to(features_ND.device)
        with torch.autocast(features_ND.device.type, enabled=False):
            z_ND = F.normalize(at_least_float32(features_ND), dim=1)
            scores = [head(z_ND) for head in self.heads]
            gathered_AGD = gather_crops(z_ND, self.config.crops_for_assign, len(keys_B), self.group)
            targets = self._targets(z_ND, keys_B, gathered_AGD)
            of_labels = label_loss if self.config.mode == "epochs" else balanced_label_loss
            loss = of_labels(scores, targets, self.config.temperature, self.group)
        self.memory.push(all_gather_rows(keys_B, self.group), gathered_AGD)
        spread_H = label_spread(targets, self.config.num_prototypes, self.group)
        readings = label_readings(scores[0], targets[0], spread_H)
        readings["memory_fill"] = self.memory.fill
        # Before the first clustering there is no loss.
        plateau = label_plateau(self.config.num_prototypes) if self.num_clusterings else None
        return StepOutput(loss, readings, z_ND[: len(keys_B)].detach(), plateau)

    @torch.no_grad()
    def _targets(self, z_ND: Tensor, keys_B: Tensor, gathered_AGD: Tensor) -> list[Tensor]:
        """Labels (N,) of all crops for each head."""
        if self.config.mode == "epochs":
            return [labels_B.repeat(self.num_crops) for labels_B in self.labels.look_up(keys_B)]
        crops, num_samples = self.config.crops_for_assign, len(keys_B)
        forget, targets = 1 / self.config.cluster_steps, []
        for number, head in enumerate(self._heads()):
            place = number % len(crops)
            own = slice(crops[place] * num_samples, (crops[place] + 1) * num_samples)
            labels_B = nearest_centroids(z_ND[own], head.centroids)
            if int(self.num_clusterings) == 0:
                labels_B = torch.full_like(labels_B, NO_LABEL)
            else:
                head.follow_(gathered_AGD[place], forget)
            labels_N = labels_B.repeat(self.num_crops)
            labels_N[own] = NO_LABEL  # a crop is not asked for what it said itself
            targets.append(labels_N)
        return targets

    def _heads(self) -> list[Centroids]:
        return list(self.heads)  # type: ignore[arg-type]

    @torch.no_grad()
    def cluster(self, step: int) -> None:
        """Make the clusters of every head from the memory, and the label of every sample in it.

        Every head starts from random rows of the memory, as published, in a stream, too: centroids
        that go on from where they are let one cluster swallow the others.
        """
        slots_L = self.memory.oldest_first()
        if len(slots_L) < max(self.config.num_prototypes):
            return
        mine = slots_L[share_of(len(slots_L), self.group)]
        labels = []
        for number, head in enumerate(self._heads()):
            bank_LD = self.memory.rows[number % len(self.config.crops_for_assign)]
            generator = step_generator(self.seed, step, f"deepcluster head {number}")
            order_L = torch.randperm(len(slots_L), generator=generator).to(slots_L.device)
            start_KD = bank_LD[slots_L[order_L[: len(head)]]]
            found = head.fit_(bank_LD[mine], start_KD, self.config.kmeans_iterations, self.group)
            labels.append(join_shares(found, len(slots_L), self.group))
        if self.config.mode == "epochs":
            self.labels.replace(self.memory.keys[slots_L], torch.stack(labels))
        self.num_clusterings += 1

    def after_backward(self, step: int) -> None:  # noqa: ARG002 - clusterings are counted
        """Nothing is learned before the first clustering: no momentum, no decay."""
        if int(self.num_clusterings) == 0:
            for parameter in self.parameters():
                parameter.grad = None

    def after_step(self, step: int) -> None:
        """Nothing: features enter the memory while the loss is computed."""

    def parameters_to_optimise(self) -> list[nn.Parameter]:
        """Backbone and head; centroids are computed."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def label_readings(
    scores_NK: Tensor, targets_N: Tensor, spread_H: Tensor
) -> dict[str, Tensor | float]:
    """Of the first head: the share of crops that have a label, how often it is the best score, and
    over how many prototypes labels are spread."""
    labelled_N = targets_N != NO_LABEL
    right_N = (scores_NK.argmax(dim=1) == targets_N) & labelled_N
    return {
        "labelled": labelled_N.float().mean(),
        "label_accuracy": right_N.sum() / labelled_N.sum().clamp(min=1),
        "assignments_used": spread_H[0],
    }
