"""A learner on ranks: it computes what one process computes, and can take a step back."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch

from cluster.protocol.learner import StopVote
from cluster.protocol.messages import Doing
from cluster.protocol.step_report import StepReport
from cluster.trainers.rendezvous import GenerationOver, RankInfo, RendezvousStore
from shards.errors import ConfigError
from shards.records import CropBatch
from streamssl.config.parts.queue_config import QueueConfig
from streamssl.config.run_config import RunConfig
from streamssl.training.learner import PretrainLearner
from tests.gloo_ranks import join, with_ranks
from tests.tinyrun import BACKBONE, CPU, made_batches, tiny_moco, tiny_swav

NUM_STEPS = 5
# Whose rows are dropped is drawn for the rows of a rank, so this differs between worlds.
PLAIN = replace(BACKBONE, options={**BACKBONE.options, "drop_path_rate": 0.0})


def swav() -> RunConfig:
    """With a queue that is used, small crops, and prototypes that thaw."""
    return tiny_swav(backbone=PLAIN)


def moco() -> RunConfig:
    """Whose groups of keys fit into the rows of a rank of four."""
    config = tiny_moco(backbone=PLAIN)
    return replace(config, method=replace(config.method, key_batch_norm_rows=4))


def of_twelve(config: RunConfig, **changes: Any) -> RunConfig:
    """With batches, and a queue, for one, two and three ranks."""
    return replace(
        config,
        method=replace(config.method, **changes),
        backbone=PLAIN,
        stream=replace(config.stream, batch_size=12),
    )


SWAV_OF_TWELVE = of_twelve(tiny_swav(), queue=QueueConfig(capacity=24, start_step=3))
# Its groups of keys fit into the rows of a rank of two and of three.
MOCO_OF_TWELVE = of_twelve(tiny_moco(), queue=QueueConfig(capacity=24), key_batch_norm_rows=2)


def build(config: RunConfig, dtype: torch.dtype = torch.float32) -> PretrainLearner:
    learner = PretrainLearner(config, CPU)
    learner.train_state.method.to(dtype)
    return learner


def part(batch: CropBatch, ranks: Any) -> CropBatch:
    """This rank's rows of a global batch."""
    if ranks is None:
        return batch
    size = len(batch) // ranks.size()
    rows = slice(ranks.rank() * size, (ranks.rank() + 1) * size)
    return replace(batch, crops=tuple(crops[rows] for crops in batch.crops))


def learn(ranks: Any, learner: PretrainLearner, num_steps: int = NUM_STEPS) -> list[StepReport]:
    """Train `num_steps` more steps and return their reports."""
    learner.enter(ranks)
    batches = made_batches(learner.config, num_steps, learner.step)
    return [learner.train_step(part(batch, ranks), StopVote.CONTINUE)[0] for batch in batches]


def numbers_of(report: StepReport) -> dict[str, float]:
    return {"loss": report.loss, **report.readings}


@pytest.mark.parametrize("config", [swav(), moco()], ids=["swav", "moco"])
@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_compute_what_one_computes(config: RunConfig, num_ranks: int) -> None:
    """Losses, readings, weights, batch norm, momenta, queue, prototypes: nearly to float64."""
    alone = build(config, torch.float64)
    expected = learn(None, alone)
    learners = [build(config, torch.float64) for _ in range(num_ranks)]
    for found in with_ranks(learn, num_ranks, learners):
        for ours, theirs in zip(found, expected, strict=True):
            assert numbers_of(ours) == pytest.approx(numbers_of(theirs), abs=1e-12, nan_ok=True)
    assert len({learner.digest() for learner in learners}) == 1
    tensors = alone.state().tensors
    for name, value in learners[-1].state().tensors.items():
        torch.testing.assert_close(value, tensors[name], rtol=1e-9, atol=1e-10, msg=name)


def test_in_single_precision_ranks_differ_by_rounding_alone() -> None:
    """What is trained in practice; each rank holds the very same bits."""
    expected = learn(None, build(swav()))
    learners = [build(swav()) for _ in range(2)]
    for found in with_ranks(learn, 2, learners):
        assert [f.loss for f in found] == pytest.approx([f.loss for f in expected], abs=1e-4)
    assert len({learner.digest() for learner in learners}) == 1


class Fuse:
    """A `Watch` that gives up when it is told to."""

    doing: Doing = ""
    is_blown = False

    def check(self) -> None:
        if self.is_blown:
            raise GenerationOver("given up")


class FallsSilent:
    """A peer that takes part in so many sums of a step, or in all but the last one."""

    def __init__(self, ranks: Any, num_sums: int | None) -> None:
        self._allreduce, self._left = ranks.allreduce, num_sums
        ranks.allreduce = self

    def __call__(self, tensors: Any, options: Any = None) -> Any:
        if self._left is not None:
            self._left -= 1
        is_last = tensors[0].dtype == torch.float64  # loss, readings and wishes
        if is_last or self._left == -1:
            raise GenerationOver("the peer is gone")
        return self._allreduce(tensors, options)


