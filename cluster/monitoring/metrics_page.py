"""`docs/metrics.md`, made of the catalogue: `python -m cluster.monitoring.metrics_page > docs/metrics.md`."""

import sys
from typing import Final, get_args

from cluster.monitoring.metric_catalogue import METRICS
from cluster.protocol.metric import MAX_OPEN_VALUES, PROCESS_PREFIX, Group, Metric

_HEAD: Final = f"""# Metrics

Made of `cluster/monitoring/metric_catalogue.py` by `python -m cluster.monitoring.metrics_page > docs/metrics.md`; a
test holds the two equal.

Every run serves these on `http://127.0.0.1:PORT/metrics` (`--metrics-port`, any free port by
default; the run prints the address), in one process and on a cluster. `/state` has the same
numbers and their history as JSON, `/sd` is for the `http_sd_configs` of a Prometheus, and gives
every series the label `run`; `/healthz` answers while the run lives.

- **Counters** (`_total`) begin at 0 with the command, and rise whoever comes and goes: readers,
  trainers and Control say what they counted since they started, and what is new in that is added.
  What a process counted in its last second may die with it.
- **Gauges** that were never measured are absent, not 0.
- **Labels** have the values below, or, where data or cluster choose them, at most
  {MAX_OPEN_VALUES}, and `other` for the rest. No label holds a key, a shard or an actor.

With `--debug-ports 9500-9599` every process of a cluster, Control and the driver included, serves
pages of its own on a port of that range. `/metrics` has what it counted since it started, by the
names below with the prefix `{PROCESS_PREFIX}`, and `process_*` and `python_*` as prometheus_client
gives them; `/stacks` tells where each of its threads is, also while it hangs; `/healthz`. `/sd`
lists them as long as they live, with the labels `scope="process"`, `role` and `pool`, and so does
`streamssl status`. No rule and no dashboard reads them: nothing is counted twice. With `--cluster
local` they are on the loopback address, else on that of the node: whoever reaches it may read them.

[Alerts](runbook.md) and dashboards (`cluster/deploy/grafana/`) are made of these names. Scrape
every 5 to 15 seconds.
"""
_TITLES: Final = {
    "input": "Input: am I stalled, and by what?",
    "training": "Training: where does the time go?",
    "learning": "Learning: is it still learning?",
    "cluster": "Cluster: who is there, and what did it cost?",
}


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(_section(group) for group in get_args(Group))])


def _section(group: Group) -> str:
    rows = [_row(metric) for metric in METRICS if metric.group == group]
    head = ["| metric | what it is | how to read it |", "|---|---|---|"]
    return "\n".join([f"## {_TITLES[group]}", "", *head, *rows, ""])


def _row(metric: Metric) -> str:
    labels = "".join(f"<br>`{name}`: {_values(found)}" for name, found in metric.labels.items())
    kind = "" if metric.kind == "counter" else f" ({metric.kind})"
    return f"| `{metric.exposed}`{kind}{labels} | {metric.help} | {metric.how} |"


def _values(values: tuple[str, ...]) -> str:
    return ", ".join(values) if values else "as there are"


if __name__ == "__main__":
    sys.stdout.write(page())
