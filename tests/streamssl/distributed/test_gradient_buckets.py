"""Gradients that are summed during backward are those that were summed after it."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.protocol.learner import StopVote
from streamssl.devices.step_exchange import StepExchange
from streamssl.distributed import gradient_buckets
from streamssl.distributed.gradient_buckets import GradientBuckets
from tests.gloo_ranks import with_ranks
from tests.streamssl.tiny import images
from tests.streamssl.training.test_learner import build, learn, part, swav
from tests.tinyrun import made_batches


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the gradients of a small network into several buckets."""
    monkeypatch.setattr(gradient_buckets, "_BUCKET_BYTES", 1 << 10)


class Network(nn.Module):
    """Convolutions in channels-last memory, a head, and heads that only some ranks use."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 8, 3)
        self.head, self.sometimes, self.never = (nn.Linear(8, 16) for _ in range(3))
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor, *, both: bool = False) -> Tensor:
        features = self.second(self.first(images).relu()).mean(dim=(2, 3))
        heads = [self.head, self.sometimes] if both else [self.head]
        return torch.stack([head(features).square().mean() for head in heads]).sum()


def sum_after_backward(network: nn.Module, group: Any) -> None:
    """Average gradients as before: buckets in the order of the parameters, after backward."""
    present = [p for p in network.parameters() if p.grad is not None]
    for bucket in gradient_buckets._cut(present):
        gradients = [parameter.grad for parameter in bucket]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat, group=group)
        flat /= group.size()
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, parts, strict=True):
            gradient.copy_(piece.view(gradient.shape))


def used(network: Network) -> list[nn.Parameter]:
    parts = (network.first, network.second, network.head)
    return [parameter for module in parts for parameter in module.parameters()]


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_sums_during_backward_have_the_bits_of_sums_after_it(num_ranks: int) -> None:
    """Sums of more than two ranks depend on their order: a run would not be the one it was."""

    def work(ranks: Any, network: Network, other: Network) -> list[str]:
        events: list[str] = []
        inner = ranks.beside.allreduce

        def note(*arguments: Any) -> Any:
            events.append("sum")
            return inner(*arguments)

        ranks.beside.allreduce = note
        network.first.weight.register_hook(lambda _: events.append("first layer"))
        optimizer = torch.optim.SGD(used(network), 0.1)
        buckets = GradientBuckets(optimizer, network.parameters(), ranks.beside)
        for step in range(2):
            batch = images(4, 12, 10 * step + ranks.rank())
            for one in (network, other):
                one.zero_grad(set_to_none=True)
            buckets.begin()
            network(batch).backward()
            assert buckets.finish() == [True] * 6
            other(batch).backward()
            sum_after_backward(other, ranks)
            for ours, theirs in zip(used(network), used(other), strict=True):
                assert ours.grad is not None and theirs.grad is not None
                assert torch.equal(ours.grad, theirs.grad)
                assert ours.grad.stride() == theirs.grad.stride()
        buckets.close()
        network(batch).backward()  # no hook is left
        return events

    networks = [[Network() for _ in range(num_ranks)] for _ in range(2)]
    for events in with_ranks(work, num_ranks, *networks):
        assert 0 < events.index("first layer") < events.count("sum") // 2
        assert events.count("sum") == 2 * len(list(gradient_buckets._cut(used(Network()))))


def test_gradients_that_some_ranks_lack_count_as_zero_and_none_stays_none() -> None:
    """Ranks would wait for each other for ever, or decay weights that the others leave alone."""

    def work(ranks: Any, network: Network) -> list[Tensor | None]:
        parameters = list(network.parameters())
        optimizer = torch.optim.SGD(parameters, 0.1)
        buckets = GradientBuckets(optimizer, parameters, ranks.beside)
        buckets.begin()
        loss = network(images(4, 12, ranks.rank()), both=ranks.rank() == 1)
        loss.backward()
        own = network.sometimes.weight.grad
        own = None if own is None else own.clone()
        here = buckets.finish()
        exchange = StepExchange(loss.detach(), {"x": 1.0}, StopVote.CONTINUE, ranks, here)
        exchange.begin()
        assert exchange.values()[1] == {"x": 1.0}
        buckets.drop_absent(exchange.counts)
        return [own, *(parameter.grad for parameter in parameters)]

    (_, *first), (own, *second) = with_ranks(work, 2, [Network() for _ in range(2)])
    names = [name for name, _ in Network().named_parameters()]
    for name, one, other in zip(names, first, second, strict=True):
        if name.startswith("never"):
            assert one is None and other is None
        else:
            assert one is not None and torch.equal(one, other), name
    assert torch.equal(first[names.index("sometimes.weight")], own / 2)


def test_several_backward_passes_are_summed_once() -> None:
    """A gradient that is summed over ranks before its last part has come is wrong."""

    def work(ranks: Any, network: Network) -> bool:
        optimizer = torch.optim.SGD(used(network), 0.1)
        buckets = GradientBuckets(optimizer, network.parameters(), ranks.beside)
        found = []
        for num_passes in (1, 2):
            network.zero_grad(set_to_none=True)
            buckets.begin(num_passes)
            for number in range(num_passes):
                batch = images(4, 12, ranks.rank() + 7 * (number if num_passes > 1 else 0))
                network(batch).backward()
            buckets.finish()
            found.append(network.first.weight.grad)
        buckets.begin()
        network(batch).backward()
        with pytest.raises(AssertionError, match="more backward passes"):
            network(batch).backward()
        buckets.finish()
        return torch.equal(*found)

    assert with_ranks(work, 2, [Network() for _ in range(2)]) == [False, False]


def test_a_rank_that_dies_in_backward_leaves_the_others_as_they_were() -> None:
    """Sums that are under way then must not reach the gradients of the next generation."""
    undisturbed, *learners = (build(swav()) for _ in range(3))
    for each in (undisturbed, *learners):
        learn(None, each, 4)
    before = undisturbed.digest()
    learn(None, undisturbed, 1)

    def die(_: Tensor) -> None:
        raise ZeroDivisionError

    def work(ranks: Any, learner: Any) -> None:
        learner.enter(ranks)
        (batch,) = made_batches(learner.config, 1, learner.step)
        if ranks.rank() == 1:
            next(learner.train_state.method.backbone.parameters()).register_hook(die)
        try:
            learner.train_step(part(batch, ranks), StopVote.CONTINUE)
        finally:
            learner.rollback()
            learner.enter(None)

    with pytest.raises(ZeroDivisionError):
        with_ranks(work, 2, learners)
    assert learners[0].digest() == before
    learn(None, learners[0], 1)
    assert learners[0].digest() == undisturbed.digest()