@pytest.mark.parametrize("make", [swav, moco], ids=["swav", "moco"])
@pytest.mark.parametrize("num_sums", [0, 7, None])
def test_a_step_that_broke_is_undone_bit_by_bit(make: Any, num_sums: int | None) -> None:
    """Wherever it broke: the same step, tried again alone, is that of a run without trouble."""
    config = make()
    undisturbed, learner, peer = build(config), build(config), build(config)
    learn(None, undisturbed)
    for each in (learner, peer):
        learn(None, each, NUM_STEPS - 1)
    before, door, watches = learner.digest(), RendezvousStore("127.0.0.1"), [Fuse(), Fuse()]
    with ThreadPoolExecutor(2) as threads:
        places = [RankInfo(1, rank, 2, door.address) for rank in range(2)]
        ranks, peer_ranks = threads.map(join, places, watches)
        FallsSilent(peer_ranks, num_sums)
        going = threads.submit(learn, ranks, learner, 1)
        with pytest.raises(GenerationOver, match="gone"):
            learn(peer_ranks, peer, 1)
        watches[0].is_blown = True
        with pytest.raises(GenerationOver, match="given up"):
            going.result(timeout=50)
    ranks.close(), peer_ranks.close()
    learner.rollback()
    assert learner.digest() == before
    learn(None, learner, 1)
    assert learner.digest() == undisturbed.digest()


@pytest.mark.parametrize("config", [SWAV_OF_TWELVE, MOCO_OF_TWELVE], ids=["swav", "moco"])
def test_worlds_that_change_compute_what_one_computes(config: RunConfig) -> None:
    """Three ranks, two, a step that breaks, three again: a run that was disturbed is the same run.

    In double precision, so that a rank's rows, a state or a rollback gone wrong is no rounding.
    """
    alone = build(config, torch.float64)
    expected = [report.loss for report in learn(None, alone, 9)]
    members = [build(config, torch.float64) for _ in range(3)]
    found = [with_ranks(learn, 3, members, [3] * 3)[0]]
    members = members[1:]
    found.append(with_ranks(learn, 2, members, [2] * 2)[0])
    before = members[0].digest()
    with pytest.raises(GenerationOver, match="gone"):
        with_ranks(learn_until_broken, 2, members)
    for member in members:
        member.rollback()
    assert {member.digest() for member in members} == {before}
    found.append(with_ranks(learn, 2, members, [2] * 2)[0])
    newcomer = build(config, torch.float64)
    newcomer.load(members[0].state())
    members.insert(1, newcomer)
    found.append(with_ranks(learn, 3, members, [2] * 3)[0])
    losses = [report.loss for part in found for report in part]
    assert losses == pytest.approx(expected, abs=1e-10)
    assert len({member.digest() for member in members}) == 1
    tensors = alone.state().tensors
    for name, value in members[1].state().tensors.items():
        torch.testing.assert_close(value, tensors[name], rtol=1e-9, atol=1e-10, msg=name)


def learn_until_broken(ranks: Any, learner: PretrainLearner) -> None:
    """One more step, which breaks in the middle: rank 1 leaves."""
    if ranks.rank() == 1:
        FallsSilent(ranks, 7)
    learn(ranks, learner, 1)


def test_a_learner_that_took_over_a_state_goes_on_like_its_source() -> None:
    """Also with what the source had not seen yet when it was younger: frozen prototypes."""
    source, heir = build(tiny_swav()), build(tiny_swav(seed=9))
    learn(None, source, 1)
    young = source.state()
    learn(None, source, 3)
    learn(None, heir, 4)
    heir.load(source.state())
    assert heir.digest() == source.digest()
    learn(None, source, 1), learn(None, heir, 1)
    assert heir.digest() == source.digest()
    heir.load(young)
    assert (heir.step, heir.state().tensors.keys()) == (1, young.tensors.keys())
    learn(None, heir, 4)
    assert heir.digest() == source.digest()


def test_the_strongest_wish_is_heard_by_all() -> None:
    """Ranks that part at different steps would wait for each other for ever."""

    def one_step(ranks: Any, learner: PretrainLearner, wish: StopVote) -> StopVote:
        learner.enter(ranks)
        (batch,) = made_batches(learner.config, 1, learner.step)
        return learner.train_step(part(batch, ranks), wish)[1]

    learners = [build(swav()) for _ in range(2)]
    for wishes in (
        [StopVote.CONTINUE, StopVote.CONTINUE],
        [StopVote.REGROUP, StopVote.CONTINUE],
        [StopVote.REGROUP, StopVote.STOP],
    ):
        assert with_ranks(one_step, 2, learners, wishes) == [max(wishes)] * 2


def test_an_unknown_batch_norm_is_refused_on_several_ranks_only() -> None:
    """It would normalise with the rows of its own rank, and nobody would see it."""
    learner = build(swav())
    learner.train_state.method.add_module("odd", torch.nn.SyncBatchNorm(4))
    learner.enter(None)
    with pytest.raises(ConfigError, match=r"odd is a SyncBatchNorm.*--trainers 1"):
        with_ranks(lambda ranks: learner.enter(ranks), 1)
