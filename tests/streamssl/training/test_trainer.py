"""Training in one process: reports, schedules, checkpoints and the end."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cluster.protocol.step_report import StepReport
from shards.errors import BudgetExceeded, ConfigError, ShardUnreadable, StreamEnded
from shards.records import CropBatch
from streamssl.checkpoint import TrainState
from streamssl.config.run_config import RunConfig
from streamssl.training.gradient_step import samples_of
from streamssl.training.learner import PretrainLearner
from streamssl.training.train_state import build_state
from streamssl.training.trainer import train
from tests.tinyrun import (
    BATCH,
    CPU,
    assert_same,
    made_batches,
    tiny_moco,
    tiny_swav,
    train_on_noise,
)


def run(config: RunConfig, state: TrainState, **options) -> tuple[list[StepReport], list[int]]:
    """Train, and return the reports and the steps of the saved states."""
    reports: list[StepReport] = []
    saves: list[int] = []
    train(
        PretrainLearner(config, CPU, state),
        made_batches(config, options.pop("num_batches", 100), state.step),
        report=reports.append,
        save=lambda kept: saves.append(kept.step),
        **options,
    )
    return reports, saves


def test_stream_that_ends_early_has_a_message() -> None:
    """A run must not call itself done after half of its steps."""
    config = tiny_swav(num_steps=6)
    state = build_state(config, CPU)
    with pytest.raises(StreamEnded, match="ended at step 4 of 6; ask for fewer steps, or give"):
        run(config, state, num_batches=4)
    assert state.step == 4


@pytest.mark.parametrize(
    "error",
    [
        ShardUnreadable("access to s3://b/0.tar was refused"),
        BudgetExceeded("too many", {"decode": 9}),
        ConfigError("an epoch has 3 samples"),
        OSError("from a library"),
    ],
)
def test_an_error_of_the_data_saves_the_steps_before_it(error: Exception) -> None:
    """A store that refuses access would cost the steps since the last checkpoint."""
    config = tiny_swav(num_steps=50, save_every=100)
    state, saved = build_state(config, CPU), []

    def batches() -> Iterator[CropBatch]:
        yield from made_batches(config, 3)
        raise error

    with pytest.raises(type(error)) as raised:
        train(
            PretrainLearner(config, CPU, state),
            batches(),
            report=lambda _: None,
            save=lambda kept: saved.append((kept.step, kept.cursor)),
        )
    assert raised.value is error
    assert saved == [(3, list(made_batches(config, 3))[-1].cursor)]


@pytest.mark.parametrize(
    ("num_steps", "save_every", "expected"), [(6, 2, [2, 4, 6]), (5, 2, [2, 4, 5]), (3, 9, [3])]
)
def test_states_are_saved_regularly_and_at_the_end(
    num_steps: int, save_every: int, expected: list[int]
) -> None:
    """The last step is saved, and no step twice."""
    config = tiny_swav(num_steps=num_steps, save_every=save_every)
    _, saves = run(config, build_state(config, CPU))
    assert saves == expected


def test_stop_saves_the_newest_step() -> None:
    """Ctrl-C must not cost a step."""
    config = tiny_swav(num_steps=50, save_every=100)
    state = build_state(config, CPU)
    reports, saves = run(config, state, stop=lambda: state.step == 3)
    assert (len(reports), saves, state.step) == (3, [3], 3)


def test_finished_run_requests_no_batch() -> None:
    """A start after the last step must not wait for data."""
    config = tiny_swav(num_steps=2)
    state = build_state(config, CPU)
    state.step = 2
    assert run(config, state, num_batches=0) == ([], [])


def test_report_has_samples_digest_and_times() -> None:
    """Step, samples and digest prove the order; times show where a user waits."""
    config = tiny_swav(num_steps=3)
    state = build_state(config, CPU)
    reports, _ = run(config, state)
    batches = list(made_batches(config, 3))
    assert [report.step for report in reports] == [1, 2, 3]
    assert [report.digest for report in reports] == [batch.digest for batch in batches]
    assert state.cursor == batches[-1].cursor
    for report in reports:
        assert report.num_samples == BATCH and report.rejects == ()
        assert report.step_seconds > 0 and report.data_wait_seconds >= 0
    assert {"queue_fill", "queue_used"} <= reports[0].readings.keys()


def test_schedule_is_applied_at_every_step() -> None:
    """Steps of a schedule count from 0: warm-up to the base rate, then down."""
    config = tiny_swav(num_steps=6)
    reports, _ = run(config, build_state(config, CPU))
    expected = [config.schedule.lr(step, 6, config.optim.base_lr) for step in range(6)]
    assert [report.lr for report in reports] == expected
    assert expected[0] == 0.01 and max(expected) == 0.1 and expected[-1] < 0.05


def test_rate_reaches_every_group_of_the_optimizer() -> None:
    """LARS has two groups; a rate of 0 must stop them both."""
    config = tiny_swav()
    config = replace(
        config,
        optim=replace(config.optim, name="lars", base_lr=0.0),
        schedule=replace(config.schedule, start_lr=0.0, final_lr=0.0),
    )
    state = build_state(config, CPU)
    before = {name: value.clone() for name, value in state.method.named_parameters()}
    train_on_noise(config, state, 2)
    for name, value in state.method.named_parameters():
        if not name.startswith("prototypes"):  # they are normalised at every step
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("build", [tiny_swav, tiny_moco])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_same_steps_give_the_same_weights(build, precision: str) -> None:
    """Two runs of one configuration must not differ in a bit."""
    config = build(precision=precision)
    states = [build_state(config, CPU) for _ in range(2)]
    losses = []
    for state in states:
        torch.rand(7)  # other random numbers in this process must not matter
        losses.append([report.loss for report in train_on_noise(config, state, 4)])
    assert losses[0] == losses[1]
    assert_same(*states)


def test_random_numbers_of_a_network_depend_on_the_step_alone() -> None:
    """Drop path after a resume must drop the same paths, with no generator saved."""
    config = tiny_swav()
    losses = []
    for warm in (0, 5):
        state = build_state(config, CPU)
        torch.rand(warm)
        state.step = 3
        losses.append(train_on_noise(config, state, 1)[0].loss)
    state = build_state(config, CPU)
    state.step = 4  # the same weights at another step: other paths are dropped
    reports: list[StepReport] = []
    train(
        PretrainLearner(replace(config, num_steps=5), CPU, state),
        made_batches(config, 1, 3),
        report=reports.append,
        save=lambda _: None,
    )
    assert losses[0] == losses[1] != reports[0].loss


def test_bf16_reaches_the_network_and_not_the_weights() -> None:
    """Autocast must reach the network, and must not reach Sinkhorn or the weights."""
    config = tiny_swav(precision="bf16")
    state = build_state(config, CPU)
    seen: list[torch.dtype] = []

    def note(conv: nn.Module, _: object, output: Tensor) -> None:
        if conv.training:  # or it is the drift of a queue that is measured, in full precision
            seen.append(output.dtype)

    state.method.backbone.conv1.register_forward_hook(note)
    reports = train_on_noise(config, state, 2)
    assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in state.method.parameters()} == {torch.float32}
    exact = train_on_noise(tiny_swav(), build_state(tiny_swav(), CPU), 2)
    assert reports[0].loss == pytest.approx(exact[0].loss, rel=0.05)


def test_fresh_weights_depend_on_the_seed_alone() -> None:
    """Two machines that start one run must start from the same weights."""
    torch.rand(3)
    one, other = build_state(tiny_swav(), CPU), build_state(tiny_swav(), CPU)
    assert_same(one, other)
    third = build_state(tiny_swav(seed=1), CPU)
    assert not torch.equal(
        next(one.method.parameters()).detach(), next(third.method.parameters()).detach()
    )


def test_rank_gets_the_ids_and_labels_of_its_rows() -> None:
    """A batch has the crops of one rank, and the ids and labels of all."""
    whole = next(made_batches(tiny_swav(), 1))
    labels = np.arange(BATCH)
    half = replace(whole, crops=tuple(group[8:] for group in whole.crops), labels=labels)
    samples = samples_of(half, 1)
    assert samples.ids.tolist() == whole.ids[8:].tolist() and len(samples.epochs) == 8
    assert samples.labels is not None and samples.labels.tolist() == list(range(8, 16))
    assert samples_of(whole, 0).labels is None and len(samples_of(whole, 0).ids) == BATCH
