"""Sinkhorn-Knopp: soft assignments from scores, with equal use of all prototypes.

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
    """Return assignments (B, K), float32 or float64 as the scores; rows sum to 1. No gradient.

    SwAV, arXiv:2006.09882, eq. 3-5 and appendix A.1: Q = Diag(u) exp(scores / epsilon) Diag(v),
    alternately normalising prototypes to equal shares and samples to one unit each, samples last.
    The constants 1/K and 1/B of the paper cancel in the next half-step, so they are not computed.
    Ranks add up the shares of the prototypes: one all-reduce of K numbers an iteration.

    No scores overflow or underflow: the first half-step divides every prototype by its sum, so a
    factor of a prototype does not matter, and its maximum is subtracted before exp. After that a
    prototype's sum is at least 1 / (B K), and samples are normalised in logarithms.
    """
    with torch.autocast(scores_BK.device.type, enabled=False):
        exact_BK = scores_BK if scores_BK.dtype == torch.float64 else scores_BK.float()
        largest_K = all_reduce_max(exact_BK.amax(dim=0), group)
        log_q_BK = (exact_BK - largest_K) / epsilon
        for _ in range(num_iterations):
            share_K = all_reduce_sum(log_q_BK.exp().sum(dim=0), group)
            log_q_BK = torch.log_softmax(log_q_BK - share_K.log(), dim=1)
        return log_q_BK.exp()
