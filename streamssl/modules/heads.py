"""Projection heads: small networks between a backbone and a loss.

Shape letters: N rows. Every head maps (N, in_dim) to (N, out_dim).
"""

from torch import nn


def swav_head(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Build linear, batch norm, ReLU, linear: SwAV has 2048 -> 2048 -> 128 (arXiv:2006.09882)."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, out_dim),
    )


def linear_head(in_dim: int, out_dim: int) -> nn.Linear:
    """Build one linear map, as in MoCo v1 (arXiv:1911.05722, 3.3)."""
    return nn.Linear(in_dim, out_dim)


def mlp_head(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Build linear, ReLU, linear, without batch norm, as in MoCo v2 (arXiv:2003.04297)."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, out_dim)
    )


def byol_head(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Build linear, batch norm, ReLU, linear without bias: BYOL (arXiv:2006.07733, section 3.3)."""
    return nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.BatchNorm1d(hidden_dim),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_dim, out_dim, bias=False),
    )


def simclr_head(in_dim: int, out_dim: int, num_layers: int) -> nn.Sequential:
    """Build layers of linear, batch norm, ReLU, as wide as the input; the last without ReLU.

    SimCLR has 2 layers (arXiv:2002.05709, section 4.2), SimCLR v2 has 3 (arXiv:2006.10029, section
    2). No layer has a bias, nor has the last batch norm. SimCLR v2 is fine-tuned from the end of
    the first layer, which is the first three modules.
    """
    layers: list[nn.Module] = []
    for _ in range(num_layers - 1):
        layers += [nn.Linear(in_dim, in_dim, bias=False), nn.BatchNorm1d(in_dim), nn.ReLU()]
    last = nn.BatchNorm1d(out_dim)
    last.bias.requires_grad_(False)  # it stays 0
    return nn.Sequential(*layers, nn.Linear(in_dim, out_dim, bias=False), last)


def moco_v3_head(
    in_dim: int, hidden_dim: int, out_dim: int, *, num_layers: int, ends_in_norm: bool
) -> nn.Sequential:
    """Build layers of bias-free linear, batch norm, ReLU; the last is linear, perhaps with a norm.

    MoCo v3, arXiv:2104.02057, "Implementation details": the last norm has no affine part.
    """
    layers: list[nn.Module] = []
    width = in_dim
    for _ in range(num_layers - 1):
        layers += [nn.Linear(width, hidden_dim, bias=False), nn.BatchNorm1d(hidden_dim), nn.ReLU()]
        width = hidden_dim
    layers.append(nn.Linear(width, out_dim, bias=False))
    if ends_in_norm:
        layers.append(nn.BatchNorm1d(out_dim, affine=False))
    return nn.Sequential(*layers)
