"""Panels of the Grafana dashboards as data: each panel is a question and its queries.

`$run` and `$pool` are variables of the dashboard. Metric names are from the catalogue, or recorded
by `deploy/prometheus/streamssl.rules.yml`. `streamssl` adds the panels about learning.
"""

from dataclasses import dataclass
from typing import Final, Literal

Unit = Literal["short", "s", "bytes", "Bps", "percentunit", "reqps", "currencyUSD", "none"]
R: Final = '{run=~"$run"}'


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL expression, and the legend of its series."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel: lines over time, one number, or parts of a whole over time."""

    title: str
    unit: Unit
    question: str
    queries: tuple[Query, ...]
    shows: Literal["lines", "number", "parts"] = "lines"


Row = tuple[str, tuple[Panel, ...]]
"""A title, and the panels below it."""


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard: rows of panels, each row under a title."""

    uid: str
    title: str
    rows: tuple[Row, ...]


def lines_panel(title: str, unit: Unit, question: str, *queries: tuple[str, str]) -> Panel:
    """Return a panel of lines; queries are pairs of expression and legend."""
    return Panel(title, unit, question, tuple(Query(*query) for query in queries))


def number_panel(title: str, unit: Unit, question: str, expr: str) -> Panel:
    """Return a panel of one number for each run."""
    return Panel(title, unit, question, (Query(expr, "{{run}}"),), "number")


def parts_panel(title: str, unit: Unit, question: str, *queries: tuple[str, str]) -> Panel:
    """Return a panel of stacked areas."""
    return Panel(title, unit, question, tuple(Query(*query) for query in queries), "parts")


_SAMPLES = lines_panel(
    "Samples by stage", "short", "How many samples a second pass each stage?",
    (f"streamssl:samples:rate1m{R}", "{{run}} {{stage}}"),
)  # fmt: skip
_WAIT = lines_panel(
    "Data wait", "percentunit", "Am I stalled? The share of time that trainers wait for batches.",
    (f"streamssl:data_wait:ratio1m{R}", "{{run}}"),
)  # fmt: skip
ACTORS_PANEL: Final = lines_panel(
    "Actors", "short", "Are all wanted actors running?",
    (f"sum by (run, role) (streamssl_actors{R})", "{{run}} {{role}}s"),
    (f"sum by (run, role) (streamssl_actors_wanted{R})", "{{run}} {{role}}s wanted"),
)  # fmt: skip
_LEAD = lines_panel(
    "Lead", "s", "How long could training continue without new data?",
    (f"streamssl_lead_seconds{R}", "{{run}}"),
)  # fmt: skip


def overview_board(number: Panel, row: Row) -> Board:
    """Return the overview, with a number and a row of panels of another plane."""
    now = (
        number_panel("Step", "none", "How far is it?", f"max by (run) (streamssl_train_step{R})"),
        number_panel("Time left", "s", "When is it done, at the speed of the last five minutes?",
                     f"streamssl:left:seconds{R}"),
        number_panel("Images a second", "short", "How fast does it train?",
                     'streamssl:samples:rate1m{run=~"$run",stage="trained"}'),
        number_panel("Cost of a million images", "currencyUSD",
                     "What does it cost? Only for runs with prices (--price).",
                     f"streamssl:cost_per_million_images:dollars{R}"),
        number,
        number_panel("Rejected", "percentunit", "What share of the samples is bad?",
                     f"streamssl:rejects:ratio5m{R}"),
    )  # fmt: skip
    rows = (
        ("Now", now),
        ("Am I stalled?", (_WAIT, _LEAD, _SAMPLES)),
        row,
    )
    return Board("streamssl-overview", "streamssl overview", rows)


INPUT_BOARD: Final = Board("streamssl-input", "streamssl input", (
    ("Am I stalled?", (_WAIT, _LEAD, _SAMPLES)),
    ("Which stage is the limit?", (
        lines_panel("Readers at work", "s", "How many readers work on each stage?",
            (f"sum by (run, stage) (rate(streamssl_reader_busy_seconds_total{R}"
             "[$__rate_interval]))", "{{run}} {{stage}}")),
        lines_panel("Waiting readers", "s", "What do readers wait for? Leases are good.",
            (f"sum by (run, on) (rate(streamssl_reader_blocked_seconds_total{R}"
             "[$__rate_interval]))", "{{run}} for {{on}}")),
        lines_panel("Buffers", "bytes", "Where are crops held, and what is the limit?",
            (f"sum by (run, role) (streamssl_buffer_bytes{R})", "{{run}} {{role}}s"),
            (f"sum by (run, role) (streamssl_buffer_limit_bytes{R})",
             "{{run}} {{role}}s limit")),
        lines_panel("Batches ready", "short", "How many batches are ready, and where?",
            (f"max by (run, stage) (streamssl_batches_ready{R})", "{{run}} {{stage}}")),
        lines_panel("Oldest lease", "s", "Does a chunk hang?",
            (f"max by (run) (max_over_time(streamssl_oldest_lease_seconds{R}[1m]))", "{{run}}")),
    )),
    ("The buckets", (
        lines_panel("Bytes", "Bps", "How many bytes come from each bucket?",
            (f"sum by (run, bucket) (rate(streamssl_bucket_bytes_total{R}[$__rate_interval]))",
             "{{run}} {{bucket}}"),
            (f"sum by (run) (rate(streamssl_crop_bytes_total{R}[$__rate_interval]))",
             "{{run}} crops made"),
            (f"sum by (run) (rate(streamssl_taken_bytes_total{R}[$__rate_interval]))",
             "{{run}} crops taken")),
        lines_panel("Requests", "reqps", "How many requests go to each bucket and to the cache?",
            (f"sum by (run, bucket) (rate(streamssl_bucket_requests_total{R}"
             "[$__rate_interval]))", "{{run}} {{bucket}}"),
            (f"sum by (run, kind) (rate(streamssl_cache_ranges_total{R}[$__rate_interval]))",
             "{{run}} cache {{kind}}")),
        lines_panel("Dropped cache ranges", "reqps", "Is the disk cache too small, or damaged?",
            (f"sum by (run, reason) (rate(streamssl_cache_dropped_ranges_total{R}"
             "[$__rate_interval]))", "{{run}} {{reason}}")),
        lines_panel("Seconds of a request", "s", "Is a bucket slow?",
            (f"streamssl:bucket_request_seconds:mean5m{R}", "{{run}} {{bucket}}")),
        lines_panel("Failed requests", "reqps", "Does a bucket refuse, throttle, or abort?",
            (f"sum by (run, bucket, kind) (rate(streamssl_bucket_errors_total{R}"
             "[$__rate_interval]))", "{{run}} {{bucket}} {{kind}}")),
    )),
    ("Bad data", (
        lines_panel("Rejects by reason", "short", "Why are samples rejected, in samples a second?",
            (f"sum by (run, reason) (rate(streamssl_rejects_total{R}[$__rate_interval]))",
             "{{run}} {{reason}}")),
        lines_panel("Rejected share", "percentunit", "How much of the data is bad?",
            (f"streamssl:rejects:ratio5m{R}", "{{run}}")),
    )),
))  # fmt: skip

_POOL = '{run=~"$run",pool=~"$pool"}'
CLUSTER_BOARD: Final = Board("streamssl-cluster", "streamssl cluster", (
    ("Which actors and nodes run?", (
        ACTORS_PANEL,
        lines_panel("Pools", "short", "How many actors run in each pool of nodes?",
            (f"sum by (run, pool, role) (streamssl_pool_ready{_POOL})",
             "{{run}} {{pool}} {{role}}s"),
            (f"sum by (run, pool, role) (streamssl_pool_desired{_POOL})",
             "{{run}} {{pool}} {{role}}s desired")),
        lines_panel("Nodes", "short", "How many nodes run, leave, and are requested?",
            (f"max by (run, kind) (streamssl_nodes{R})", "{{run}} {{kind}}"),
            (f"max by (run) (streamssl_node_launches_failed_total{R})",
             "{{run}} launches failed")),
        lines_panel("World", "short", "How many trainers share a batch?",
            (f"max by (run) (streamssl_world_size{R})", "{{run}} trainers"),
            (f"max by (run) (streamssl_control_term{R})", "{{run}} control term")),
    )),
    ("What failed?", (
        lines_panel("Actors lost", "short", "Which actors died in ten minutes, and why?",
            (f"sum by (run, role, reason) (increase(streamssl_restarts_total{R}[10m]))",
             "{{run}} {{role}} {{reason}}"),
            (f"sum by (run) (increase(streamssl_readers_lost_total{R}[10m]))",
             "{{run}} readers lost"),
            (f"sum by (run) (increase(streamssl_trainers_lost_total{R}[10m]))",
             "{{run}} trainers lost")),
        lines_panel("Recovery", "s", "How long does recovery from a lost trainer take?",
            (f"sum by (run) (streamssl_recovery_seconds_total{R})", "{{run}} seconds so far"),
            (f"sum by (run) (streamssl_recoveries_total{R})", "{{run}} recoveries"),
            (f"sum by (run) (streamssl_generations_total{R})", "{{run}} generations")),
        lines_panel("Refused and repeated", "short", "How many late messages were fenced off?",
            (f"sum by (run, reason) (streamssl_leases_reissued_total{R})",
             "{{run}} leases {{reason}}"),
            (f"sum by (run, reason) (streamssl_results_refused_total{R})",
             "{{run}} results {{reason}}"),
            (f"sum by (run, reason) (streamssl_beats_refused_total{R})",
             "{{run}} beats {{reason}}"),
            (f"sum by (run) (streamssl_state_mismatches_total{R})", "{{run}} state mismatches"),
            (f"sum by (run) (streamssl_results_differing_total{R})",
             "{{run}} results differing")),
        lines_panel("Chunks cropped again", "short", "Do slow or dying readers repeat work?",
            (f"sum by (run) (streamssl_leases_hedged_total{R})", "{{run}} second leases"),
            (f"sum by (run) (streamssl_hedges_won_total{R})", "{{run}} second leases first"),
            (f"sum by (run) (streamssl_chunks_recropped_total{R})", "{{run}} crops lost"),
            (f"sum by (run) (streamssl_chunks_given_up_total{R})", "{{run}} given up")),
        lines_panel("Used storage", "percentunit", "Is a disk or an object store filling up?",
            (f"max by (run) (streamssl_object_store_used_ratio{R})", "{{run}} object store"),
            (f"1 - min by (run, what) (streamssl_disk_free_bytes{R}) / "
             f"min by (run, what) (streamssl_disk_size_bytes{R})", "{{run}} disk of {{what}}")),
    )),
    ("Decisions and cost", (
        lines_panel("Scale decisions", "short", "How often was the number of readers changed?",
            (f"sum by (run, direction, reason) (streamssl_scale_decisions_total{R}) > 0 or "
             f"sum by (run, direction) (streamssl_scale_decisions_total{R})",
             "{{run}} {{direction}} {{reason}}")),
        lines_panel("Cost", "currencyUSD", "What have the nodes cost so far, with --price?",
            (f"sum by (run, pool) (streamssl_node_cost_dollars_total{_POOL})",
             "{{run}} {{pool}}")),
    )),
))  # fmt: skip
