"""TensorBoard reads the steps of a run."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shards.errors import ConfigError
from streamssl.runs.logs.tensorboard_log import TensorBoardLog, check_tensorboard, step_scalars
from streamssl.runs.placement import Placement
from tests.tinyrun import read_log, tiny_swav, train_here


def read_events(folder):
    """Return (step, value) pairs by tag, as TensorBoard reads them."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(one.step, one.value) for one in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_scalars_are_on_disk_after_each_step(tmp_path):
    """A killed run would lose its last steps."""
    log = TensorBoardLog(tmp_path)
    log.write(300, {"loss": 0.5, "readings/feature_std": 2.0})
    assert read_events(tmp_path) == {"loss": [(300, 0.5)], "readings/feature_std": [(300, 2.0)]}
    log.close()


def test_a_run_writes_each_step_once(shards_folder, tmp_path):
    """A chart would miss steps or readings; without --tensorboard there must be no folder."""
    out = tmp_path / "run"
    placement = Placement(readers=1, tensorboard=True)
    train_here(tiny_swav(num_steps=2), shards_folder, out, placement=placement)
    events, log = read_events(out / "tensorboard"), read_log(out)
    assert events.keys() == step_scalars(log[0]).keys() | step_scalars(log[1]).keys()
    expected = [(line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in log]
    assert events["loss"] == expected
    train_here(tiny_swav(num_steps=1), shards_folder, tmp_path / "plain")
    assert not (tmp_path / "plain" / "tensorboard").exists()


def test_a_missing_library_is_one_sentence_before_any_work(shards_folder, tmp_path, monkeypatch):
    """A run would fail after minutes of listing shards."""
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'streamssl\[tensorboard\]'"):
        check_tensorboard()
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="--tensorboard needs the library"):
        train_here(tiny_swav(), shards_folder, out, placement=Placement(tensorboard=True))
    assert not out.exists()
