"""Every method on ranks computes the numbers of one process, batch norm included."""

from dataclasses import replace

import pytest
import torch

from shards.crops import recipe as crops
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.config.run_config import RunConfig
from tests.gloo_ranks import with_ranks
from tests.streamssl.tiny_methods import TINY
from tests.streamssl.training.test_learner import PLAIN, build, learn, numbers_of
from tests.tinyrun import BATCH, tiny_swav


def run_of(name: str) -> RunConfig:
    method, num_views = TINY[name]
    if name == "mochi":
        queue = QueueConfig(capacity=4 * BATCH)
        method = replace(method, queue=queue, start_step=1, key_batch_norm_rows=4)
    is_pair = sum(num_views) == 2
    views = crops.byol(size=32) if is_pair else crops.swav(counts=(2, 2), sizes=(32, 16))
    return tiny_swav(method=method, crops=views, backbone=PLAIN)


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_ranks_compute_what_one_computes(name: str) -> None:
    """Losses, readings, weights, batch norm, momentum copies and queue, in float64."""
    alone = build(run_of(name), torch.float64)
    expected = learn(None, alone)
    learners = [build(run_of(name), torch.float64) for _ in range(2)]
    for found in with_ranks(learn, 2, learners):
        for ours, theirs in zip(found, expected, strict=True):
            assert numbers_of(ours) == pytest.approx(numbers_of(theirs), abs=1e-9, nan_ok=True)
    assert len({learner.digest() for learner in learners}) == 1
    tensors = alone.state().tensors
    for key, value in learners[-1].state().tensors.items():
        torch.testing.assert_close(value, tensors[key], rtol=1e-8, atol=1e-9, msg=key)
