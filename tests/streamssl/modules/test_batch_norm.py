"""Batch norm over ranks against torch's own on all rows at once."""

from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from streamssl.modules.batch_norm import RankBatchNorm, enter_group, share_batch_norm
from streamssl.modules.momentum import MomentumCopy
from tests.gloo_ranks import with_ranks

NUM_RANKS, NUM_ROWS = 2, 6


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    norm: nn.Module = {
        "images": lambda: nn.BatchNorm2d(4),
        "vectors": lambda: nn.BatchNorm1d(4, momentum=0.3),
        "cumulative": lambda: nn.BatchNorm2d(4, momentum=None),
        "plain": lambda: nn.BatchNorm2d(4, affine=False, track_running_stats=False),
        "with activation": lambda: BatchNormAct2d(4),
    }[name]()
    for parameter in norm.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return nn.Sequential(norm).double()


def rows(name: str) -> Tensor:
    shape = (NUM_ROWS, 4) if name == "vectors" else (NUM_ROWS, 4, 3, 5)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 2


def run(ranks: Any, network: nn.Module, x: Tensor) -> dict[str, Any]:
    """Two passes forward and back over this rank's rows, with a loss that is no plain sum."""
    enter_group(network, ranks)
    size = len(x) // (1 if ranks is None else ranks.size())
    start = 0 if ranks is None else ranks.rank() * size
    mine = x[start : start + size].clone().requires_grad_()
    for _ in range(2):
        y = network(mine)
        (y * y * torch.linspace(0, 1, y[0].numel()).view(y[0].shape)).sum().backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    return {"y": y.detach(), "x": mine.grad, "parameters": gradients}


@pytest.mark.parametrize("name", ["images", "vectors", "cumulative", "plain", "with activation"])
def test_ranks_normalise_as_one_process(name: str) -> None:
    """Outputs, gradients and running statistics must agree in float64."""
    expected_network, x = make(name), rows(name)
    expected = run(None, expected_network, x)
    networks = [make(name) for _ in range(NUM_RANKS)]
    for network in networks:
        share_batch_norm(network)
    found = with_ranks(run, NUM_RANKS, networks, [x] * NUM_RANKS)
    for key in ("y", "x"):
        torch.testing.assert_close(torch.cat([each[key] for each in found]), expected[key])
    for place, gradient in enumerate(expected["parameters"]):
        torch.testing.assert_close(sum(each["parameters"][place] for each in found), gradient)
    for network in networks:
        assert network.state_dict().keys() == expected_network.state_dict().keys()
        torch.testing.assert_close(
            dict(network.named_buffers()), dict(expected_network.named_buffers())
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_output_keeps_the_precision_of_the_input(dtype: torch.dtype) -> None:
    """Under autocast a convolution gives bfloat16; statistics need float32."""
    x, networks = rows("images"), [make("images").float() for _ in range(NUM_RANKS)]

    def forward(ranks: Any, network: nn.Module) -> Tensor:
        enter_group(network, ranks)
        part = x.to(dtype).chunk(NUM_RANKS)[ranks.rank()].requires_grad_()
        y: Tensor = network(part)
        y.float().square().sum().backward()
        assert part.grad is not None and part.grad.dtype == y.dtype == dtype
        return y.detach()

    for network in networks:
        share_batch_norm(network)
    y = torch.cat(with_ranks(forward, NUM_RANKS, networks)).double()
    torch.testing.assert_close(y, make("images")(x).detach(), rtol=0.05, atol=0.05)


def test_parameters_stay_the_same_objects() -> None:
    """The optimizer holds these parameters."""
    network = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4)))
    before = [id(parameter) for parameter in network.parameters()]
    share_batch_norm(network)
    assert [id(parameter) for parameter in network.parameters()] == before
    assert isinstance(network[1][0], RankBatchNorm)


def test_a_momentum_copy_shares_unless_it_has_its_own() -> None:
    """MoCo chooses the companions of its keys itself; BYOL wants those of all ranks."""
    source = nn.Sequential(nn.BatchNorm1d(4))
    network = nn.ModuleList([MomentumCopy(source), MomentumCopy(source, own_batch_norm=True)])
    share_batch_norm(network)
    shared, own = (copy.network[0] for copy in network)
    assert isinstance(shared, RankBatchNorm) and type(own) is nn.BatchNorm1d
