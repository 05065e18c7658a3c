"""Undo copies hold what a loss changes, and not the weights."""

from typing import Any

import pytest
import torch

from cluster.protocol.learner import StopVote
from shards.errors import ConfigError
from streamssl.training.learner import PretrainLearner
from streamssl.training.undo_copy import UndoCopy
from tests.streamssl.devices.test_waits import METHODS, batches_of, config_of
from tests.streamssl.training.test_learner import learn, moco, swav
from tests.tinyrun import CPU, assert_equal


@pytest.mark.parametrize("name", [*METHODS, "spcl"])
def test_a_loss_changes_only_what_was_copied(name: str) -> None:
    """A step that another rank leaves out would change the state of this one."""
    learner = PretrainLearner(config_of(name), CPU)
    *batches, last = batches_of(learner.config, 6)
    for batch in batches:
        learner.train_step(batch, StopVote.CONTINUE)
    method = learner.train_state.method
    undo = UndoCopy(method)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    undo.take()
    learner._compute(last)
    undo.check()
    undo.restore()
    assert_equal(method.state_dict(), before)


@pytest.mark.parametrize(
    ("make", "trained"), [(swav, "backbone.conv1.weight"), (moco, "head.0.weight")]
)
def test_trained_weights_are_not_copied(make: Any, trained: str) -> None:
    """They are most of the state, and a copy of them in each step takes time and memory."""
    learner = PretrainLearner(make(), CPU)
    undo = UndoCopy(learner.train_state.method)
    undo.take()
    copied = sum(x.nbytes for x in learner.train_state.method.buffers())
    copied += sum(x.nbytes for x in learner.train_state.method.changed_by_loss())
    assert undo.num_bytes == copied
    assert trained not in undo._copies and trained in learner.train_state.method.state_dict()


def test_a_learner_alone_copies_nothing() -> None:
    """Nobody can break its step, and none is left out."""
    learner = PretrainLearner(swav(), CPU)
    learn(None, learner, 2)
    assert learner._undo.num_bytes == 0


def test_a_loss_that_changes_a_weight_in_secret_is_refused() -> None:
    """Its step could not be undone, and the ranks would drift apart after a broken one."""
    learner = PretrainLearner(swav(), CPU)
    method = learner.train_state.method
    undo = UndoCopy(method)
    undo.take()
    with torch.no_grad():
        method.backbone.conv1.weight.mul_(0.5)
    with pytest.raises(ConfigError, match=r"loss of SwAV changes backbone\.conv1.*--trainers 1"):
        undo.check()
