"""Totals of a run on /metrics: they go on when the run is started again.

The folder has them in `totals.json`. Without that file, as in folders of earlier versions, totals
begin with what `metrics.jsonl` knows.
"""

from pathlib import Path

from rich.console import Console

from cluster.monitoring.metric_values import MetricHistogram, MetricTotals
from cluster.monitoring.metrics_hub import MetricsHub
from cluster.monitoring.totals_file import TotalsFile, read_totals
from shards.metric import Key
from streamssl.monitoring.catalogue import CATALOGUE
from streamssl.runs.file_names import TOTALS
from streamssl.runs.logs.metrics_log import read_log


def keep_totals(hub: MetricsHub, out: Path, console: Console) -> None:
    """Go on from the totals of earlier starts of the run in `out`, and keep those of this one."""
    path = out / TOTALS

    def tell(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    found = None
    try:
        found = read_totals(path)
    except ValueError as error:
        tell(
            f"warning: {path} cannot be read ({error}); totals of /metrics go on from what "
            "metrics.jsonl knows, and those of bytes, rejects, restarts and cost begin at 0 again"
        )
    hub.go_on_from(logged_totals(out) if found is None else found)
    # A folder is a run from the moment on in which it has settings.
    file = TotalsFile(path, hub.values, (out / "config.toml").exists, tell)
    hub.keep_totals = file.save


def logged_totals(out: Path) -> MetricTotals:
    """Return the totals of the steps in metrics.jsonl."""
    buckets = CATALOGUE["step_seconds"].buckets
    steps = MetricHistogram(buckets, [0] * (len(buckets) + 1))
    waited = trained = 0.0
    for fields in read_log(out).values():
        steps.observe(fields.get("step_seconds", 0.0))
        waited += fields.get("data_wait_seconds", 0.0)
        trained += fields.get("num_samples", 0)
    counters: dict[Key, float] = {
        ("samples", "trained"): trained,
        ("data_wait_seconds",): waited,
        ("step_phase_seconds", "input_wait"): waited,
    }
    return MetricTotals(counters, {"step_seconds": steps})
