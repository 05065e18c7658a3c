"""Collapse: readings, limits, the checks in a row, and the outputs that show it."""

import io
import math
import urllib.request
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.nn import functional as F

from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.metrics_server import MetricsServer
from cluster.protocol.step_report import StepReport
from shards.records import Cursor
from streamssl.methods.base import StepOutput
from streamssl.monitoring.catalogue import CATALOGUE
from streamssl.monitoring.exported_readings import EXPORTED
from streamssl.optim.schedules import ScheduleConfig
from streamssl.pretrain.run_recorder import record_step
from streamssl.runs.logs.metrics_log import RunLog
from streamssl.runs.logs.progress import Progress
from streamssl.training.collapse_limits import LIMITS, CollapseLimit
from streamssl.training.health import HealthWatch, measure
from tests.streamssl.tiny_methods import build, views_of
from tests.tinyrun import make_shards, read_log, tiny_swav, train_here

GOOD = {"feature_std": 0.7, "effective_rank": 20.0, "loss_over_plateau": 0.8}
# Readings of a collapsed encoder.
BAD = {
    "feature_std": 0.01,
    "effective_rank": 1.1,
    "loss_over_plateau": 1.0,
    "codes_certainty": 0.001,
    "assignments_used": 1.0,
}


def test_readings_tell_spread_features_from_equal_ones() -> None:
    """The two ends of the scale, through the output of a method."""
    generator = torch.Generator().manual_seed(0)
    spread = F.normalize(torch.randn(256, 16, generator=generator), dim=1)
    loss = torch.tensor(2.0)
    well = measure(StepOutput(loss, features=spread, plateau=4.0), None)
    assert well["effective_rank"] > 14 and well["feature_std"] > 0.9
    assert well["loss_over_plateau"] == 0.5
    badly = measure(StepOutput(loss, features=spread[:1].expand(256, -1)), None)
    assert badly["effective_rank"] == pytest.approx(1) and badly["feature_std"] < 1e-6
    assert "loss_over_plateau" not in badly
    assert measure(StepOutput(loss), None) == {}
    # Two samples span a plane, whatever their features are.
    assert measure(StepOutput(loss, features=spread[:2]), None) == {}


def test_features_that_are_nan_raise_nothing() -> None:
    """The loss ends the run with a message; a check must not raise before."""
    features = torch.full((32, 4), math.nan)
    found = measure(StepOutput(torch.tensor(math.nan), features=features, plateau=1.0), None)
    readings = {name: float(value) for name, value in found.items()}
    assert watch_of(100).check(60, readings).crossed == ()


def watch_of(num_steps: int, warmup: int = 0) -> HealthWatch:
    """Return a watch over a run of so many steps."""
    schedule = ScheduleConfig(kind="swav", warmup_steps=warmup)
    return HealthWatch(tiny_swav(num_steps=num_steps, schedule=schedule))


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: limit.reading)
def test_limit_is_crossed_at_the_third_check_in_a_row(limit: CollapseLimit) -> None:
    """A single odd batch is no collapse; the warning comes once and names a remedy."""
    watch = watch_of(100)
    looks = [watch.check(step, {limit.reading: BAD[limit.reading]}) for step in (60, 70, 80, 90)]
    assert [look.crossed for look in looks] == [(), (), (limit.reading,), (limit.reading,)]
    assert [look.readings["collapsing"] for look in looks] == [0, 0, 1, 1]
    assert [len(look.messages) for look in looks] == [0, 0, 1, 0]
    sentence = looks[2].messages[0]
    assert f"collapsing at step 80: {limit.reading} is {BAD[limit.reading]:.3g}" in sentence
    assert (
        f"{limit.side} its limit of {limit.value:g}" in sentence
        and limit.meaning in sentence
        and "with a new --out" in sentence
    )


def test_check_within_the_limit_resets_the_count_and_ends_the_warning() -> None:
    """Two odd batches are no collapse, and a user must see that a warning is over."""
    watch = watch_of(100)
    for place, reading in enumerate((0.01, 0.01, 0.7, 0.01, 0.01)):
        assert watch.check(60 + 10 * place, {"feature_std": reading}).crossed == ()
    assert watch.check(110, {"feature_std": 0.01}).crossed == ("feature_std",)
    over = watch.check(120, {"feature_std": 0.7})
    assert over.crossed == () and "feature_std is 0.7, within its limit again" in over.messages[0]


@pytest.mark.parametrize(
    ("num_steps", "warmup", "grace"), [(100, 0, 50), (100, 80, 80), (100_000, 80, 1000)]
)
def test_first_steps_of_a_run_do_not_count(num_steps: int, warmup: int, grace: int) -> None:
    """Fresh networks look collapsed."""
    watch = watch_of(num_steps, warmup)
    steps = range(grace - 50, grace + 31, 10)
    first = next(step for step in steps if watch.check(step, BAD).crossed)
    assert first == grace + 30


