"""A learner on ranks computes the numbers of one process, and can undo a step."""

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
# Drop path draws per row of a rank, so it differs between world sizes.
PLAIN = replace(BACKBONE, options={**BACKBONE.options, "drop_path_rate": 0.0})


def swav() -> RunConfig:
    """SwAV with a queue in use, small crops, and prototypes that thaw."""
    return tiny_swav(backbone=PLAIN)


def moco() -> RunConfig:
    """MoCo with groups of keys that fit into the rows of one of four ranks."""
    config = tiny_moco(backbone=PLAIN)
    return replace(config, method=replace(config.method, key_batch_norm_rows=4))


def of_twelve(config: RunConfig, **changes: Any) -> RunConfig:
    """Change a run to batches for one, two and three ranks."""
    return replace(
        config,
        method=replace(config.method, **changes),
        backbone=PLAIN,
        stream=replace(config.stream, batch_size=12),
    )


SWAV_OF_TWELVE = of_twelve(tiny_swav(), queue=QueueConfig(capacity=24, start_step=3))
# Groups of keys fit into the rows of one of two and of three ranks.
MOCO_OF_TWELVE = of_twelve(tiny_moco(), queue=QueueConfig(capacity=24), key_batch_norm_rows=2)


def build(config: RunConfig, dtype: torch.dtype = torch.float32) -> PretrainLearner:
    learner = PretrainLearner(config, CPU)
    learner.train_state.method.to(dtype)
    return learner


def part(batch: CropBatch, ranks: Any) -> CropBatch:
    """Return this rank's rows of a global batch."""
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
@pytest.mark.parametrize("num_ranks", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_compute_what_one_computes(config: RunConfig, num_ranks: int) -> None:
    """Losses, readings, weights, batch norm, momenta, queue, prototypes, in float64."""
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
    """Ranks that round differently would drift apart: each holds the same bits."""
    expected = learn(None, build(swav()))
    learners = [build(swav()) for _ in range(2)]
    for found in with_ranks(learn, 2, learners):
        assert [f.loss for f in found] == pytest.approx([f.loss for f in expected], abs=1e-4)
    assert len({learner.digest() for learner in learners}) == 1


class Fuse:
    """A `GenerationWatch` that a test ends."""

    doing: Doing = ""
    is_blown = False

    def check(self) -> None:
        if self.is_blown:
            raise GenerationOver("ended")


class SilentPeer:
    """A peer that leaves after `num_sums` sums of a step, or before the last one."""

    def __init__(self, ranks: Any, num_sums: int | None) -> None:
        self._allreduce, self._left = ranks.allreduce, num_sums
        ranks.allreduce = self

    def __call__(self, tensors: Any, options: Any = None) -> Any:
        if self._left is not None:
            self._left -= 1
        is_last = tensors[0].dtype == torch.float64  # loss, readings and votes
        if is_last or self._left == -1:
            raise GenerationOver("the peer is gone")
        return self._allreduce(tensors, options)


@pytest.mark.parametrize("make", [swav, moco], ids=["swav", "moco"])
@pytest.mark.parametrize("num_sums", [pytest.param(0, marks=pytest.mark.slow), 7, None])
def test_broken_step_is_undone_bit_by_bit(make: Any, num_sums: int | None) -> None:
    """The same step, trained again alone, must be that of an undisturbed run."""
    config = make()
    undisturbed, learner, peer = build(config), build(config), build(config)
    learn(None, undisturbed)
    for each in (learner, peer):
        learn(None, each, NUM_STEPS - 1)
    before, door, watches = learner.digest(), RendezvousStore("127.0.0.1"), [Fuse(), Fuse()]
    with ThreadPoolExecutor(2) as threads:
        places = [RankInfo(1, rank, 2, door.address) for rank in range(2)]
        ranks, peer_ranks = threads.map(join, places, watches)
        SilentPeer(peer_ranks, num_sums)
        going = threads.submit(learn, ranks, learner, 1)
        with pytest.raises(GenerationOver, match="gone"):
            learn(peer_ranks, peer, 1)
        watches[0].is_blown = True
        with pytest.raises(GenerationOver, match="ended"):
            going.result(timeout=50)
    ranks.close(), peer_ranks.close()
    learner.rollback()
    assert learner.digest() == before
    learn(None, learner, 1)
    assert learner.digest() == undisturbed.digest()


@pytest.mark.slow
@pytest.mark.parametrize("config", [SWAV_OF_TWELVE, MOCO_OF_TWELVE], ids=["swav", "moco"])
def test_changing_world_sizes_compute_what_one_rank_computes(config: RunConfig) -> None:
    """Three ranks, two, a broken step, three again: a disturbed run must be the same run.

    In double precision an error of rows, states or rollbacks is larger than rounding.
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
    """Train one more step, in which rank 1 leaves."""
    if ranks.rank() == 1:
        SilentPeer(ranks, 7)
    learn(ranks, learner, 1)


def test_learner_with_a_transferred_state_continues_like_its_source() -> None:
    """Also from a younger state, in which the prototypes were still frozen."""
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


def test_all_ranks_get_the_strongest_vote() -> None:
    """Ranks that leave at different steps would wait for each other for ever."""

    def one_step(ranks: Any, learner: PretrainLearner, vote: StopVote) -> StopVote:
        learner.enter(ranks)
        (batch,) = made_batches(learner.config, 1, learner.step)
        return learner.train_step(part(batch, ranks), vote)[1]

    learners = [build(swav()) for _ in range(2)]
    for votes in (
        [StopVote.CONTINUE, StopVote.CONTINUE],
        [StopVote.REGROUP, StopVote.CONTINUE],
        [StopVote.REGROUP, StopVote.STOP],
    ):
        assert with_ranks(one_step, 2, learners, votes) == [max(votes)] * 2


def test_unknown_batch_norm_is_refused_on_several_ranks() -> None:
    """It would normalise with the rows of its own rank, and no reading would show it."""
    learner = build(swav())
    learner.train_state.method.add_module("odd", torch.nn.SyncBatchNorm(4))
    learner.enter(None)
    with pytest.raises(ConfigError, match=r"odd is a SyncBatchNorm.*--trainers 1"):
        with_ranks(lambda ranks: learner.enter(ranks), 1)
