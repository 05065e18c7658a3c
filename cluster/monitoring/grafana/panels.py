"""What the Grafana dashboards show, as a table: each panel is a question and the queries of it.

`$run` and `$pool` are chosen on the dashboard. Every name is of the catalogue, or is recorded by
`deploy/prometheus/streamssl.rules.yml`.
"""

from dataclasses import dataclass
from typing import Final, Literal

Unit = Literal["short", "s", "bytes", "Bps", "percentunit", "reqps", "currencyUSD", "none"]
R: Final = '{run=~"$run"}'


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL, and the legend of its series."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """`shows`: a line over time, one number, or parts of a whole over time."""

    title: str
    unit: Unit
    question: str
    queries: tuple[Query, ...]
    shows: Literal["lines", "number", "parts"] = "lines"


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard: rows of panels, each row under a title."""

    uid: str
    title: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]


def _lines(title: str, unit: Unit, question: str, *queries: tuple[str, str]) -> Panel:
    return Panel(title, unit, question, tuple(Query(*query) for query in queries))


def _number(title: str, unit: Unit, question: str, expr: str) -> Panel:
    return Panel(title, unit, question, (Query(expr, "{{run}}"),), "number")


def _parts(title: str, unit: Unit, question: str, *queries: tuple[str, str]) -> Panel:
    return Panel(title, unit, question, tuple(Query(*query) for query in queries), "parts")


_SAMPLES = _lines(
    "Samples by stage", "short", "How quickly do samples pass each stage, in samples a second?",
    (f"streamssl:samples:rate1m{R}", "{{run}} {{stage}}"),
)  # fmt: skip
_WAIT = _lines(
    "Data wait", "percentunit", "Am I stalled? The share of time that trainers wait for batches.",
    (f"streamssl:data_wait:ratio1m{R}", "{{run}}"),
)  # fmt: skip
_LOSS = _lines("Loss", "none", "Is it learning?", (f"streamssl_loss{R}", "{{run}}"))
_ACTORS = _lines(
    "Actors", "short", "Are all there that shall be?",
    (f"sum by (run, role) (streamssl_actors{R})", "{{run}} {{role}}s"),
    (f"sum by (run, role) (streamssl_actors_wanted{R})", "{{run}} {{role}}s wanted"),
)  # fmt: skip
_LEAD = _lines(
    "Lead", "s", "For how long would training go on if no more data came?",
    (f"streamssl_lead_seconds{R}", "{{run}}"),
)  # fmt: skip

_OVERVIEW = Board("streamssl-overview", "streamssl overview", (
    ("Now", (
        _number("Step", "none", "How far is it?", f"max by (run) (streamssl_train_step{R})"),
        _number("Time left", "s", "When is it done, at the speed of the last five minutes?",
                f"streamssl:left:seconds{R}"),
        _number("Images a second", "short", "How quickly does it train?",
                'streamssl:samples:rate1m{run=~"$run",stage="trained"}'),
        _number("Cost of a million images", "currencyUSD",
                "What does it cost? Of runs that were told prices (--price).",
                f"streamssl:cost_per_million_images:dollars{R}"),
        _number("Readings that say collapse", "none", "Is it still learning? 0 is well.",
                f"sum by (run) (streamssl_collapsing{R}) "
                f"or 0 * max by (run) (streamssl_train_step{R})"),
        _number("Rejected", "percentunit", "What share of the samples is bad?",
                f"streamssl:rejects:ratio5m{R}"),
    )),
    ("Am I stalled?", (_WAIT, _LEAD, _SAMPLES)),
    ("Is it learning, and who is there?", (_LOSS, _ACTORS)),
))  # fmt: skip

