"""Heads: their layers, in order, and their widths."""

import torch
from torch import nn

from streamssl.modules.heads import linear_head, mlp_head, swav_head


def test_heads_are_those_of_the_papers() -> None:
    """SwAV's head has batch norm, MoCo v2's has none, MoCo v1's is one layer."""
    assert [type(layer) for layer in swav_head(8, 6, 4)] == [
        nn.Linear,
        nn.BatchNorm1d,
        nn.ReLU,
        nn.Linear,
    ]
    assert [type(layer) for layer in mlp_head(8, 6, 4)] == [nn.Linear, nn.ReLU, nn.Linear]
    for head in (swav_head(8, 6, 4), mlp_head(8, 6, 4), linear_head(8, 4)):
        assert head(torch.randn(5, 8)).shape == (5, 4)
