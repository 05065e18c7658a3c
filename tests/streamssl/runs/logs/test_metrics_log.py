"""The log of a run, and the comparison of repeated steps with it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.monitoring.metrics_hub import MetricsHub
from cluster.protocol.step_report import StepReport
from shards.errors import AccessDenied
from shards.records import Cursor, Reject
from streamssl.errors import ReplayDiffers
from streamssl.monitoring.catalogue import CATALOGUE
from streamssl.monitoring.exported_readings import exported
from streamssl.runs.logs.metrics_log import RunLog
from streamssl.runs.logs.metrics_log import read_log as read_steps
from tests.tinyrun import other_user, reachable_folder, read_log


def report(step: int, *, loss: float = 1.0, digest: str | None = None) -> StepReport:
    return StepReport(
        step=step,
        cursor=Cursor(manifest="m", order="o", block=step // 2, slot=8 * (step % 2)),
        digest=digest or f"digest-{step}",
        loss=loss,
        lr=0.1,
        num_samples=16,
        rejects=(Reject(0, 0, "a", "too_small"),),
        num_unselected=2,
        readings={"queue_fill": 0.5, "plain": 2.0},
        step_seconds=0.5,
        data_wait_seconds=0.25,
    )


def write_steps(out: Path, start: int, stop: int) -> None:
    with RunLog(out, start) as log:
        for step in range(start + 1, stop + 1):
            log.write(report(step))


def test_step_is_one_line(tmp_path: Path) -> None:
    """Tools read this file line by line."""
    with RunLog(tmp_path, 0) as log:
        fields = log.write(report(1))
    assert read_log(tmp_path) == [fields]
    assert fields == {
        "step": 1,
        "loss": 1.0,
        "lr": 0.1,
        "digest": "digest-1",
        "cursor": [0, 8],
        "num_samples": 16,
        "num_rejects": 1,
        "num_unselected": 2,
        "step_seconds": 0.5,
        "data_wait_seconds": 0.25,
        "readings": {"queue_fill": 0.5, "plain": 2.0},
    }


def test_step_is_written_before_the_next_one(tmp_path: Path) -> None:
    """A killed run must leave every step that it finished."""
    with RunLog(tmp_path, 0) as log:
        log.write(report(1))
        assert len(read_log(tmp_path)) == 1


def test_steps_after_the_checkpoint_are_logged_once(tmp_path: Path) -> None:
    """After a crash each step must be in the file once, in order."""
    write_steps(tmp_path, 0, 5)
    write_steps(tmp_path, 3, 7)
    assert [fields["step"] for fields in read_log(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', "{", "7", "null", '{"loss": 1}', "\ufffd"])
def test_torn_line_is_dropped(torn: str, tmp_path: Path) -> None:
    """A process that is killed during a write leaves half a line."""
    write_steps(tmp_path, 0, 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    write_steps(tmp_path, 2, 3)
    assert [fields["step"] for fields in read_log(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize(
    "changes",
    [
        *({"step": None}, {"step": []}, {"loss": "x"}, {"num_samples": None}, {"readings": 3}),
        *({"step_seconds": None}, {"readings": {"x": "y"}}, {"cursor": [None, 0]}, {"digest": 7}),
        *({"step": True}, {"step": 2.0}, {"step": -2}, {"loss": 1e400}, {"cursor": [1, 2, 3]}),
        *({"step_seconds": -1.0}, {"num_samples": 10**30}, {"readings": {"x": [1]}}),
    ],
)
def test_a_line_with_other_types_is_dropped(changes: dict[str, object], tmp_path: Path) -> None:
    """A resume, or the page of the run, would end in a TypeError."""
    write_steps(tmp_path, 0, 3)
    first, second, third = (tmp_path / "metrics.jsonl").read_text().splitlines()
    second = json.dumps({**json.loads(second), **changes})
    (tmp_path / "metrics.jsonl").write_text(f"{first}\n{second}\n{third}\n")
    assert list(read_steps(tmp_path)) == [1, 3]
    write_steps(tmp_path, 3, 4)


def test_replay_on_other_samples_is_an_error(tmp_path: Path) -> None:
    """The promise of one order would be broken silently."""
    write_steps(tmp_path, 0, 5)
    with RunLog(tmp_path, 3) as log:
        log.write(report(4))
        with pytest.raises(ReplayDiffers, match=r"step 5 .*digest-5 before the restart and on x"):
            log.write(report(5, digest="x"))
    assert [fields["step"] for fields in read_log(tmp_path)] == [1, 2, 3, 4]


def test_replay_of_changed_data_is_no_error(tmp_path: Path) -> None:
    """Other weights from block 2 on give other batches from there."""
    write_steps(tmp_path, 0, 6)
    with RunLog(tmp_path, 2, changed_from=2) as log:
        with pytest.raises(ReplayDiffers, match="step 3 "):
            log.write(report(3, digest="x"))
        for step in (4, 5, 6):  # step 4 ended before block 2, step 5 in it
            log.write(report(step, digest="digest-4" if step == 4 else "other"))
    with RunLog(tmp_path, 2) as log, pytest.raises(ReplayDiffers, match="step 5 was trained on"):
        log.write(report(5))


def test_log_is_read_by_step(tmp_path: Path) -> None:
    """`replay` needs the cursor and the digest of a batch."""
    write_steps(tmp_path, 0, 3)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "dig')
    log = read_steps(tmp_path)
    assert list(log) == [1, 2, 3] and log[2]["digest"] == "digest-2" and log[3]["cursor"] == [1, 8]
    assert read_steps(tmp_path / "nowhere") == {}


def test_new_steps_are_not_compared(tmp_path: Path) -> None:
    """Steps after the end of the log have no digest to compare with."""
    write_steps(tmp_path, 0, 2)
    with RunLog(tmp_path, 2) as log:
        log.write(report(3, digest="anything"))


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_step_that_was_left_out_has_a_line(loss: float, tmp_path: Path) -> None:
    """Its batch must be proven like any other, and its line is strict JSON."""
    with RunLog(tmp_path, 0) as log:
        log.write(report(1, loss=loss))
    (line,) = read_log(tmp_path)
    assert (line["loss"], line["digest"]) == (None, "digest-1")
    assert math.isnan(read_steps(tmp_path)[1]["loss"])


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    """NaN is no JSON: parsers of other languages refuse the line."""
    write_steps(tmp_path, 0, 1)
    text = (tmp_path / "metrics.jsonl").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in {text}"))


def test_numbers_that_are_not_finite_are_null_in_the_file(tmp_path: Path) -> None:
    """NaN is no JSON: jq, browsers and other languages would refuse the line."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    odd = {"queue_age_max": math.nan, "gradient_norm": math.inf, "plain": 2.0}
    with RunLog(tmp_path, 0) as log:
        log.write(replace(report(1), readings=odd))
    line = (tmp_path / "metrics.jsonl").read_text()
    read = json.loads(line, parse_constant=refuse)["readings"]
    assert read == {"queue_age_max": None, "gradient_norm": None, "plain": 2.0}
    # Logs of earlier versions have the bare words.
    old = line.replace('"step": 1', '"step": 2').replace("null", "NaN")
    (tmp_path / "metrics.jsonl").write_text(line + old)
    for fields in read_steps(tmp_path).values():
        assert math.isnan(fields["readings"]["queue_age_max"])
        hub = MetricsHub(CATALOGUE)
        hub.values.set(exported(fields))
        assert json.loads(hub.state_page({}).body, parse_constant=refuse)
        assert "queue_age_max" not in str(hub.values.get(("queue_age_steps", "max")))


def test_a_log_that_may_not_be_read_is_told_as_such() -> None:
    """Only the owner can help; a new --out would train everything again."""
    with reachable_folder() as out:
        (out / "metrics.jsonl").touch(mode=0)
        with other_user(), pytest.raises(AccessDenied, match=r"metrics\.jsonl cannot be read"):
            read_steps(out)
