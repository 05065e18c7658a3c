"""Ctrl-C and SIGTERM: a run finishes its step, saves, and the same command resumes it."""

import contextlib
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from shards.stop_signals import STOP_SIGNALS
from streamssl import checkpoint
from streamssl.runs.file_names import END
from streamssl.runs.run_end import read_end
from tests.drills.processes import started
from tests.tinyrun import proof, read_log, tiny_moco, tiny_swav, train_here, weights

pytestmark = pytest.mark.slow


def test_an_interrupted_run_resumes_at_the_next_step(shards_folder: Path, tmp_path: Path) -> None:
    """Ctrl-C, then SIGTERM: no step may be repeated or lost."""
    config = tiny_moco(num_steps=60, save_every=1000)
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    train_here(config, shards_folder, unbroken)
    for number, after in ((signal.SIGINT, 5), (signal.SIGTERM, 7)):
        before = read_log(broken)[-1]["step"] if broken.exists() else 0
        with started(config, shards_folder, broken) as run:
            run.wait_for_step(before + after)
            run.process.send_signal(number)
            assert run.end() == 130, run.text
        step = run.last_step
        assert before + after <= step < 60
        assert checkpoint.list_checkpoints(broken)[-1].name == f"step-{step:08d}"
        assert f"stopped at step {step}; the same command continues from there" in run.text
        assert "Traceback" not in run.text
    with started(config, shards_folder, broken) as run:
        assert run.end() == 0, run.text
    assert [fields["step"] for fields in read_log(broken)] == list(range(1, 61))
    assert proof(broken) == proof(unbroken)
    assert weights(broken, 60) == weights(unbroken, 60)


@pytest.mark.parametrize("number", STOP_SIGNALS[2:])
def test_signals_of_schedulers_and_terminals_save(
    number: signal.Signals, shards_folder: Path, tmp_path: Path
) -> None:
    """They killed a run without saving; decoders and readers must not die of them, either."""
    out = tmp_path / "run"
    with started(tiny_swav(num_steps=5000, save_every=5000), shards_folder, out) as run:
        run.wait_for_step(3)
        os.killpg(run.process.pid, number)
        assert run.end() == 130, run.text
    assert checkpoint.list_checkpoints(out)[-1].name == f"step-{run.last_step:08d}"
    assert f"{number.name}: stopping after this step, within" in run.text
    assert "Traceback" not in run.text


@pytest.mark.ray
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_to_the_whole_group_saves_and_leaves_no_process(
    number: signal.Signals, shards_folder: Path, tmp_path: Path
) -> None:
    """Terminals, scancel and systemd send a signal to every process, Ray and its workers included.

    SIGTERM lost the work, once after a minute.
    """
    config = tiny_swav(num_steps=5000, save_every=5000)
    out = tmp_path / "run"
    with started(config, shards_folder, out, "--cluster", "local") as run:
        run.wait_for_step(10)
        children = psutil.Process(run.process.pid).children(recursive=True)
        os.killpg(run.process.pid, number)
        for child in children:  # as systemd and scancel do, whatever group it is in
            with contextlib.suppress(psutil.NoSuchProcess):
                child.send_signal(number)
        assert run.end() == 130, run.text
    assert checkpoint.list_checkpoints(out)[-1].name == f"step-{run.last_step:08d}"
    assert "Traceback" not in run.text
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


@pytest.mark.nightly
@pytest.mark.ray
def test_one_ctrl_c_is_enough_when_no_data_comes(shards_folder: Path, tmp_path: Path) -> None:
    """A user must be able to stop a run whose readers or store hang."""
    config = tiny_swav(num_steps=5000, save_every=5000)
    options = ("--cluster", "local", "--stream.num-lookahead-blocks", "1")
    with started(config, shards_folder, tmp_path / "run", *options) as run:
        run.wait_for_step(10)
        children = psutil.Process(run.process.pid).children(recursive=True)
        for reader in run.readers():
            reader.suspend()
        before = -1
        while before != run.last_step:  # until no step follows
            before = run.last_step
            time.sleep(3)
        began = time.monotonic()
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130, run.text
        assert time.monotonic() - began < 30
    assert checkpoint.list_checkpoints(tmp_path / "run")[-1].name == f"step-{before:08d}"
    assert "Traceback" not in run.text
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


@pytest.mark.ray
def test_a_run_stopped_before_its_first_step_is_not_called_killed(
    shards_folder: Path, tmp_path: Path
) -> None:
    """`status` would blame the machine for a Ctrl-C."""
    out = tmp_path / "run"
    with started(tiny_swav(num_steps=5000), shards_folder, out, "--cluster", "local") as run:
        run.wait_for((out / END).exists, "the start of the run")
        run.process.send_signal(signal.SIGINT)
        assert run.end() == 130, run.text
    end = read_end(out)
    assert end is not None and end.how == "stopped"


def test_a_second_ctrl_c_leaves_at_once(shards_folder: Path, tmp_path: Path) -> None:
    """A second signal must not wait for a checkpoint."""
    config = tiny_swav(num_steps=5000, save_every=5000)
    with started(config, shards_folder, tmp_path / "run") as run:
        run.wait_for_step(3)
        run.process.send_signal(signal.SIGSTOP)  # both signals arrive before it continues
        run.process.send_signal(signal.SIGINT)
        run.process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        run.process.send_signal(signal.SIGCONT)
        assert run.end() == 130, run.text
    assert time.monotonic() - began < 15
    assert "streamssl: interrupted" in run.text and "Traceback" not in run.text
    assert checkpoint.list_checkpoints(tmp_path / "run") == []
