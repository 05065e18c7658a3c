"""Projection heads: small networks between a backbone and a loss.

Shape letters: N rows. Every head maps (N, in_dim) to (N, out_dim).
"""

from torch import nn


def swav_head(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear: 2048 -> 2048 -> 128 in SwAV (arXiv:2006.09882, 3.3)."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, out_dim),
    )


def linear_head(in_dim: int, out_dim: int) -> nn.Linear:
    """One linear map, as in MoCo v1 (arXiv:1911.05722, 3.3)."""
    return nn.Linear(in_dim, out_dim)


def mlp_head(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Linear, ReLU, linear, without batch norm, as in MoCo v2 (arXiv:2003.04297)."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, out_dim)
    )
