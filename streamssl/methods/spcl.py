"""SpCL: self-paced contrastive learning with hybrid memory.

Ge et al., arXiv:2006.02713. A memory holds one feature for every sample. At intervals reliable
clusters are found in it; every other sample is a class of its own. A feature must be nearest to the
mean of its class among all classes, and then updates the memory of its sample.

The memory is a ring. With the size of the data it is that of the paper. A smaller one is a window:
a new sample joins the nearest cluster if it lies within it, or becomes a class.

With `source_classes` there are two domains. Samples with a label belong to the source: a second
memory holds one feature for each of their classes, which count as classes for both domains.
Samples without a label belong to the target, which the paragraphs above describe.

Shape letters: B rows of features, G of all ranks, N filled memory, L its capacity, C labels, S
classes of the source, D feature.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shards.errors import ConfigError
from streamssl.config.methods.spcl_config import SpCLConfig
from streamssl.distributed.collectives import all_gather_rows, from_first_rank
from streamssl.methods.base import BuildContext, Method, SampleInfo, StepOutput
from streamssl.modules.feature_readings import perplexity
from streamssl.modules.losses import at_least_float32
from streamssl.modules.neighbourhoods import dbscan, jaccard_neighbours
from streamssl.modules.sample_memory import SampleMemory, sample_keys
from streamssl.modules.self_paced import self_paced_labels

# Added to the sum of the softmax and in the logarithm, as in the authors' code.
_TINY = 1e-6


def cluster_contrast(
    x_BD: Tensor, targets_B: Tensor, memory_ND: Tensor, labels_N: Tensor, temperature: float
) -> Tensor:
    """Return the unified contrastive loss (eq. 1), the mean over rows; see `row_losses`."""
    return row_losses(x_BD, targets_B, memory_ND, labels_N, temperature).mean()


def row_losses(
    x_BD: Tensor, targets_B: Tensor, memory_ND: Tensor, labels_N: Tensor, temperature: float
) -> Tensor:
    """Return the losses (B,) of rows that find their class among all classes.

    The score of a class is the mean similarity with its members, so centroids are not normalised.
    Labels without a member do not count. As in the authors' code, 1e-6 is added to the sum of the
    softmax and to the probability.
    """
    num_labels = int(torch.maximum(labels_N.max(), targets_B.max())) + 1
    sums_CD = memory_ND.new_zeros(num_labels, memory_ND.shape[1])
    sums_CD.index_add_(0, labels_N, memory_ND)
    counts_C = torch.bincount(labels_N, minlength=num_labels)
    centroids_CD = sums_CD / counts_C.clamp(min=1)[:, None]
    logits_BC = (x_BD @ centroids_CD.T) / temperature
    logits_BC = logits_BC.masked_fill(counts_C == 0, -torch.inf)
    # The maximum is subtracted before exp, so the constant is divided by its exp, too.
    largest_B1 = logits_BC.detach().amax(dim=1, keepdim=True).clamp(min=0)
    masses_BC = (logits_BC - largest_B1).exp()
    p_BC = masses_BC / (masses_BC.sum(dim=1, keepdim=True) + _TINY * (-largest_B1).exp())
    return -(p_BC.gather(1, targets_B[:, None]) + _TINY).log()[:, 0]


@torch.no_grad()
def follow_(memory_ND: Tensor, slots_G: Tensor, x_GD: Tensor, momentum: float) -> None:
    """Update the memory by features, in place (eq. 4); a repeated slot is updated repeatedly.

    Rows with different slots are updated at once: the first of every slot, then the second, ...
    """
    same_GG = slots_G[:, None] == slots_G
    turns_G = same_GG.tril(-1).sum(dim=1)
    for turn in range(int(turns_G.max()) + 1 if len(turns_G) else 0):
        now = turns_G == turn
        slots = slots_G[now]
        moved = momentum * memory_ND[slots] + (1 - momentum) * x_GD[now].to(memory_ND.dtype)
        memory_ND[slots] = moved / moved.norm(dim=1, keepdim=True)


class SpCL(Method):
    """Backbone, batch norm without a bias, and the hybrid memory with its labels."""

    labels: Tensor
    threshold: Tensor
    reach: Tensor

    def __init__(self, config: SpCLConfig, context: BuildContext) -> None:
        super().__init__(context)
        self.config = config
        self.num_views = context.num_crops
        width = context.width
        self.norm = nn.BatchNorm1d(width)
        self.norm.bias.requires_grad_(False)
        self.memory = SampleMemory(config.memory, width)
        self.source = SampleMemory(config.source_classes, width) if config.source_classes else None
        # Labels below L are clusters and older classes; a new class of slot s has label L + s, and
        # class s of the source has 2 L + s.
        self.register_buffer("labels", torch.arange(config.memory) + config.memory)
        self.register_buffer("threshold", torch.full((), -1.0, dtype=torch.float64))
        # Smallest similarity of a member with the centroid of its cluster; 2 if it is no cluster.
        self.register_buffer("reach", torch.full((config.memory,), 2.0))
        self._pending: list[tuple[Tensor, Tensor, Tensor]] = []

    def loss(
        self, views: Sequence[Tensor], *, step: int, samples: SampleInfo | None = None
    ) -> StepOutput:
        """Compute the loss of a step; cluster the memory first if it is due."""
        assert samples is not None, "the memory needs sample ids"
        filled = step - self.config.fill_steps
        if filled >= 0 and filled % self.config.cluster_steps == 0:
            with torch.autocast(views[0].device.type, enabled=False):
                self.cluster()
        features_ND = self.norm(torch.cat([self.backbone(crops) for crops in views]))
        keys_B2 = self._keys(samples).to(features_ND.device)
        with torch.autocast(features_ND.device.type, enabled=False):
            x_ND = F.normalize(at_least_float32(features_ND), dim=1)
            by_view_GVD = all_gather_rows(
                x_ND.detach().view(self.num_views, len(keys_B2), -1).transpose(0, 1), self.group
            )
            keys_G2 = all_gather_rows(keys_B2, self.group)
            share_new = self._add_unknown(keys_G2, by_view_GVD[:, 0])
            filled_L = self.memory.oldest_first()
            memory_LD, labels_L = self._classes(filled_L)
            losses_N = row_losses(
                x_ND,
                self._targets(keys_B2).repeat(self.num_views),
                memory_LD.to(x_ND.dtype),
                labels_L,
                self.config.temperature,
            )
            weights_B = self._weights(keys_B2, keys_G2).to(losses_N.dtype)
            loss = (losses_N * weights_B.repeat(self.num_views)).sum() / self.num_views
        rows_ND = by_view_GVD.transpose(0, 1).flatten(0, 1)
        self._pending = [
            (memory.rows[0], memory.find(keys_G).repeat(self.num_views), rows_ND)
            for memory, keys_G in self._memories(keys_G2)
        ]
        readings = self._readings(filled_L, share_new)
        if self.source is not None:
            readings["labelled"] = (keys_B2[:, 1] >= 0).float().mean()
        return StepOutput(loss, readings, x_ND[: len(keys_B2)].detach())

    def _keys(self, samples: SampleInfo) -> Tensor:
        """Return keys (B, 2) in the memories of target and source; -1 in the other domain."""
        keys_B = sample_keys(samples.ids)
        classes_B = torch.full_like(keys_B, -1)
        if self.source is not None and samples.labels is not None:
            classes_B = samples.labels.clamp(min=-1)
        return torch.stack([torch.where(classes_B < 0, keys_B, -1), classes_B], dim=1)

    def _memories(self, keys_G2: Tensor) -> list[tuple[SampleMemory, Tensor]]:
        """Return the memories that exist, with the keys of each."""
        found = [(self.memory, keys_G2[:, 0])]
        return found if self.source is None else [*found, (self.source, keys_G2[:, 1])]

    def _targets(self, keys_B2: Tensor) -> Tensor:
        """Return the class (B,) of every row."""
        targets_B = self.labels[self.memory.find(keys_B2[:, 0])]
        if self.source is None:
            return targets_B
        classes_B = 2 * self.config.memory + self.source.find(keys_B2[:, 1])
        return torch.where(keys_B2[:, 1] >= 0, classes_B, targets_B)

    def _classes(self, filled_L: Tensor) -> tuple[Tensor, Tensor]:
        """Return copies of the memories' features, for backward, and their labels."""
        rows, labels = self.memory.rows[0][filled_L], self.labels[filled_L]
        if self.source is None:
            return rows, labels
        filled_S = self.source.oldest_first()
        rows = torch.cat([rows, self.source.rows[0][filled_S]])
        return rows, torch.cat([labels, 2 * self.config.memory + filled_S])

    def _weights(self, keys_B2: Tensor, keys_G2: Tensor) -> Tensor:
        """Return the weights (B,) of rows in this rank's loss, the sum of the domains' means."""
        is_source_B, is_source_G = keys_B2[:, 1] >= 0, keys_G2[:, 1] >= 0
        num_ranks = len(keys_G2) // len(keys_B2)
        num_source = int(is_source_G.sum())
        shares = keys_B2.new_tensor([len(keys_G2) - num_source, num_source]).clamp(min=1)
        return num_ranks / shares.double()[is_source_B.long()]

    @torch.no_grad()
    def _add_unknown(self, keys_G2: Tensor, x_GD: Tensor) -> float:
        """Add unknown samples with a label, and unknown classes of the source.

        Return the share of samples that were unknown.
        """
        self._add_classes(keys_G2[:, 1], x_GD)
        is_target_G = keys_G2[:, 0] >= 0
        keys_G, x_GD = keys_G2[is_target_G, 0], x_GD[is_target_G]
        num_new = 0
        # In a full ring new samples can replace older ones of this batch, which are added again.
        while (unknown_G := self.memory.find(keys_G) < 0).any():
            keys, first = _first_of_each(keys_G[unknown_G])
            rows = x_GD[unknown_G][first]
            labels = self._nearest_reach(rows)
            slots = self.memory.push(keys, rows[None])
            self.labels[slots] = torch.where(labels >= 0, labels, self.config.memory + slots)
            num_new += len(keys)
        return num_new / max(1, len(keys_G))

    def _add_classes(self, classes_G: Tensor, x_GD: Tensor) -> None:
        """Add unknown classes of the source; each starts as its first feature."""
        if self.source is None:
            return
        is_new_G = (classes_G >= 0) & (self.source.find(classes_G) < 0)
        keys, first = _first_of_each(classes_G[is_new_G])
        num_classes = int(self.source.num_filled) + len(keys)
        if num_classes > self.source.capacity:
            raise ConfigError(
                f"the labelled samples have {num_classes} classes or more, and source_classes is "
                f"{self.source.capacity}; each class needs a place: raise "
                "--method.source-classes"
            )
        self.source.push(keys, x_GD[is_new_G][first][None])

    def _nearest_reach(self, rows_GD: Tensor) -> Tensor:
        """Return the nearest cluster (G,), or -1 if all its members are nearer to its centroid."""
        clusters = torch.nonzero(self.reach <= 1.5)[:, 0]
        slots_N = self.memory.oldest_first()
        if len(clusters) == 0 or len(slots_N) == 0:
            return torch.full((len(rows_GD),), -1, device=rows_GD.device)
        centroids_CD = self._centroids(slots_N)[clusters]
        best = (rows_GD.to(centroids_CD.dtype) @ centroids_CD.T).max(dim=1)
        found_G = clusters[best.indices]
        return torch.where(best.values >= self.reach[found_G], found_G, -1)

    def _centroids(self, slots_N: Tensor) -> Tensor:
        """Return the mean features (2 L, D) of all labels; zeros for a label without a member."""
        num_labels, labels_N = 2 * self.config.memory, self.labels[slots_N]
        rows_ND = self.memory.rows[0][slots_N]
        sums = rows_ND.new_zeros(num_labels, rows_ND.shape[1]).index_add_(0, labels_N, rows_ND)
        return sums / torch.bincount(labels_N, minlength=num_labels).clamp(min=1)[:, None]

    @torch.no_grad()
    def cluster(self) -> None:
        """Cluster the memory anew. All ranks use rank 0's result: others may round differently."""
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
        lowest = torch.full_like(self.reach, 2.0).scatter_reduce(0, labels_N, similar_N, "amin")
        counts = torch.bincount(labels_N, minlength=self.config.memory)
        self.reach.copy_(torch.where(counts > 1, lowest, 2.0))

    def _readings(self, slots_N: Tensor, share_new: float) -> dict[str, Tensor | float]:
        """Return the number of clusters, the share of samples in one, and of unknown samples.

        `assignments_used`: perplexity of the classes in the memory, 1 if one class has all samples.
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
        """Update the memory by the features; drop gradients while the memory fills."""
        for rows, slots_G, x_GD in self._pending:
            known_G = slots_G >= 0
            follow_(rows, slots_G[known_G], x_GD[known_G], self.config.momentum)
        self._pending = []
        if step < self.config.fill_steps:
            for parameter in self.parameters():
                parameter.grad = None


def _first_of_each(keys_G: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct keys in the order of their first places, and these places."""
    same_GG = keys_G[:, None] == keys_G
    first = torch.nonzero(same_GG.tril(-1).sum(dim=1) == 0)[:, 0]
    return keys_G[first], first
