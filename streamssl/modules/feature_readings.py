"""Numbers that say how features and assignments are spread.

Shape letters: N samples, D feature, K prototypes, clusters or classes.
"""

import torch
from torch import Tensor


def effective_rank(x_ND: Tensor) -> Tensor:
    """How many directions features take up, from 1 to D. Give float64.

    RankMe (Garrido et al., arXiv:2210.02885, eq. 3): exp of the entropy of the singular values.
    """
    values = torch.linalg.svdvals(x_ND)
    return perplexity(values)


def feature_std(x_ND: Tensor) -> Tensor:
    """Standard deviation of a dimension times the root of D, of unit vectors.

    0 where all are the same, 1 where they point everywhere: SimSiam (arXiv:2011.10566, section
    4.1) shows it as standard deviation beside 1 / sqrt(D).
    """
    return x_ND.std(dim=0).mean() * x_ND.shape[1] ** 0.5


def perplexity(masses_K: Tensor) -> Tensor:
    """exp of the entropy of masses of any sum: as if so many had an equal share. NaN of nothing."""
    shares_K = masses_K / masses_K.sum()
    return torch.special.entr(shares_K).sum().exp()