_INPUT = Board("streamssl-input", "streamssl input", (
    ("Am I stalled?", (_WAIT, _LEAD, _SAMPLES)),
    ("By what?", (
        _lines("Readers at work", "s", "How many readers' worth of time goes into each stage?",
               (f"sum by (run, stage) (rate(streamssl_reader_busy_seconds_total{R}"
                "[$__rate_interval]))", "{{run}} {{stage}}")),
        _lines("Readers that wait", "s", "What do readers wait for? For leases is good.",
               (f"sum by (run, on) (rate(streamssl_reader_blocked_seconds_total{R}"
                "[$__rate_interval]))", "{{run}} for {{on}}")),
        _lines("Buffers", "bytes", "Where do crops lie, and how much more may there be?",
               (f"sum by (run, role) (streamssl_buffer_bytes{R})", "{{run}} {{role}}s"),
               (f"sum by (run, role) (streamssl_buffer_limit_bytes{R})",
                "{{run}} {{role}}s limit")),
        _lines("Batches ready", "short", "How many batches wait to be trained on, and where?",
               (f"max by (run, stage) (streamssl_batches_ready{R})", "{{run}} {{stage}}")),
        _lines("Oldest lease", "s", "Does a chunk hang?",
               (f"max by (run) (max_over_time(streamssl_oldest_lease_seconds{R}[1m]))", "{{run}}")),
    )),
    ("The buckets", (
        _lines("Bytes", "Bps", "How much comes from each bucket?",
               (f"sum by (run, bucket) (rate(streamssl_bucket_bytes_total{R}[$__rate_interval]))",
                "{{run}} {{bucket}}"),
               (f"sum by (run) (rate(streamssl_crop_bytes_total{R}[$__rate_interval]))",
                "{{run}} crops made"),
               (f"sum by (run) (rate(streamssl_taken_bytes_total{R}[$__rate_interval]))",
                "{{run}} crops taken")),
        _lines("Requests", "reqps", "How often is each bucket asked, and the cache?",
               (f"sum by (run, bucket) (rate(streamssl_bucket_requests_total{R}"
                "[$__rate_interval]))", "{{run}} {{bucket}}"),
               (f"sum by (run, kind) (rate(streamssl_cache_ranges_total{R}[$__rate_interval]))",
                "{{run}} cache {{kind}}")),
        _lines("Seconds of a request", "s", "Is a bucket slow?",
               (f"streamssl:bucket_request_seconds:mean5m{R}", "{{run}} {{bucket}}")),
        _lines("Requests that failed", "reqps", "Does a bucket refuse, throttle, or break off?",
               (f"sum by (run, bucket, kind) (rate(streamssl_bucket_errors_total{R}"
                "[$__rate_interval]))", "{{run}} {{bucket}} {{kind}}")),
    )),
    ("Bad data", (
        _lines("Rejects by reason", "short", "What is wrong with the samples, in samples a second?",
               (f"sum by (run, reason) (rate(streamssl_rejects_total{R}[$__rate_interval]))",
                "{{run}} {{reason}}")),
        _lines("Rejected share", "percentunit", "How much of the data is bad?",
               (f"streamssl:rejects:ratio5m{R}", "{{run}}")),
    )),
))  # fmt: skip

_TRAINING = Board("streamssl-training", "streamssl training health", (
    ("Where does the time go?", (
        _parts("Time by phase", "percentunit", "What is a second of training spent on?",
               (f"streamssl:step_phase:ratio1m{R}", "{{run}} {{phase}}")),
        _lines("Step", "s", "How long is a step, and how long are the slowest?",
               (f"streamssl:step_seconds:mean1m{R}", "{{run}} mean"),
               (f"histogram_quantile(0.95, sum by (run, le) (rate(streamssl_step_seconds_bucket{R}"
                "[5m])))", "{{run}} 95 of 100 below")),
        _lines("Utilisation", "percentunit", "Are devices and trainers busy?",
               (f"max by (run) (streamssl_model_flops_utilization_ratio{R})", "{{run}} FLOPs"),
               (f"1 - streamssl:data_wait:ratio1m{R}", "{{run}} not waiting")),
        _lines("Memory", "bytes", "Who grows?",
               (f"max by (run, role) (streamssl_memory_bytes{R})", "{{run}} {{role}}"),
               (f"max by (run, what) (streamssl_device_memory_bytes{R})", "{{run}} GPU {{what}}")),
    )),
    ("Is it learning?", (
        _LOSS,
        _lines("Loss over its plateau, and certainty", "none",
               "Is it better than knowing nothing? Far from 1; certainty far from 0.",
               (f"streamssl_loss_over_plateau_ratio{R}", "{{run}} loss over plateau"),
               (f"streamssl_assignment_certainty_ratio{R}", "{{run}} certainty"),
               (f"streamssl_prototypes_dead_ratio{R}", "{{run}} dead prototypes"),
               (f"streamssl_contrast_accuracy_ratio{R}", "{{run}} contrast accuracy"),
               (f"streamssl_label_accuracy_ratio{R}", "{{run}} label accuracy"),
               (f"streamssl_knn_accuracy_ratio{R}", "{{run}} k-NN accuracy")),
        _lines("Gradient norm", "none", "Does it blow up, or die?",
               (f"streamssl_gradient_norm{R}", "{{run}}")),
        _lines("Learning rate", "none", "Where in its schedule is it?",
               (f"streamssl_learning_rate{R}", "{{run}}"),
               (f"1 - streamssl_momentum{R}", "{{run}} 1 - momentum")),
    )),
    ("Does it collapse?", (
        _lines("How many", "short", "Into how many directions, prototypes and clusters do they go?",
               (f"streamssl_effective_rank{R}", "{{run}} directions of features"),
               (f"exp(streamssl_assignment_entropy_nats{R})", "{{run}} prototypes of a sample"),
               (f"streamssl_assignments_used{R}", "{{run}} clusters")),
        _lines("Spread", "none", "Are features and prototypes used evenly? 1 is even.",
               (f"streamssl_feature_std{R}", "{{run}} features"),
               (f"streamssl_prototype_usage_ratio{R}", "{{run}} prototypes"),
               (f"streamssl_cosine{R}", "{{run}} cosine {{kind}}")),
        _lines("Queue", "percentunit", "Is the queue full, and far from today's features?",
               (f"streamssl_queue_fill_ratio{R}", "{{run}} filled"),
               (f"streamssl_memory_fill_ratio{R}", "{{run}} memory filled"),
               (f"streamssl_queue_drift{R}", "{{run}} drift")),
        _lines("Queue age", "short", "How many steps old are its features?",
               (f"streamssl_queue_age_steps{R}", "{{run}} {{what}}")),
    )),
))  # fmt: skip

