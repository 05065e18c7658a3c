"""A run folder that somebody removes, moves or fills while the run trains."""

import errno
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from shards.errors import StorageFailed
from shards.redaction import notes
from streamssl import checkpoint
from streamssl.pretrain.run import pretrain
from streamssl.runs.placement import Placement
from streamssl.runs.run_end import is_training
from tests.tinyrun import proof, read_log, stop_at, tiny_swav, weights


def remove(out: Path) -> None:
    shutil.rmtree(out)


def move(out: Path) -> None:
    out.rename(out.with_name("elsewhere"))


def lose_settings(out: Path) -> None:
    (out / "config.toml").unlink()


def lose_log(out: Path) -> None:
    (out / "metrics.jsonl").unlink()


def train(data: Path, out: Path, num_steps: int, stop: Callable[[], bool]) -> str:
    """Train a run in this process, and return its output."""
    torch.set_num_threads(1)
    output = io.StringIO()
    console = Console(file=output, soft_wrap=True)
    config = tiny_swav(num_steps=num_steps)
    pretrain(config, str(data), out, Placement(readers=1), console, stop)
    return output.getvalue()


@pytest.mark.parametrize(
    "harm",
    [
        remove,
        pytest.param(move, marks=pytest.mark.slow),
        pytest.param(lose_settings, marks=pytest.mark.slow),
        lose_log,
    ],
)
def test_a_run_whose_folder_is_lost_makes_it_again(
    harm: Callable[[Path], None], finished_run: Path, shards_folder: Path, tmp_path: Path
) -> None:
    """It trained on into a folder without settings, which no command could resume."""
    out, harmed, locked = tmp_path / "run", [], []

    def meddle() -> bool:
        if not harmed and stop_at(out, 3)():
            harm(out)
            harmed.append(harm)
        if not (harmed and stop_at(out, 5)()):
            return False
        locked.append(is_training(out))
        return True

    said = train(shards_folder, out, 6, meddle)
    assert f"{out} w" in said and "removed or moved while the run trains; what a resume" in said
    assert said.count("removed or moved") == 1 and all(locked)
    assert checkpoint.list_checkpoints(out)[-1].name == "step-00000005"
    journals = [(run / "journal.jsonl").read_bytes() for run in (out, finished_run)]
    assert journals[0] == journals[1] != b""
    assert "resuming at step 5" in train(shards_folder, out, 6, lambda: False)
    assert weights(out, 6) == weights(finished_run, 6)
    assert proof(out) == proof(finished_run)[-len(proof(out)) :] and len(proof(out)) >= 3


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_met_by_the_log_ends_the_run_with_its_state_saved(
    code: int, shards_folder: Path, finished_run: Path, tmp_path: Path, monkeypatch
) -> None:
    """Two tracebacks, and the steps since the last checkpoint were lost."""
    out, write = tmp_path / "run", os.write

    def is_log(descriptor: int) -> bool:
        path = out / "metrics.jsonl"
        return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())

    def fail_late(descriptor: int, data: bytes) -> int:
        if len(read_log(out)) == 3 and is_log(descriptor):
            write(descriptor, bytes(data[:7]))
            raise OSError(code, os.strerror(code))
        return write(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail_late)
        with pytest.raises(StorageFailed, match=r"metrics\.jsonl cannot be .*make room") as ended:
            train(shards_folder, out, 6, lambda: False)
    assert notes(ended.value) == ["step 4 is saved; the same command continues from there"]
    assert (out / "metrics.jsonl").read_bytes().endswith(b"}\n")  # no half line
    train(shards_folder, out, 6, lambda: False)
    assert weights(out, 6) == weights(finished_run, 6)
    assert [step for step, _, _ in proof(out)] == [1, 2, 3, 5, 6]
