"""Live page of an ended run, rebuilt from the metrics.jsonl of its folder.

Times are computed backwards from the last write of the log, step by step: the time between two
steps, or between two starts of the run, is not known.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from cluster.monitoring.history import History
from cluster.monitoring.http_server import HttpServer
from cluster.monitoring.live.live_page import add_live_page
from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.run_state import RunOutcome
from shards.errors import ConfigError, UserError
from shards.metric import Readings
from shards.records import Cursor
from streamssl.config.run_config import RunConfig, read_toml
from streamssl.evaluation.scores import read_scores
from streamssl.monitoring.catalogue import CATALOGUE
from streamssl.monitoring.exported_readings import exported
from streamssl.monitoring.learning_section import LEARNING_SECTION
from streamssl.monitoring.run_facts import run_info
from streamssl.pretrain.run_gallery import open_saved_gallery
from streamssl.runs.logs.metrics_log import read_log
from streamssl.runs.run_end import read_end
from streamssl.saved_files import SavedState, parse_saved

# Number of points that a live run keeps, too.
_NUM_POINTS = 600

# Fields of a line without which a step cannot be shown.
_FIELDS = {"loss", "lr", "num_samples", "step_seconds", "data_wait_seconds"}

Lines = Sequence[tuple[int, Mapping[str, Any]]]


@contextmanager
def replay_page(out: Path, port: int = 0) -> Iterator[str]:
    """Serve the page of the ended run in the folder `out`; yield its address.

    Raises ConfigError.
    """
    config = read_toml(out / "config.toml")
    log = read_log(out).items()
    lines = sorted((step, line) for step, line in log if line.keys() >= _FIELDS)
    if not lines:
        raise ConfigError(
            f"{out}/metrics.jsonl has no finished step that can be read; a page needs at least 1: "
            "name the folder of a run that trained"
        )
    hub = _replay(out, config, lines)
    gallery = open_saved_gallery(out, config)
    pages = {
        "/metrics": hub.metrics_page,
        "/state": hub.state_page,
        **add_live_page(hub, [LEARNING_SECTION], gallery),
    }
    with gallery or nullcontext(), HttpServer(pages, port) as server:
        yield f"http://{server.address}/"


def _replay(out: Path, config: RunConfig, lines: Lines) -> MetricsHub:
    """Return a hub that has taken all steps."""
    ended = (out / "metrics.jsonl").stat().st_mtime
    seconds = [line["step_seconds"] + line["data_wait_seconds"] for _, line in lines]
    now = began = ended - sum(seconds)
    hub = MetricsHub(CATALOGUE)
    # The loop below selects the steps, so the history must keep every point.
    hub.history = History(num_points=_NUM_POINTS + 1, interval_seconds=0.0)
    every = math.ceil(len(lines) / _NUM_POINTS)
    scores = read_scores(out)
    for index, (step, line) in enumerate(lines):
        score = scores.get(step)
        knn: Readings = {} if score is None else {("knn_accuracy_ratio",): score.headline / 100}
        hub.step_trained(
            step=step,
            num_samples=line["num_samples"],
            step_seconds=line["step_seconds"],
            data_wait_seconds=line["data_wait_seconds"],
            rejects=(),
            phase_seconds={},
            readings={**exported(line), **knn},
        )
        now += seconds[index]
        if index % every == 0 or index + 1 == len(lines):
            hub.add_to_history(now)
    for reason, number in _rejects_by_reason(out).items():
        hub.values.count(("rejects", reason), number)
    hub.run = run_info(out, config, cluster="", began=began)
    if (end := read_end(out, config.num_steps)) is None or end.how == "done":
        hub.outcome = RunOutcome(at=ended, how="done")
    else:
        hub.outcome = RunOutcome(at=ended, error=end.describe(), how=end.how)
    return hub


def _rejects_by_reason(out: Path) -> Mapping[str, int]:
    """Return the counts of the newest checkpoint that can be read; must not import torch."""
    for path in sorted(out.glob("checkpoints/step-*/state.json"), reverse=True):
        with suppress(OSError, ValueError, UserError):
            fields = parse_saved(SavedState, path.read_bytes())
            return Cursor.from_json(fields["cursor"]).reject_reasons
    return {}
