"""`streamssl monitor` finds the runs that live, and refuses invalid arguments."""

import pytest

from shards.errors import ConfigError
from streamssl.commands.monitor import metrics_addresses, parse_monitor
from streamssl.runs.file_names import METRICS_ADDRESS


def test_runs_are_folders_or_addresses(tmp_path):
    """A run that starts later must be found, too."""
    (tmp_path / METRICS_ADDRESS).write_text("http://127.0.0.1:7")
    runs = (str(tmp_path), str(tmp_path / "later"), "http://127.0.0.1:9464/metrics")
    assert metrics_addresses(runs) == ["http://127.0.0.1:7", "http://127.0.0.1:9464"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "at least one run.*streamssl monitor runs/a"), (["a", "--port", "0"], "from 1 to 65535")],
)
def test_invalid_arguments_are_refused(arguments, words):
    """Prometheus would start and scrape nothing."""
    with pytest.raises(ConfigError, match=words):
        parse_monitor(arguments)
