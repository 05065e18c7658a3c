"""SpCL: self-paced contrastive learning with hybrid memory.

Ge et al., arXiv:2006.02713. A memory holds one feature for every sample. Now and then reliable
clusters are found in it; everything else is a class of its own. A feature must be nearest to the
mean of its class among all of these, and then moves what the memory has of its sample.

The memory is a ring: as large as the data, it is the paper's; smaller, it is a window, and a sample
that comes for the first time joins the cluster in whose midst it lies, or becomes a class.

With `source_classes` there are two domains. Samples with a label are of the source: each of their
classes has one feature in a memory of its own, and is a class for both domains to tell apart.
Samples without are of the target, and all that is said above is said of them.

Shape letters: B rows of features, G of all ranks, N filled memory, L its capacity, C labels, S
classes of the source, D feature.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.distributed.collectives import all_gather_rows, from_first_rank
from streamssl.methods.base import Samples, StepOutput
from streamssl.modules.feature_readings import perplexity
from streamssl.modules.losses import at_least_float32
from streamssl.modules.neighbourhoods import dbscan, jaccard_neighbours
from streamssl.modules.sample_memory import SampleMemory, sample_keys
from streamssl.modules.self_paced import self_paced_labels

# The softmax of the authors' code keeps this away from 0, in the sum and in the logarithm.
_TINY = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class SpCLConfig:
    """The settings of the paper (section 4.2) and of its code for unsupervised re-identification.

    `memory`: how many samples are remembered. `cluster_steps`: steps between clusterings, the
    paper's 400 an epoch; for the first `fill_steps` features only enter the memory, which as
    published takes one pass over the data. `momentum` is the share of the old feature that stays.
    `source_classes`: how many classes the run's `label` tells apart in the source; 0: no labels.
    """

    memory: int = 12_936
    temperature: float = 0.05
    momentum: float = 0.2
    k1: int = 30
    k2: int = 6
    epsilon: float = 0.6
    epsilon_gap: float = 0.02
    min_samples: int = 4
    cluster_steps: int = 400
    fill_steps: int = 203
    source_classes: int = 0

    def __post_init__(self) -> None:
        for name in ("memory", "k2", "min_samples", "cluster_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; it must be at least 1; raise it")
        if self.source_classes < 0:
            raise ConfigError(
                f"source_classes={self.source_classes}; it must be 0, for no labels, or how many "
                "classes the labelled samples have"
            )
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum={self.momentum}; it must lie in [0, 1); the paper has 0.2")
        if not self.temperature > 0:
            raise ConfigError(
                f"temperature={self.temperature}; it must be above 0; the paper has 0.05"
            )
        if not 0 <= self.epsilon_gap < min(self.epsilon, 1 - self.epsilon):
            raise ConfigError(
                f"epsilon={self.epsilon} with epsilon_gap={self.epsilon_gap}; epsilon - gap must "
                "be above 0 and epsilon + gap below 1; the paper has 0.6 and 0.02"
            )
        if self.k1 < self.k2:
            raise ConfigError(f"k1={self.k1} with k2={self.k2}; k1 must be at least k2; raise k1")

    def build(
        self,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        seed: int = 0,  # noqa: ARG002 - SpCL draws nothing of its own
        num_steps: int = 0,  # noqa: ARG002 - every method is built alike
        group: ProcessGroup | None = None,
    ) -> "SpCL":
        """`num_views`: how many views each view group has; `backbone.num_features` its width."""
        return SpCL(self, backbone, num_views=num_views, group=group)


def cluster_contrast(
    x_BD: Tensor, targets_B: Tensor, memory_ND: Tensor, labels_N: Tensor, temperature: float
) -> Tensor:
    """The unified contrastive loss (eq. 1), mean over rows; see `row_losses`."""
    return row_losses(x_BD, targets_B, memory_ND, labels_N, temperature).mean()


def row_losses(
    x_BD: Tensor, targets_B: Tensor, memory_ND: Tensor, labels_N: Tensor, temperature: float
) -> Tensor:
    """Each row finds its class among all classes: the losses (B,).

    The score of a class is the mean similarity with its members: a centroid that is not
    normalised. Labels without a member take no part. As in the authors' code 1e-6 is added to the
    sum of the softmax and to the probability.
    """
    num_labels = int(torch.maximum(labels_N.max(), targets_B.max())) + 1
    sums_CD = memory_ND.new_zeros(num_labels, memory_ND.shape[1])
    sums_CD.index_add_(0, labels_N, memory_ND)
    counts_C = torch.bincount(labels_N, minlength=num_labels)
    centroids_CD = sums_CD / counts_C.clamp(min=1)[:, None]
    logits_BC = (x_BD @ centroids_CD.T) / temperature
    logits_BC = logits_BC.masked_fill(counts_C == 0, -torch.inf)
    # The largest is taken out of the exponentials, and therefore out of the constant, too.
    largest_B1 = logits_BC.detach().amax(dim=1, keepdim=True).clamp(min=0)
    masses_BC = (logits_BC - largest_B1).exp()
    p_BC = masses_BC / (masses_BC.sum(dim=1, keepdim=True) + _TINY * (-largest_B1).exp())
    return -(p_BC.gather(1, targets_B[:, None]) + _TINY).log()[:, 0]


@torch.no_grad()
def follow_(memory_ND: Tensor, slots_G: Tensor, x_GD: Tensor, momentum: float) -> None:
    """Memory follows features, in place (eq. 4): row by row, so that a repeated slot moves twice.

    Rows with different slots move at once: the first of every slot, then the second, and so on.
    """
    same_GG = slots_G[:, None] == slots_G
    turns_G = same_GG.tril(-1).sum(dim=1)
    for turn in range(int(turns_G.max()) + 1 if len(turns_G) else 0):
        now = turns_G == turn
        slots = slots_G[now]
        moved = momentum * memory_ND[slots] + (1 - momentum) * x_GD[now].to(memory_ND.dtype)
        memory_ND[slots] = moved / moved.norm(dim=1, keepdim=True)


class SpCL(nn.Module):
    """Backbone, batch norm without a bias, and the hybrid memory with its labels."""

    labels: Tensor
    threshold: Tensor
    reach: Tensor

    def __init__(
        self,
        config: SpCLConfig,
        backbone: nn.Module,
        *,
        num_views: Sequence[int],
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        self.config, self.group = config, group
        self.num_views = sum(num_views)
        self.backbone = backbone
        width = int(backbone.num_features)  # type: ignore[arg-type]
        self.norm = nn.BatchNorm1d(width)
        self.norm.bias.requires_grad_(False)
        self.memory = SampleMemory(config.memory, width)
        self.source = SampleMemory(config.source_classes, width) if config.source_classes else None
        # Labels below L are clusters and old classes; a new class of slot s is L + s; class s of
        # the source is 2 L + s.
        self.register_buffer("labels", torch.arange(config.memory) + config.memory)
        self.register_buffer("threshold", torch.full((), -1.0, dtype=torch.float64))
        # Of each cluster: the least similarity of a member with its centroid; 2 where it is none.
        self.register_buffer("reach", torch.full((config.memory,), 2.0))
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: Samples | None = None
    ) -> StepOutput:
        """One training step; clusters are made anew first, when it is time."""
        assert samples is not None, "the memory is of samples"
        filled = step - self.config.fill_steps
        if filled >= 0 and filled % self.config.cluster_steps == 0:
            with torch.autocast(views[0].device.type, enabled=False):
                self.cluster()
        features_ND = self.norm(torch.cat([self.backbone(crops) for crops in views]))
        who_B2 = self._who(samples).to(features_ND.device)
        with torch.autocast(features_ND.device.type, enabled=False):
            x_ND = F.normalize(at_least_float32(features_ND), dim=1)
            by_view_GVD = all_gather_rows(
                x_ND.detach().view(self.num_views, len(who_B2), -1).transpose(0, 1), self.group
            )
            who_G2 = all_gather_rows(who_B2, self.group)
            share_new = self._meet(who_G2, by_view_GVD[:, 0])
            filled_L = self.memory.oldest_first()
            memory_LD, labels_L = self._classes(filled_L)
            losses_N = row_losses(
                x_ND,
                self._targets(who_B2).repeat(self.num_views),
                memory_LD.to(x_ND.dtype),
                labels_L,
                self.config.temperature,
            )
            weights_B = self._weights(who_B2, who_G2).to(losses_N.dtype)
            loss = (losses_N * weights_B.repeat(self.num_views)).sum() / self.num_views
        rows_ND = by_view_GVD.transpose(0, 1).flatten(0, 1)
        self._pending = [
            (memory.rows[0], memory.find(keys_G).repeat(self.num_views), rows_ND)
            for memory, keys_G in self._memories(who_G2)
        ]
        readings = self._readings(filled_L, share_new)
        return StepOutput(loss, readings, x_ND[: len(who_B2)].detach())

    def _who(self, samples: Samples) -> Tensor:
        """Keys (B, 2) in the memory of the target and in that of the source; -1 where not there."""
        keys_B = sample_keys(samples.ids)
        classes_B = torch.full_like(keys_B, -1)
        if self.source is not None and samples.labels is not None:
            classes_B = samples.labels.clamp(min=-1)
        return torch.stack([torch.where(classes_B < 0, keys_B, -1), classes_B], dim=1)

    def _memories(self, who_G2: Tensor) -> list[tuple[SampleMemory, Tensor]]:
        """Both memories, or the one that there is, with the keys in it."""
        found = [(self.memory, who_G2[:, 0])]
        return found if self.source is None else [*found, (self.source, who_G2[:, 1])]

    def _targets(self, who_B2: Tensor) -> Tensor:
        """The class (B,) of every row."""
        targets_B = self.labels[self.memory.find(who_B2[:, 0])]
        if self.source is None:
            return targets_B
        classes_B = 2 * self.config.memory + self.source.find(who_B2[:, 1])
        return torch.where(who_B2[:, 1] >= 0, classes_B, targets_B)

    def _classes(self, filled_L: Tensor) -> tuple[Tensor, Tensor]:
        """What the memories hold, as a copy, since backward needs it as it was; and its labels."""
        rows, labels = self.memory.rows[0][filled_L], self.labels[filled_L]
        if self.source is None:
            return rows, labels
        filled_S = self.source.oldest_first()
        rows = torch.cat([rows, self.source.rows[0][filled_S]])
        return rows, torch.cat([labels, 2 * self.config.memory + filled_S])

    def _weights(self, who_B2: Tensor, who_G2: Tensor) -> Tensor:
        """Shares (B,) of rows in this rank's loss: the mean of each domain, and both are added."""
        is_source_B, is_source_G = who_B2[:, 1] >= 0, who_G2[:, 1] >= 0
        num_ranks = len(who_G2) // len(who_B2)
        num_source = int(is_source_G.sum())
        shares = who_B2.new_tensor([len(who_G2) - num_source, num_source]).clamp(min=1)
        return num_ranks / shares.double()[is_source_B.long()]

    @torch.no_grad()
    def _meet(self, who_G2: Tensor, x_GD: Tensor) -> float:
        """Give every sample that is not in the memory a slot and a label, and every class of the
        source a slot; returns the share of samples that were not there."""
        self._meet_classes(who_G2[:, 1], x_GD)
        is_target_G = who_G2[:, 0] >= 0
        keys_G, x_GD = who_G2[is_target_G, 0], x_GD[is_target_G]
        num_new = 0
        # In a full ring the new can push out old ones of this very batch; these come in again.
        while (unknown_G := self.memory.find(keys_G) < 0).any():
            keys, first = _first_of_each(keys_G[unknown_G])
            rows = x_GD[unknown_G][first]
            labels = self._nearest_reach(rows)
            slots = self.memory.push(keys, rows[None])
            self.labels[slots] = torch.where(labels >= 0, labels, self.config.memory + slots)
            num_new += len(keys)
        return num_new / max(1, len(keys_G))

    def _meet_classes(self, classes_G: Tensor, x_GD: Tensor) -> None:
        """A class begins as the first of its features."""
        if self.source is None:
            return
        is_new_G = (classes_G >= 0) & (self.source.find(classes_G) < 0)
        keys, first = _first_of_each(classes_G[is_new_G])
        num_classes = int(self.source.num_filled) + len(keys)
        if num_classes > self.source.capacity:
            raise ConfigError(
                f"the labelled samples have {num_classes} classes or more, and source_classes is "
                f"{self.source.capacity}; each needs a place of its own; raise "
                "--method.source-classes"
            )
        self.source.push(keys, x_GD[is_new_G][first][None])

    def _nearest_reach(self, rows_GD: Tensor) -> Tensor:
        """The nearest cluster (G,), if no further than its furthest member was; else -1."""
        clusters = torch.nonzero(self.reach <= 1.5)[:, 0]
        slots_N = self.memory.oldest_first()
        if len(clusters) == 0 or len(slots_N) == 0:
            return torch.full((len(rows_GD),), -1, device=rows_GD.device)
        centroids_CD = self._centroids(slots_N)[clusters]
        best = (rows_GD.to(centroids_CD.dtype) @ centroids_CD.T).max(dim=1)
        found_G = clusters[best.indices]
        return torch.where(best.values >= self.reach[found_G], found_G, -1)

    def _centroids(self, slots_N: Tensor) -> Tensor:
        """Mean features (2 L, D) of all labels; zeros where a label has no member."""
        num_labels, labels_N = 2 * self.config.memory, self.labels[slots_N]
        rows_ND = self.memory.rows[0][slots_N]
        sums = rows_ND.new_zeros(num_labels, rows_ND.shape[1]).index_add_(0, labels_N, rows_ND)
        return sums / torch.bincount(labels_N, minlength=num_labels).clamp(min=1)[:, None]

    @torch.no_grad()
    def cluster(self) -> None:
        """New classes for everything in the memory; rank 0's, should others round differently."""
        config, slots_N = self.config, self.memory.oldest_first()
        if len(slots_N) < config.min_samples:
            return
        neighbours = jaccard_neighbours(
            self.memory.rows[0][slots_N],
            k1=config.k1,
            k2=config.k2,
            largest=config.epsilon + config.epsilon_gap,
        )
        clusters, tight, loose = (
            dbscan(neighbours, epsilon=config.epsilon + gap, min_samples=config.min_samples)
            for gap in (0.0, -config.epsilon_gap, config.epsilon_gap)
        )
        known = None if self.threshold < 0 else float(self.threshold)
        found = self_paced_labels(clusters, tight, loose, known)
        _, dense_N = np.unique(found.labels, return_inverse=True)
        labels_N = torch.from_numpy(dense_N.astype(np.int64)).to(slots_N.device)
        self.labels[slots_N] = from_first_rank(labels_N, self.group)
        if clusters.max(initial=-1) >= 0:
            threshold = self.threshold.new_tensor(found.threshold)
            self.threshold.copy_(from_first_rank(threshold, self.group))
        self._measure_reach(slots_N)

    def _measure_reach(self, slots_N: Tensor) -> None:
        labels_N = self.labels[slots_N]
        similar_N = (self.memory.rows[0][slots_N] * self._centroids(slots_N)[labels_N]).sum(dim=1)
        least = torch.full_like(self.reach, 2.0).scatter_reduce(0, labels_N, similar_N, "amin")
        counts = torch.bincount(labels_N, minlength=self.config.memory)
        self.reach.copy_(torch.where(counts > 1, least, 2.0))

    def _readings(self, slots_N: Tensor, share_new: float) -> dict[str, Tensor | float]:
        """Clusters of at least two, the share of samples in one, and of those never seen.

        `assignments_used`: the perplexity of the classes in the memory, 1 where one has all.
        """
        counts = torch.bincount(self.labels[slots_N])
        return {
            "clusters": (counts > 1).sum(),
            "clustered": counts[counts > 1].sum() / max(1, len(slots_N)),
            "new_samples": share_new,
            "assignments_used": perplexity(counts.double()),
            "memory_fill": self.memory.fill,
        }

    def after_backward(self, step: int) -> None:
        """The memory follows the features; while it fills, nothing is learned."""
        for rows, slots_G, x_GD in self._pending:
            there_G = slots_G >= 0
            follow_(rows, slots_G[there_G], x_GD[there_G], self.config.momentum)
        self._pending = []
        if step < self.config.fill_steps:
            for parameter in self.parameters():
                parameter.grad = None

    def after_step(self, step: int) -> None:
        """Nothing."""

    def parameters_to_optimise(self) -> list[nn.Parameter]:
        """Backbone and the weight of the batch norm."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]


def _first_of_each(keys_G: Tensor) -> tuple[Tensor, Tensor]:
    """Different keys in the order of their first places, and these places."""
    same_GG = keys_G[:, None] == keys_G
    first = torch.nonzero(same_GG.tril(-1).sum(dim=1) == 0)[:, 0]
    return keys_G[first], first
