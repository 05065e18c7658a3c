"""A step that is not finite changes nothing: neither weights, nor statistics, queues, averages."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from cluster.protocol.learner import StopVote
from streamssl.config.run_config import RunConfig
from streamssl.errors import TrainingDiverged
from streamssl.training.finite_guard import largest_norm
from streamssl.training.learner import PretrainLearner
from tests.gloo_ranks import with_ranks
from tests.streamssl.training.test_learner import build, learn, moco, part, swav
from tests.tinyrun import assert_equal, made_batches

Fault = Callable[[torch.nn.Module], Any]


def break_output(method: Any) -> Any:
    """Let the encoder give features that are not finite, as bf16 does when it overflows."""
    return method.backbone.register_forward_hook(lambda _, __, output: output * math.nan)


def break_gradient(method: Any) -> Any:
    """Let one gradient overflow, with a loss that is finite."""
    weight = next(method.backbone.parameters())
    return weight.register_hook(lambda gradient: gradient * math.inf)


def break_statistics(method: Any) -> Any:
    """Let a variance overflow: features stay finite, and no later evaluation would."""
    norm = next(one for one in method.modules() if isinstance(one, _BatchNorm))
    return _after_pass_of(norm, lambda: norm.running_var.data.fill_(math.inf))


def break_queue(method: Any) -> Any:
    """Let rows of a queue be wrong, of which a push replaces some."""
    queue = method.queue if hasattr(method, "queue") else method.queues[0]
    return _after_pass_of(method.head, lambda: queue.rows[3::16, 2].fill_(-math.inf))


def break_average(method: Any) -> Any:
    """Let a weight of the momentum encoder be wrong."""
    weight = next(method.key_encoder.parameters())
    return _after_pass_of(method.backbone, lambda: weight.data.fill_(math.nan))


def _after_pass_of(module: torch.nn.Module, change: Callable[[], object]) -> Any:
    """Call `change` after each pass through a module, whose output stays as it is."""

    def hook(*_: object) -> None:
        change()

    return module.register_forward_hook(hook)


@contextmanager
def broken(learner: PretrainLearner, fault: Fault) -> Iterator[None]:
    handle = fault(learner.train_state.method)
    try:
        yield
    finally:
        handle.remove()


def tolerant(config: RunConfig, num: int = 1) -> RunConfig:
    return replace(config, max_skipped_steps=num)


def sparing() -> RunConfig:
    """Return SwAV whose encoder runs in parts, and each block twice."""
    return replace(swav(), micro_batches=2, recompute=True)


FAULTS = [
    (sparing, break_gradient),
    (sparing, break_statistics),
    (swav, break_output),
    (swav, break_gradient),
    (swav, break_statistics),
    (swav, break_queue),
    (moco, break_average),
]


@pytest.mark.parametrize(("make", "fault"), FAULTS)
def test_a_step_is_left_out_within_the_budget_and_changes_nothing(
    make: Callable[[], RunConfig], fault: Fault
) -> None:
    """One number that is not finite would be in every later checkpoint."""
    learner = build(tolerant(make()))
    learn(None, learner, 2)
    before = learner.state()
    with broken(learner, fault):
        (report,) = learn(None, learner, 1)
        assert report.readings["skipped_steps"] == 1
        after = learner.state()
        assert_equal(dict(after.tensors), dict(before.tensors))
        assert (after.step, after.cursor) == (3, report.cursor)
        expected = r"step 4.* after 1 steps that --max-skipped"
        with pytest.raises(TrainingDiverged, match=expected) as ended:
            learn(None, learner, 1)
        assert ended.value.can_skip
    assert_equal(dict(learner.state().tensors), dict(before.tensors))
    assert math.isfinite(learn(None, learner, 1)[0].loss)
    other = build(tolerant(make()))
    other.load(learner.state())
    assert other.digest() == learner.digest() and other.train_state.num_skipped == 1


@pytest.mark.parametrize("fault", [break_output, break_gradient, break_statistics])
def test_all_ranks_leave_out_the_step_that_one_of_them_breaks(fault: Fault) -> None:
    """Ranks that disagree would hold different weights, or wait for each other for ever."""

    def work(ranks: Any, learner: PretrainLearner) -> list[Any]:
        reports = learn(ranks, learner, 1)
        if ranks.rank():
            fault(learner.train_state.method)
        reports += learn(ranks, learner, 1)
        (batch,) = made_batches(learner.config, 1, learner.step)
        with pytest.raises(TrainingDiverged, match="step 3"):
            learner.train_step(part(batch, ranks), StopVote.CONTINUE)
        return reports

    learners = [build(tolerant(swav())) for _ in range(2)]
    for reports in with_ranks(work, 2, learners):
        assert ["skipped_steps" in one.readings for one in reports] == [False, True]
    assert len({learner.digest() for learner in learners}) == 1
    assert learners[0].step == 2 and largest_norm(learners[0].state().tensors.values()).isfinite()


def test_weights_that_an_update_has_broken_end_the_run() -> None:
    """No step can be left out then: every later one would be, until the budget is used up."""
    learner = build(tolerant(swav(), 100))
    weight = learner.train_state.optimizer.param_groups[0]["params"][0]
    learner.train_state.optimizer.register_step_post_hook(lambda *_: weight.data.mul_(math.inf))
    expected = "weights are not finite after step 1: its update was too large$"
    with pytest.raises(TrainingDiverged, match=expected) as ended:
        learn(None, learner, 2)
    assert not ended.value.can_skip


def test_a_norm_is_finite_if_each_number_is() -> None:
    """A sum of squares would call large numbers infinite, and a maximum may lose a NaN."""
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        plain = [torch.ones(3, dtype=dtype), torch.empty(0), torch.arange(4)]
        large = torch.full((2,), -3e38, dtype=dtype)
        assert 2.9e38 < largest_norm([*plain, large]).item() < 5e38
        for wrong in (math.nan, math.inf, -math.inf):
            spoilt = torch.tensor([1.0, wrong, 2.0], dtype=dtype)
            assert not largest_norm([*plain, spoilt, large]).isfinite()
    assert largest_norm([]).item() == 0
