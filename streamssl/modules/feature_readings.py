"""Readings of the spread of features and assignments.

Shape letters: N samples, D feature, K prototypes, clusters or classes.
"""

import torch
from torch import Tensor


def effective_rank(x_ND: Tensor) -> Tensor:
    """Return how many directions the features fill, from 1 to D. Give float64.

    RankMe (Garrido et al., arXiv:2210.02885, eq. 3): exp of the entropy of the singular values.
    """
    values = torch.linalg.svdvals(x_ND)
    return perplexity(values)


def feature_std(x_ND: Tensor) -> Tensor:
    """Return the mean standard deviation of a dimension times sqrt(D), of unit vectors.

    0 if all are equal, 1 if they are isotropic. SimSiam (arXiv:2011.10566, section 4.1) compares
    the standard deviation with 1 / sqrt(D).
    """
    return x_ND.std(dim=0).mean() * x_ND.shape[1] ** 0.5


def perplexity(masses_K: Tensor) -> Tensor:
    """Return exp of the entropy of masses of any sum: the number of equal shares; NaN if empty."""
    shares_K = masses_K / masses_K.sum()
    return torch.special.entr(shares_K).sum().exp()
