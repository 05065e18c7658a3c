"""Decode placement: as requested, as the run began, or refused before anything starts."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from shards.errors import ConfigError
from shards.stores.range_reader import RangeReader
from streamssl.runs.crop_job import crop_job
from streamssl.runs.decode_placement import check_engine, place_of_decoding
from streamssl.runs.placement import Placement
from streamssl.runs.run_data import DataConfig, open_data
from streamssl.runs.run_setup import PreparedRun, open_run
from tests.tinyrun import quiet, tiny_swav


def opened(shards: Path, out: Path, engine: str = "native") -> PreparedRun:
    out.mkdir(exist_ok=True)
    data = open_data(DataConfig(patterns=(str(shards),)), RangeReader())
    return open_run(tiny_swav(engine=engine), data, out, quiet())


def chosen(run: PreparedRun, decode: Any, num_gpus: int = 0) -> tuple[str, str]:
    file = io.StringIO()
    place = place_of_decoding(
        run,
        Placement(cluster="local", decode=decode),
        crop_job(run.config, run.data),
        {"num_gpus": num_gpus},
        Console(file=file, width=200),
    )
    return place, file.getvalue()


def test_a_resumed_run_keeps_its_choice(shards_folder: Path, tmp_path: Path) -> None:
    """A choice must hold until the user requests another one."""
    run = opened(shards_folder, tmp_path / "run")
    assert chosen(run, None) == ("readers", "")
    assert chosen(run, "trainers") == (
        "trainers",
        "readers verify images, trainers crop them (native)\n",
    )
    assert chosen(run, None)[0] == "trainers" and chosen(run, "auto")[0] == "trainers"
    assert chosen(run, "readers")[0] == "readers" and chosen(run, None)[0] == "readers"


def test_an_engine_that_needs_a_gpu_runs_in_trainers(shards_folder: Path, tmp_path: Path) -> None:
    """Readers get no GPU, and a cluster without GPUs would fail much later."""
    run = opened(shards_folder, tmp_path / "run", "dali-gpu")
    with pytest.raises(ConfigError, match=r"has no GPU at this moment; give --trainer-gpus 1 if"):
        chosen(run, None)
    assert chosen(run, None, num_gpus=1)[0] == "trainers"
    assert chosen(opened(shards_folder, tmp_path / "other", "dali-gpu"), "auto", 1)[0] == "trainers"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cluster": "local", "decode": "readers"}, r"--decode readers, which get no GPU; leave"),
        ({"cluster": "auto", "decode": "readers"}, r"or use --engine native"),
        ({"cluster": "auto", "trainer_gpus": 0}, r"--trainer-gpus 0; it crops on the GPUs of"),
        ({"cluster": "local"}, r"torch sees no NVIDIA GPU; use --engine native"),
        ({"cluster": "none"}, r"torch sees no NVIDIA GPU; use --engine native"),
    ],
)
def test_a_missing_gpu_is_refused(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message must come before anything is read or started."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        check_engine(tiny_swav(engine="dali-gpu"), Placement(**options))


def test_a_driver_without_a_gpu_may_start_trainers_with_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The machine that starts a run on a cluster needs no GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_engine(tiny_swav(engine="dali-gpu"), Placement(cluster="auto"))
