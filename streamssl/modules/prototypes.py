"""Prototypes: trainable unit vectors that features are compared with, and their use.

Shape letters: N features, B samples of this rank, K prototypes, D feature.
"""

import math

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from streamssl.distributed.collectives import all_reduce_sum
from streamssl.modules.feature_readings import perplexity

# A prototype counts as dead if it was no first choice in the last 10 K assignments: with equal use
# the probability of that is exp(-10).
DEAD_AFTER_ASSIGNMENTS_PER_PROTOTYPE = 10


class Prototypes(nn.Module):
    """A bias-free linear map whose rows are the prototypes (SwAV, arXiv:2006.09882, section 3.1).

    `weight` (K, D) float32. Call `normalise_` before the features of a step are scored, and
    `drop_gradient` after backward while the prototypes are frozen.
    """

    codes_since_chosen: Tensor

    def __init__(self, num_prototypes: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Linear(dim, num_prototypes, bias=False).weight.detach())
        unseen_K = torch.zeros(num_prototypes, dtype=torch.int64)
        self.register_buffer("codes_since_chosen", unseen_K)

    def forward(self, z_ND: Tensor) -> Tensor:
        """Return scores (N, K): cosines if the features have unit norm."""
        return F.linear(z_ND, self.weight)

    @torch.no_grad()
    def normalise_(self) -> None:
        """Normalise the rows in place, after the optimizer has moved them off the sphere."""
        self.weight.copy_(F.normalize(self.weight, dim=1))

    def drop_gradient(self) -> None:
        """Freeze for one step: without a gradient there is no momentum and no decay."""
        self.weight.grad = None

    @torch.no_grad()
    def count_use(self, assigned_BK: Tensor, group: ProcessGroup | None) -> dict[str, Tensor]:
        """Count first choices of prototypes; return readings, the same on every rank.

        `prototype_usage`: perplexity of the mean assignment over K, 1 if all are used equally.
        `prototypes_dead`: fraction that was no first choice in the last 10 K assignments.
        `codes_entropy`: mean entropy of an assignment in nats, ln K if it is uniform.
        `codes_certainty`: 1 - that entropy / ln K, 0 if assignments are uniform.
        """
        num_prototypes = assigned_BK.shape[1]
        chosen_K = torch.zeros_like(assigned_BK[0]).index_fill_(0, assigned_BK.argmax(dim=1), 1.0)
        entropy_1 = torch.special.entr(assigned_BK).sum().view(1)
        count_1 = assigned_BK.new_full((1,), len(assigned_BK))
        mine = torch.cat([assigned_BK.sum(dim=0), chosen_K, entropy_1, count_1])
        total = all_reduce_sum(mine, group)
        mass_K, chosen_K = total[:num_prototypes], total[num_prototypes:-2]
        entropy, num_assigned = total[-2], total[-1]
        self.codes_since_chosen += num_assigned.to(torch.int64)
        self.codes_since_chosen *= chosen_K == 0
        limit = DEAD_AFTER_ASSIGNMENTS_PER_PROTOTYPE * num_prototypes
        codes_entropy = entropy / num_assigned
        return {
            "codes_entropy": codes_entropy,
            "codes_certainty": 1 - codes_entropy / math.log(max(2, num_prototypes)),
            "prototype_usage": perplexity(mass_K) / num_prototypes,
            "prototypes_dead": (self.codes_since_chosen > limit).float().mean(),
        }
