"""Gradients are clipped as by torch, on ranks after their mean; the reading is the norm before."""

from dataclasses import replace

import pytest
import torch

from streamssl.distributed.gradients import gradient_norm
from streamssl.optim.clipping import clip_gradients
from tests.gloo_ranks import with_ranks
from tests.streamssl.training.test_learner import build, learn, swav
from tests.tinyrun import tiny_moco


def gradients(seed: int) -> list[torch.nn.Parameter]:
    torch.manual_seed(seed)
    found = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2, 2, 2), (1,))]
    for parameter in found[:-1]:
        parameter.grad = torch.randn_like(parameter)
    return found


@pytest.mark.parametrize("max_norm", [0.5, 4.0, 100.0, None])
def test_clipped_gradients_are_those_of_torch(max_norm: float | None) -> None:
    """Bit by bit; a small gradient, and one without a bound, stays as it is."""
    ours, theirs = gradients(0), gradients(0)
    optimizer = torch.optim.SGD(ours, 0.1)
    clip_gradients(optimizer, gradient_norm(optimizer), max_norm)
    if max_norm is not None:
        torch.nn.utils.clip_grad_norm_(theirs, max_norm)
    for one, other in zip(ours[:-1], theirs[:-1], strict=True):
        assert torch.equal(one.grad, other.grad)
    assert ours[-1].grad is None


def test_a_step_moves_by_the_clipped_gradient_and_reports_its_norm() -> None:
    """The norm before clipping is what a bound is chosen by."""
    plain = tiny_moco()
    config = replace(plain, optim=replace(plain.optim, weight_decay=0.0, clip_norm=1e-3))
    learner, free = build(config), build(plain)
    optimizer = learner.train_state.optimizer
    (report,) = learn(None, learner, 1)
    assert report.readings["gradient_norm"] == learn(None, free, 1)[0].readings["gradient_norm"]
    assert report.readings["gradient_norm"] > 0.01
    momenta = [entry["momentum_buffer"] for entry in optimizer.state.values()]
    assert torch.stack([x.norm() for x in momenta]).norm() == pytest.approx(1e-3, rel=1e-2)


def test_ranks_clip_the_mean_of_their_gradients() -> None:
    """A rank that clipped its own gradient first would move another way than one process."""
    config = replace(swav(), optim=replace(swav().optim, name="sgd", clip_norm=0.05))
    alone = build(config, torch.float64)
    expected = learn(None, alone)
    learners = [build(config, torch.float64) for _ in range(2)]
    for found in with_ranks(learn, 2, learners):
        losses = [one.loss for one in expected]
        assert [one.loss for one in found] == pytest.approx(losses, abs=1e-6)
    tensors = alone.state().tensors
    for name, value in learners[0].state().tensors.items():
        torch.testing.assert_close(value, tensors[name], rtol=1e-5, atol=1e-6, msg=name)