_POOL = '{run=~"$run",pool=~"$pool"}'
_CLUSTER = Board("streamssl-cluster", "streamssl cluster", (
    ("Who is there?", (
        _ACTORS,
        _lines("Pools", "short", "Which pool of nodes gives what?",
               (f"sum by (run, pool, role) (streamssl_pool_ready{_POOL})",
                "{{run}} {{pool}} {{role}}s"),
               (f"sum by (run, pool, role) (streamssl_pool_desired{_POOL})",
                "{{run}} {{pool}} {{role}}s desired")),
        _lines("Nodes", "short", "How many nodes are there, leave, and are to come?",
               (f"max by (run, kind) (streamssl_nodes{R})", "{{run}} {{kind}}"),
               (f"max by (run) (streamssl_node_launches_failed_total{R})",
                "{{run}} launches failed")),
        _lines("World", "short", "How many trainers share a batch?",
               (f"max by (run) (streamssl_world_size{R})", "{{run}} trainers"),
               (f"max by (run) (streamssl_control_term{R})", "{{run}} Controls so far")),
    )),
    ("What went wrong?", (
        _lines("Actors lost", "short", "Who dies, and of what, in ten minutes?",
               (f"sum by (run, role, reason) (increase(streamssl_restarts_total{R}[10m]))",
                "{{run}} {{role}} {{reason}}"),
               (f"sum by (run) (increase(streamssl_readers_lost_total{R}[10m]))",
                "{{run}} readers lost"),
               (f"sum by (run) (increase(streamssl_trainers_lost_total{R}[10m]))",
                "{{run}} trainers lost")),
        _lines("Recovery", "s", "What does a loss of a trainer cost?",
               (f"sum by (run) (streamssl_recovery_seconds_total{R})", "{{run}} seconds so far"),
               (f"sum by (run) (streamssl_recoveries_total{R})", "{{run}} recoveries"),
               (f"sum by (run) (streamssl_generations_total{R})", "{{run}} generations")),
        _lines("Refused and done again", "short", "Which late words were fenced off, in all?",
               (f"sum by (run, reason) (streamssl_leases_reissued_total{R})",
                "{{run}} leases {{reason}}"),
               (f"sum by (run, reason) (streamssl_results_refused_total{R})",
                "{{run}} results {{reason}}"),
               (f"sum by (run, reason) (streamssl_beats_refused_total{R})",
                "{{run}} beats {{reason}}"),
               (f"sum by (run) (streamssl_state_mismatches_total{R})", "{{run}} state mismatches")),
        _lines("Stores filling", "percentunit", "Does a disk or an object store fill?",
               (f"max by (run) (streamssl_object_store_used_ratio{R})", "{{run}} object store"),
               (f"1 - min by (run, what) (streamssl_disk_free_bytes{R}) / "
                f"min by (run, what) (streamssl_disk_size_bytes{R})", "{{run}} disk of {{what}}")),
    )),
    ("What was decided, and what did it cost?", (
        _lines("Scale decisions", "short", "How often were more or fewer readers wanted, and why?",
               (f"sum by (run, direction, reason) (streamssl_scale_decisions_total{R}) > 0 or "
                f"sum by (run, direction) (streamssl_scale_decisions_total{R})",
                "{{run}} {{direction}} {{reason}}")),
        _lines("Cost", "currencyUSD", "What did the nodes cost so far, with --price?",
               (f"sum by (run, pool) (streamssl_node_cost_dollars_total{_POOL})",
                "{{run}} {{pool}}")),
    )),
))  # fmt: skip

BOARDS: Final = (_OVERVIEW, _INPUT, _TRAINING, _CLUSTER)
