"""Sinkhorn-Knopp: scores become soft assignments that use every prototype about equally.

Shape letters: B rows of this rank (queue and batch), K prototypes.
"""

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from streamssl.distributed.collectives import all_reduce_max, all_reduce_sum


@torch.no_grad()
def sinkhorn(
    scores_BK: Tensor, *, epsilon: float, num_iterations: int, group: ProcessGroup | None = None
) -> Tensor:
    """Codes (B, K), float32 (float64 if given float64); each row sums to 1. No gradient.

    SwAV, arXiv:2006.09882, eq. 3-5 and appendix A.1: Q = Diag(u) exp(scores / epsilon) Diag(v),
    alternating prototypes to equal shares and samples to one unit each, the samples last. The
    constants 1/K and 1/B of the paper cancel in the half-step that follows them, so they are not
    computed. Ranks share the shares of the prototypes: one K-vector all-reduce an iteration.

    Nothing overflows or vanishes, whatever the scores: the first half-step divides every prototype
    by its sum, so any factor of a prototype is free and its maximum is taken out before exp; from
    then on a prototype's sum is at least 1 / (B K), and samples are normalised as logarithms.
    """
    with torch.autocast(scores_BK.device.type, enabled=False):
        exact_BK = scores_BK if scores_BK.dtype == torch.float64 else scores_BK.float()
        largest_K = all_reduce_max(exact_BK.amax(dim=0), group)
        log_q_BK = (exact_BK - largest_K) / epsilon
        for _ in range(num_iterations):
            share_K = all_reduce_sum(log_q_BK.exp().sum(dim=0), group)
            log_q_BK = torch.log_softmax(log_q_BK - share_K.log(), dim=1)
        return log_q_BK.exp()
