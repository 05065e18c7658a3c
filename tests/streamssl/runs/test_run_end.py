"""How a run ended is kept in its folder, and told as it was."""

import errno
import fcntl
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from shards.errors import BudgetExceeded, ShardUnreadable, StreamEnded, StreamStopped, UserError
from streamssl.cli import main
from streamssl.commands.live import ShowLive, show_live
from streamssl.errors import TrainingDiverged
from streamssl.pretrain.replay_page import replay_page
from streamssl.runs.file_names import END
from streamssl.runs.run_end import (
    RunEnd,
    ending_of,
    is_training,
    keep_end,
    keep_start,
    read_end,
)
from tests.streamssl.pretrain.test_live_run import state_at
from tests.tinyrun import make_shards, stop_at, tiny_swav, train_here


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """The folder of a run of six steps, without its last line."""
    (tmp_path / "config.toml").write_bytes((finished_run / "config.toml").read_bytes())
    lines = (finished_run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:-1]))
    return tmp_path


def shown(run: Path) -> str:
    """Return the output of `streamssl live`."""
    output = io.StringIO()
    show_live(ShowLive(run=run), Console(file=output, soft_wrap=True), lambda: None)
    return output.getvalue()


ENDS = {
    "stopped": ("", "It was stopped.", "it was stopped at step 5 of 6; the same command"),
    "diverged": ("the loss is nan", "It diverged.", "it diverged at step 5 of 6: the loss is nan"),
    "data": ("no samples", "Its data ended it.", "its data ended it at step 5 of 6: no samples"),
    "failed": ("no room", "It failed.", "it failed at step 5 of 6: no room"),
    "killed": ("", "It was killed.", "it was killed at step 5 of 6, or its machine went down"),
    "unknown": ("", "It ended early.", "it ended at step 5 of 6; its folder does not say why"),
}


@pytest.mark.parametrize("how", ENDS)
def test_a_run_that_is_not_done_is_not_called_done(how: str, run: Path, capsys) -> None:
    """The page said "It is done" of a run that diverged or was killed."""
    why, short, sentence = ENDS[how]
    if how == "killed":
        keep_start(run, 0, 6)
    elif how != "unknown":
        keep_end(run, RunEnd(how, 5, 6, why))  # type: ignore[arg-type]
    assert f"{run} does not train now: {sentence}" in shown(run)
    with replay_page(run) as address:
        state = state_at(address)
    assert state["run"]["how"] == how and state["run"]["error"].startswith(sentence)
    assert state["sections"]["answers"]["learning"]["short"] == short
    if how != "unknown":  # `status` knows the number of steps from the note only
        assert main(["status", str(run)]) == 0
        assert sentence in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "\0", "[" * 100_000, '{"how": "done", "why": "", "step": 3, "num_steps": 6}']
    + [json.dumps({"how": "x", "why": "", "step": 0, "num_steps": 6, **wrong})
       for wrong in ({"how": 3}, {"how": "well"}, {"why": None}, {"step": "5"}, {"step": -1})],
)  # fmt: skip
def test_a_damaged_note_of_the_end_costs_only_the_note(text: str, run: Path) -> None:
    """A traceback instead of the page of a run whose disk was full."""
    (run / END).write_text(text)
    assert "it ended at step 5 of 6; its folder does not say why" in shown(run)


@pytest.mark.parametrize(
    ("error", "how"),
    [
        (StreamStopped("x"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
        (TrainingDiverged("x", 3), "diverged"),
        (StreamEnded("x"), "data"),
        (BudgetExceeded("x", {}), "data"),
        (ShardUnreadable("x"), "data"),
        (UserError("x"), "failed"),
        (MemoryError(), "failed"),
    ],
)
def test_each_error_ends_a_run_in_its_way(error: BaseException, how: str) -> None:
    """A run out of data would look like a run of somebody who stopped it."""
    assert ending_of(error) == how


@pytest.mark.parametrize(("process", "is_alive"), [("own", True), ("other:1", False)])
def test_without_locks_the_note_says_whether_a_run_trains(
    process: str, is_alive: bool, run: Path, monkeypatch
) -> None:
    """A run on a network disk would be called killed while it trains."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    (run / ".lock").touch()
    keep_start(run, 3, 6)
    if process != "own":
        fields = json.loads((run / END).read_text())
        (run / END).write_text(json.dumps({**fields, "process": process}))
    monkeypatch.setattr(fcntl, "flock", fail)
    assert is_training(run) == is_alive


@pytest.mark.slow
def test_runs_note_their_ends(tmp_path: Path) -> None:
    """The note must be of the last start: trained on, ended by its data, stopped, done."""
    data, out = make_shards(tmp_path / "data", num=48, per_shard=48), tmp_path / "run"
    config = tiny_swav(num_steps=4)
    during = []

    def look() -> bool:
        during.append(json.loads((out / END).read_text())["how"])
        return stop_at(out, 2)()

    train_here(config, data, out, stop=look)
    assert set(during) == {"training"} and read_end(out) == RunEnd("stopped", 2, 4)
    train_here(config, data, out)
    assert read_end(out) == RunEnd("done", 4, 4)
    train_here(replace(config, num_steps=8), data, out, stop=stop_at(out, 6))
    assert read_end(out) == RunEnd("stopped", 6, 8) and not is_training(out)
