"""`streamssl monitor` knows which runs live, and refuses what it cannot watch."""

from pathlib import Path

import pytest

from shards.errors import ConfigError
from streamssl.commands.monitor import addresses, parse_monitor
from streamssl.runs.file_names import METRICS_ADDRESS


def test_runs_are_folders_or_addresses(tmp_path: Path) -> None:
    """A run that does not live yet may begin at any time."""
    (tmp_path / METRICS_ADDRESS).write_text("http://127.0.0.1:7")
    runs = (str(tmp_path), str(tmp_path / "later"), "http://127.0.0.1:9464/metrics")
    assert addresses(runs) == ["http://127.0.0.1:7", "http://127.0.0.1:9464"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "at least one run.*streamssl monitor runs/a"), (["a", "--port", "0"], "from 1 to 65535")],
)
def test_what_cannot_be_watched_is_refused(arguments: list[str], words: str) -> None:
    """Before anything is started."""
    with pytest.raises(ConfigError, match=words):
        parse_monitor(arguments)
