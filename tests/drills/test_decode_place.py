"""Runs with trainers that crop are bit-equal to runs with readers that crop."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from streamssl.pretrain.run import pretrain
from streamssl.runs.placement import Placement
from streamssl.runs.run_data import DataConfig
from tests.tinyrun import make_shards, proof, stop_at, tiny_swav, train_here, weights

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


def record(out: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((out / ".control" / "decode.json").read_text())
    return found


def test_a_run_whose_trainers_crop_is_the_same_run(tmp_path: Path) -> None:
    """The decode place must be kept over a stop, and must not change a bit."""
    shards, config = make_shards(tmp_path / "shards"), tiny_swav(num_steps=24)
    here, there = tmp_path / "here", tmp_path / "there"
    train_here(config, shards, here)
    asked = Placement(cluster="local", readers=2, decode="trainers")
    stopped = train_here(config, shards, there, placement=asked, stop=stop_at(there, 2))
    assert not stopped.finished
    train_here(config, shards, there, placement=Placement(cluster="local", readers=1))
    assert proof(there) == proof(here)
    assert weights(there, 24) == weights(here, 24)
    assert record(there)["decode"] == "trainers"


@pytest.mark.nightly
def test_auto_prints_its_measurement_and_keeps_its_choice(tmp_path: Path) -> None:
    """The choice must be visible, and must not change when the run resumes."""
    shards, out, file = make_shards(tmp_path / "shards"), tmp_path / "run", io.StringIO()
    pretrain(
        tiny_swav(),
        DataConfig(patterns=(str(shards),)),
        out,
        Placement(cluster="local", readers=2, decode="auto"),
        Console(file=file, width=300),
    )
    found = record(out)
    assert f"--decode auto: {found['decode']}; 2 readers crop " in file.getvalue()
    rates = found["images_per_second"]
    assert isinstance(rates, dict) and min(rates.values()) > 1
