"""Placement: settings that cannot work are refused before anything starts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.monitoring.process_pages import DebugPorts
from shards.errors import ConfigError
from streamssl.commands.pretrain import parse_pretrain, placement_of
from streamssl.runs.placement import Placement
from tests.tinyrun import tiny_swav, train_here


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"readers": 0}, r"readers=0; it must be at least 1"),
        ({"trainers": 0}, r"trainers=0; it must be at least 1"),
        ({"cluster": "local", "readers": 9, "max_readers": 4}, r"readers=9\.\.4; the second"),
        ({"trainers": 2}, r"--trainers with cluster='none', .* give --cluster local"),
        ({"max_readers": 8}, r"--readers as a range with cluster='none'"),
        ({"reader_pools": ("pool=readers",)}, r"--reader-pool with cluster='none'"),
        ({"cluster": "local", "trainer_pools": ("readers",)}, r"'readers' is not a label"),
        (
            {"decode": "trainers"},
            r"--decode with cluster='none', which is this process alone; give",
        ),
        (
            {"debug_ports": DebugPorts(9500, 9599)},
            r"--debug-ports with cluster='none', .* give --cluster local",
        ),
        ({"log_every": 0}, r"--log-every 0; it must be at least 1, .* leave it out for 10"),
        (
            {"log_every": 5, "cluster": "local"},
            r"--log-every 5 with cluster='local'; .* give --cluster none",
        ),
        ({"cluster": "everywhere"}, r"cluster='everywhere'; it must be none, local, auto or"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    """To start a Ray in vain costs half a minute, and more in a cloud."""
    with pytest.raises(ConfigError, match=message):
        Placement(**options)


def test_a_batch_that_trainers_cannot_share_is_refused(shards_folder: Path, tmp_path: Path) -> None:
    """Three ranks cannot share 16 rows; nothing may be written before the refusal."""
    out, placement = tmp_path / "run", Placement(cluster="local", trainers=3)
    with pytest.raises(ConfigError, match=r"one of 1, 2, 4, 8, 16; give --trainers 2 or 4"):
        train_here(tiny_swav(), shards_folder, out, placement=placement)
    assert not out.exists()


def test_a_run_with_a_budget_of_steps_reads_each_step() -> None:
    """A step that may be left out must be read before its update, whatever else is asked for."""
    assert [Placement().steps_to_read(budget) for budget in (0, 3)] == [10, 1]
    assert [Placement(log_every=1).steps_to_read(budget) for budget in (0, 3)] == [1, 1]
    assert Placement(log_every=4).steps_to_read(0) == 4
    with pytest.raises(ConfigError, match=r"--log-every 4 with --max-skipped-steps 3; .* or give"):
        Placement(log_every=4).steps_to_read(3)


def test_options_become_a_placement() -> None:
    """A range of readers, and pools in order of preference, come from the command line."""
    words = (
        "swav --data a --out b --cluster auto --readers 4..200 --trainers 8 --trainer-gpus 1 "
        "--reader-pool pool=spot pool=reserved --decode trainers --debug-ports 9500-9599 "
        "--log-every 1"
    )
    parsed = parse_pretrain(words.split())
    assert parsed.readers == "4..200" and parsed.trainers == 8 and parsed.trainer_gpus == 1
    assert placement_of(parsed).decode == "trainers"
    assert placement_of(parsed).log_every == 1
    assert placement_of(parsed).debug_ports == DebugPorts(9500, 9599)
    assert placement_of(replace(parsed, debug_ports=None)).debug_ports is None
    with pytest.raises(ConfigError, match=r"debug ports '9500'; .* --debug-ports 9500-9599"):
        placement_of(replace(parsed, debug_ports="9500"))
    assert parsed.reader_pool == ("pool=spot", "pool=reserved")
