"""A run that ended, opened again from its folder: the same page, made of metrics.jsonl.

Times are those of its steps, counted back from when the log was written last: what lay between two
steps, or two starts of the run, is not known any more.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.monitoring.history import History
from cluster.monitoring.http_server import HttpServer
from cluster.monitoring.live.gallery import Gallery
from cluster.monitoring.live.live_page import show_live
from cluster.monitoring.metric_values import flat
from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.run_state import RunOutcome, RunInfo, charted
from shards.metric import Readings
from shards.errors import ConfigError, StreamSSLError
from streamssl import checkpoint
from streamssl.config.run_config import RunConfig, read_toml
from streamssl.evaluation.scores import KnnScore, read_scores
from streamssl.pretrain.live_run import read_places
from streamssl.pretrain.metric_names import exported
from streamssl.pretrain.replay_batch import open_saved
from streamssl.pretrain.run_metrics import thresholds
from streamssl.runs.crop_job import crop_job
from streamssl.runs.metrics_log import read_log

# As many points as a live run keeps.
_NUM_POINTS = 600

Lines = Sequence[tuple[int, Mapping[str, Any]]]


@contextmanager
def reopened(out: Path, port: int = 0) -> Iterator[str]:
    """Serve the page of the ended run in folder `out`; its address. Raises ConfigError."""
    config = read_toml(out / "config.toml")
    lines = sorted(read_log(out).items())
    if not lines:
        raise ConfigError(
            f"{out}/metrics.jsonl has no finished step; a page is made of at least 1: name the "
            "folder of a run that trained"
        )
    metrics = _replay(out, config, lines)
    gallery = _gallery(out, config)
    pages = {
        "/metrics": metrics.metrics_page,
        "/state": metrics.state_page,
        **show_live(metrics, gallery),
    }
    with HttpServer(pages, port) as server:
        if gallery is None:
            yield f"http://{server.address}/"
        else:
            with gallery:
                yield f"http://{server.address}/"


def _replay(out: Path, config: RunConfig, lines: Lines) -> MetricsHub:
    """The hub of the run as it was after each step."""
    ended = (out / "metrics.jsonl").stat().st_mtime
    seconds = [line["step_seconds"] + line["data_wait_seconds"] for _, line in lines]
    now = began = ended - sum(seconds)
    metrics = MetricsHub(CATALOGUE)
    # Steps are chosen here, so every point is kept.
    metrics.history = History(num_points=_NUM_POINTS + 1, interval_seconds=0.0)
    every = math.ceil(len(lines) / _NUM_POINTS)
    scores = read_scores(out)
    for index, (step, line) in enumerate(lines):
        metrics.step_trained(
            step=step,
            num_samples=line["num_samples"],
            step_seconds=line["step_seconds"],
            data_wait_seconds=line["data_wait_seconds"],
            rejects=(),
            phase_seconds={},
            readings={**exported(line), **_scored(scores.get(step))},
        )
        now += seconds[index]
        if index % every == 0 or index + 1 == len(lines):
            metrics.history.add(charted(flat(*metrics.values.snapshot())), now=now)
    for reason, number in _rejects(out).items():
        metrics.values.count(("rejects", reason), number)
    metrics.run = RunInfo(
        name=out.resolve().name,
        method=config.method_name,
        cluster="",
        num_steps=config.num_steps,
        batch_size=config.stream.batch_size,
        began=began,
        thresholds=thresholds(config),
    )
    metrics.outcome = RunOutcome(at=ended)
    return metrics


def _scored(score: KnnScore | None) -> Readings:
    return {} if score is None else {("knn_accuracy_ratio",): score.headline / 100}


def _rejects(out: Path) -> Mapping[str, int]:
    """Rejects by reason, as the newest checkpoint counted them."""
    saved = checkpoint.list_checkpoints(out)
    if not saved:
        return {}
    found: Mapping[str, int] = checkpoint.read_fields(saved[-1])["cursor"]["reject_reasons"]
    return found


def _gallery(out: Path, config: RunConfig) -> Gallery | None:
    """What the galleries showed last, if the data can still be named."""
    try:
        data = open_saved(out)
    except (StreamSSLError, OSError):
        return None
    gallery = Gallery(data.manifest, crop_job(config, data))
    gallery.fill(read_places(out, len(data.manifest.shards)))
    return gallery
