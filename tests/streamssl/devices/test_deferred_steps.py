"""Steps whose numbers come later: the same log and states, and no number that is not finite."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cluster.protocol.step_report import StepReport
from shards.errors import ShardUnreadable, StorageFailed
from shards.records import CropBatch
from streamssl.config.run_config import RunConfig
from streamssl.errors import TrainingDiverged
from streamssl.training.learner import PretrainLearner
from streamssl.training.trainer import train
from tests.streamssl.devices.late_device import LateDevice
from tests.streamssl.training.test_finite_guard import break_output, break_statistics
from tests.tinyrun import CPU, assert_same, made_batches, tiny_swav

NEVER = 1000


class Run:
    """A run of `tiny_swav`: its events in order, a report as its step and a state as "saved"."""

    def __init__(self, config: RunConfig, log_every: int, device: LateDevice | None) -> None:
        begin = None if device is None else device.begin
        self.learner = PretrainLearner(config, CPU, log_every=log_every, begin=begin)
        self.reports: list[StepReport] = []
        self.events: list[tuple[str, int]] = []
        self.begun: list[int] = []  # the step that was begun last, when a report came

    def take(self, report: StepReport) -> None:
        self.reports.append(report)
        self.events.append(("step", report.step))
        self.begun.append(self.learner.step)

    def train(self, batches: Iterator[CropBatch] | None = None, **options: Any) -> "Run":
        config = self.learner.config
        train(
            self.learner,
            made_batches(config, config.num_steps) if batches is None else batches,
            report=options.pop("report", self.take),
            save=lambda kept: self.events.append(("saved", kept.step)),
            **options,
        )
        return self

    @property
    def saved(self) -> list[int]:
        return [step for what, step in self.events if what == "saved"]


def plain(report: StepReport) -> StepReport:
    """Return a report without its times; readings as words, since NaN is not equal to itself."""
    readings: Any = {name: repr(value) for name, value in report.readings.items()}
    return replace(
        report, readings=readings, step_seconds=0.0, data_wait_seconds=0.0, phase_seconds={}
    )


@pytest.mark.parametrize("lag", [1, 3, NEVER])
def test_late_numbers_give_the_same_log_and_the_same_state(lag: int) -> None:
    """A GPU that is behind must neither lose a line nor change what is learned."""
    config = tiny_swav(num_steps=12, save_every=5)
    here, late = Run(config, 1, None).train(), Run(config, 4, LateDevice(lag)).train()
    assert list(map(plain, late.reports)) == list(map(plain, here.reports))
    assert late.events == here.events  # every state comes after the reports of its steps
    assert_same(late.learner.train_state, here.learner.train_state)
    assert all(report.step_seconds > 0 for report in late.reports)


def test_the_host_waits_only_for_a_device_that_is_log_every_steps_behind() -> None:
    """A wait in every step would leave the GPU idle while the next step is prepared."""
    config, device = tiny_swav(num_steps=9, save_every=100), LateDevice(NEVER)
    run = Run(config, 4, device).train()
    assert run.begun == [4, 5, 6, 7, 8, 9, 9, 9, 9] and device.num_waits == 9
    for lag, log_every in ((2, 4), (3, 4)):
        device = LateDevice(lag)
        run = Run(config, log_every, device).train()
        assert device.num_waits == lag  # at the end, before the state is saved
        assert run.begun == [*range(1 + lag, 10), *[9] * lag]


def test_a_process_without_a_late_device_gets_each_report_with_its_step() -> None:
    """On a CPU a step that is not finite must not reach the optimizer."""
    run = Run(tiny_swav(num_steps=5), 10, None).train()
    assert run.begun == [1, 2, 3, 4, 5]


def broken_from(run: Run, step: int, fault: Any = break_output) -> Iterator[CropBatch]:
    """Yield batches, and break the network before this step."""
    for number, batch in enumerate(made_batches(run.learner.config, 50), 1):
        if number == step:
            fault(run.learner.train_state.method)
        yield batch


@pytest.mark.parametrize("fault", [break_output, break_statistics])
@pytest.mark.parametrize("lag", [2, NEVER])
def test_a_step_that_is_not_finite_ends_the_run_at_that_step(lag: int, fault: Any) -> None:
    """Neither it nor a later one may be reported or saved, though later ones were begun."""
    run = Run(tiny_swav(num_steps=20, save_every=4), 5, LateDevice(lag))
    with pytest.raises(TrainingDiverged, match="step 6") as ended:
        run.train(broken_from(run, 6, fault))
    assert (ended.value.step, ended.value.can_skip) == (6, True)
    assert [report.step for report in run.reports] == [1, 2, 3, 4, 5] and run.saved == [4]
    assert all(math.isfinite(report.loss) for report in run.reports)
    assert run.learner.step == 5
    with pytest.raises(TrainingDiverged, match="step 6"):
        run.learner.state()


def test_a_state_that_is_due_waits_for_the_numbers_of_its_steps() -> None:
    """The checkpoint of a step that is not finite would be the newest one."""
    run = Run(tiny_swav(num_steps=20, save_every=4), 50, LateDevice(NEVER))
    with pytest.raises(TrainingDiverged, match="step 7"):
        run.train(broken_from(run, 7))
    assert run.saved == [4] and run.events[-1] == ("step", 6)


def test_an_error_of_the_data_saves_the_steps_before_it_if_they_are_finite() -> None:
    """The steps since the last checkpoint are whole, and their numbers have to be looked at."""
    for bad, expected in ((None, ShardUnreadable), (3, TrainingDiverged)):
        run = Run(tiny_swav(num_steps=20, save_every=100), 50, LateDevice(NEVER))

        def batches(run: Run = run, bad: int | None = bad) -> Iterator[CropBatch]:
            source = broken_from(run, bad or 99)
            for _ in range(5):
                yield next(source)
            raise ShardUnreadable("access was refused")

        with pytest.raises(expected):
            run.train(batches())
        assert run.saved == ([] if bad else [5])
        assert len(run.reports) == (bad - 1 if bad else 5)


def test_a_log_without_room_saves_no_step_that_was_not_looked_at() -> None:
    """The reports of later steps have no room either, but their numbers decide."""
    for bad, saved in ((None, [5]), (3, [])):
        run = Run(tiny_swav(num_steps=20, save_every=100), 5, LateDevice(NEVER))

        def full(report: StepReport) -> None:
            raise StorageFailed("no room")

        with pytest.raises(StorageFailed):
            run.train(broken_from(run, bad or 99), report=full)
        assert run.saved == saved


def test_an_error_of_a_step_comes_after_the_reports_before_it() -> None:
    """An earlier step that is not finite may be its cause, and is named then."""
    for bad, expected in ((None, ZeroDivisionError), (4, TrainingDiverged)):
        run = Run(tiny_swav(num_steps=20, save_every=100), 50, LateDevice(NEVER))

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        def batches(run: Run = run, bad: int | None = bad, fail: Any = fail) -> Any:
            for number, batch in enumerate(broken_from(run, bad or 99), 1):
                if number == 6:
                    run.learner.train_state.method.backbone.register_forward_pre_hook(fail)
                yield batch

        with pytest.raises(expected):
            run.train(batches())
        assert [report.step for report in run.reports] == list(range(1, bad or 6))


def test_stop_saves_all_steps_that_were_begun() -> None:
    """Ctrl-C must not cost the steps whose numbers are on their way."""
    run = Run(tiny_swav(num_steps=50, save_every=100), 5, LateDevice(NEVER))
    run.train(stop=lambda: run.learner.step == 3)
    assert run.events == [("step", 1), ("step", 2), ("step", 3), ("saved", 3)]


def test_a_budget_of_steps_to_leave_out_reads_each_step_before_its_update() -> None:
    """An update that is applied cannot be left out."""
    config = tiny_swav(num_steps=5, save_every=100, max_skipped_steps=1)
    run = Run(config, 4, LateDevice(NEVER))
    run.train(broken_once(run, 3))
    assert ["skipped_steps" in report.readings for report in run.reports] == [
        *(False, False, True, False, False)
    ]


def broken_once(run: Run, step: int) -> Iterator[CropBatch]:
    """Yield batches; the network is broken in one step."""
    for number, batch in enumerate(made_batches(run.learner.config, 50), 1):
        handle = break_output(run.learner.train_state.method) if number == step else None
        yield batch
        if handle is not None:
            handle.remove()