def test_steps_between_two_checks_do_not_count() -> None:
    """Some methods report their codes at every step, but three checks count."""
    watch = watch_of(100)
    looks = [watch.check(step, BAD) for step in range(51, 90)]
    assert [look.crossed for look in looks] == [()] * 29 + [tuple(BAD)] + [()] * 9


def test_certainty_rounded_below_zero_is_crossed() -> None:
    """Entropies of equal codes come out a little above ln K."""
    watch = watch_of(100)
    looks = [watch.check(step, {"codes_certainty": -1e-7}) for step in (60, 70, 80)]
    assert looks[-1].crossed == ("codes_certainty",)


def report(step: int, readings: dict[str, float]) -> StepReport:
    cursor = Cursor(manifest="m", order="o", block=step, slot=0)
    return StepReport(
        step=step,
        cursor=cursor,
        digest=f"digest-{step}",
        loss=1.0,
        lr=0.1,
        num_samples=16,
        readings=readings,
        step_seconds=0.5,
    )


def test_collapse_reaches_log_metrics_and_terminal(tmp_path: Path) -> None:
    """A line that stays, a reading in metrics.jsonl, a gauge for an alert."""
    shown, metrics, watch = io.StringIO(), MetricsHub(CATALOGUE), watch_of(100)
    console = Console(file=shown, width=400)
    with RunLog(tmp_path, 0) as log, Progress(100, 0, console) as progress:
        for step in range(60, 100, 10):
            for number, readings in ((step, GOOD | {"feature_std": 0.01}), (step + 1, {"x": 1.0})):
                record_step(log, metrics, progress, watch, report(number, readings))
    logged = {fields["step"]: fields["readings"].get("collapsing") for fields in read_log(tmp_path)}
    assert logged == {60: 0, 61: None, 70: 0, 71: None, 80: 1, 81: None, 90: 1, 91: None}
    assert shown.getvalue().count("warning: collapsing at step 80: feature_std is 0.01") == 1
    with MetricsServer(metrics) as server:
        page = urllib.request.urlopen(server.url, timeout=10).read().decode()
    assert 'streamssl_collapsing{reading="feature_std"} 1.0' in page
    assert 'streamssl_collapsing{reading="effective_rank"} 0.0' in page
    assert "streamssl_effective_rank 20.0" in page


def test_every_limit_has_a_series() -> None:
    """A series that the catalogue does not list is not served."""
    listed = CATALOGUE["collapsing"].labels["reading"]
    assert sorted(listed) == sorted(limit.reading for limit in LIMITS)
    assert EXPORTED.keys() >= set(listed)


def test_run_logs_its_health_every_tenth_step(tmp_path: Path) -> None:
    """A check at every step would cost time, and none would hide a collapse."""
    data = make_shards(tmp_path / "data")
    train_here(tiny_swav(num_steps=21, save_every=7), data, tmp_path / "run")
    names = {"effective_rank", "feature_std", "loss_over_plateau", "collapsing"}
    with_health = [
        fields["step"]
        for fields in read_log(tmp_path / "run")
        if names <= fields["readings"].keys()
    ]
    assert with_health == [10, 20]


@pytest.mark.parametrize(
    "name", ["simclr", "simclr-v2", "supcon", "supcon-one", "moco-v3", "moco-v3-vit", "mochi"]
)
def test_plateau_is_the_loss_of_equal_features(name: str) -> None:
    """Off by a crop or a factor, no loss would ever be at its plateau."""
    method = build(name)
    with torch.no_grad():
        method.backbone.linear.weight.zero_()  # its bias alone is left
    if hasattr(method, "key_encoder"):
        head = method.head if name == "mochi" else method.projection
        method.key_encoder.update(nn.Sequential(method.backbone, head), 0.0)
    if name == "mochi":
        method.queue.rows.copy_(method.loss(views_of(name, 0), step=0).features[:1])
    output = method.loss(views_of(name, 0), step=0)
    assert output.loss.item() == pytest.approx(output.plateau, rel=1e-6)


def test_a_reading_that_stops_being_finite_is_told_once() -> None:
    """The log has null for it, as for a queue that is still empty: nobody would notice."""
    watch = watch_of(100)
    steps = [{"age": math.nan, "norm": 1.0}, {"age": 2.0, "norm": math.inf}, {"norm": math.nan}]
    said = [watch.check(step, readings).messages for step, readings in enumerate(steps, start=1)]
    told = "step 2: norm is inf, no longer a finite number; metrics.jsonl has null for it"
    assert said == [(), (told,), ()]
