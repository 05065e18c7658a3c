"""Every alert fires for its fault and is silent in a healthy run; promtool computes both."""

import re
import shutil
import subprocess

import yaml

from cluster.protocol.process_counts import PROCESS_PREFIX
from shards.metric import PREFIX
from streamssl.monitoring.catalogue import METRICS
from tests.cluster.deployed import ROOT
from tests.prometheus import needs_promtool

RULES = ROOT / "cluster" / "deploy" / "prometheus" / "streamssl.rules.yml"
GROUPS = {group["name"]: group["rules"] for group in yaml.safe_load(RULES.read_text())["groups"]}
ALERTS = {rule["alert"]: rule for rule in GROUPS["streamssl-alerts"]}
RECORDS = {rule["record"] for rule in GROUPS["streamssl-rates"]}
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()

# A run of a step a second, an hour of it, a value every 15 s.
HEALTHY = {
    'streamssl_data_wait_seconds_total{run="a"}': "0+0.3x240",
    'streamssl_step_seconds_sum{run="a"}': "0+14x240",
    'streamssl_step_seconds_count{run="a"}': "0+15x240",
    'streamssl_train_step{run="a"}': "0+15x240",
    'streamssl_steps_wanted{run="a"}': "100000x240",
    'streamssl_samples_total{run="a",stage="cropped"}': "0+960x240",
    'streamssl_samples_total{run="a",stage="trained"}': "0+960x240",
    'streamssl_lead_seconds{run="a"}': "20x240",
    'streamssl_rejects_total{run="a",reason="empty"}': "0+9x240",
    'streamssl_bucket_requests_total{run="a",bucket="b"}': "0+100x240",
    'streamssl_bucket_errors_total{run="a",bucket="b",kind="throttled"}': "0+1x240",
    'streamssl_restarts_total{run="a",role="reader",reason="failure"}': "0x120 1x120",
    'streamssl_restarts_total{run="a",role="reader",reason="preemption"}': "0+1x240",
    'streamssl_control_term{run="a"}': "1x120 2x120",
    'streamssl_actors{run="a",role="reader"}': "2x100 1x20 2x120",
    'streamssl_actors_wanted{run="a",role="reader"}': "2x240",
    'streamssl_state_mismatches_total{run="a"}': "1x240",
    'streamssl_results_differing_total{run="a"}': "0x240",
    'streamssl_collapsing{run="a",reading="feature_std"}': "0x240",
    'streamssl_skipped_steps{run="a"}': "3x240",
    'streamssl_disk_free_bytes{run="a",what="out"}': "40x240",
    'streamssl_disk_size_bytes{run="a",what="out"}': "100x240",
    'streamssl_object_store_used_ratio{run="a"}': "0.4x240",
    'streamssl_nodes{run="a",kind="pending"}': "0x100 2x20 0x120",
    'up{job="ray",instance="10.0.0.1:44217"}': "1x240",
}
# Alert: series that differ from the healthy run, and the labels of the alert beside `run`.
FAULTS = {
    "Starved": ({'data_wait_seconds_total{run="a"}': "0+9x240"}, {}),
    "InputStalled": ({'samples_total{run="a",stage="cropped"}': "9x240",
                      'lead_seconds{run="a"}': "0x240"}, {}),
    "NoProgress": ({'train_step{run="a"}': "7x240"}, {}),
    "Rejects": ({'rejects_total{run="a",reason="empty"}': "0+500x240"}, {}),
    "BucketErrors": ({'bucket_errors_total{run="a",bucket="b",kind="throttled"}': "0+20x240"},
                     {"bucket": "b"}),
    "RestartStorm": ({'restarts_total{run="a",role="reader",reason="failure"}': "0+1x240"},
                     {"role": "reader"}),
    "ControlRestarts": ({'control_term{run="a"}': "1x60 2x10 3x10 4x10 5x160"}, {}),
    "ActorsMissing": ({'actors{run="a",role="reader"}': "1x240"}, {"role": "reader"}),
    "ResultsDiffering": ({'results_differing_total{run="a"}': "0x60 1x180"}, {}),
    "StateMismatch": ({'state_mismatches_total{run="a"}': "1x60 2x180"}, {}),
    "Collapsing": ({'collapsing{run="a",reading="feature_std"}': "0x60 1x180"},
                   {"reading": "feature_std"}),
    "StepsLeftOut": ({'skipped_steps{run="a"}': "3x100 4x140"}, {}),
    "DiskFilling": ({'disk_free_bytes{run="a",what="out"}': "4x240"}, {"what": "out"}),
    "ObjectStoreFilling": ({'object_store_used_ratio{run="a"}': " ".join(["0.3x2 0.85"] * 60)}, {}),
    "NodesPending": ({'nodes{run="a",kind="pending"}': "2x240"}, {}),
}  # fmt: skip
FAULTS = {
    f"Streamssl{alert}": (
        {f"{PREFIX}{name}": values for name, values in changes.items()},
        {"run": "a"} | labels,
    )
    for alert, (changes, labels) in FAULTS.items()
} | {
    "StreamsslAutoscalerDown": (
        {'up{job="ray",instance="10.0.0.1:44217"}': "1x60 0x180"},
        {"job": "ray"},
    )
}
# Series of one process of that run, scraped from its own page: much larger than those of the run.
# The process hangs, on the port that Ray's autoscaler has elsewhere.
PROCESS_SERIES = {
    name.replace(PREFIX, PROCESS_PREFIX).replace(
        '{run="a"', '{run="a",scope="process"'
    ): "9+999x240"
    for name in HEALTHY
    if name.startswith(PREFIX)
} | {
    'process_resident_memory_bytes{run="a",scope="process",role="reader"}': "9+9x240",
    'up{run="a",scope="process",role="reader",instance="10.0.0.2:44217"}': "1x60 0x180",
}


def rule_test(series, fires):
    """Return a test for promtool: after half an hour exactly these alerts fire."""
    checks = [
        {"eval_time": "30m", "alertname": name, "exp_alerts": expected(name, fires)}
        for name in ALERTS
    ]
    return {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": checks,
    }


def expected(name, fires):
    if name not in fires:
        return []
    rule, labels = ALERTS[name], fires[name]

    def filled(text):
        return re.sub(r"{{ \$labels\.(\w+) }}", lambda match: labels[match[1]], text)

    return [
        {
            "exp_labels": {**rule["labels"], **labels},
            "exp_annotations": {key: filled(text) for key, text in rule["annotations"].items()},
        }
    ]


def run_promtool(tests, tmp_path):
    shutil.copy(RULES, tmp_path / RULES.name)
    (tmp_path / "tests.yml").write_text(
        yaml.safe_dump(
            {"rule_files": [RULES.name], "evaluation_interval": "30s", "tests": tests},
            width=1000,
        )
    )
    command = ["promtool", "test", "rules", "tests.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_each_alert_fires_for_its_fault_only(tmp_path):
    """An alert that cannot fire is useless; one that fires every day is ignored.

    Pages of processes must change no rule: a run counted twice would look twice as fast.
    """
    trained = 'streamssl:samples:rate1m{run="a", stage="trained"}'
    recorded = [
        {"expr": expr, "eval_time": "30m", "exp_samples": [{"labels": labels, "value": value}]}
        for expr, labels, value in (
            (trained, trained, 64),
            ("streamssl:steps:rate5m", 'streamssl:steps:rate5m{run="a"}', 1),
            ('count({__name__=~"streamssl:.*"})', "{}", 9),
        )
    ]
    alone, both = rule_test(HEALTHY, {}), rule_test(HEALTHY | PROCESS_SERIES, {})
    names = ("data_wait", "step_seconds", "train_step", "steps_wanted", "samples", "lead", "disk")
    one_process = {
        name: values for name, values in HEALTHY.items() if any(n in name for n in names)
    }
    tests = [one | {"promql_expr_test": recorded} for one in (alone, both)]
    tests.append(rule_test(one_process, {}))
    for alert, (changes, labels) in FAULTS.items():
        assert changes.keys() <= HEALTHY.keys()
        tests.append(rule_test(HEALTHY | changes | PROCESS_SERIES, {alert: labels}))
    run_promtool(tests, tmp_path)


@needs_promtool
def test_promtool_accepts_the_rules():
    """Prometheus does not start with a file that it cannot read."""
    command = ["promtool", "check", "rules", "--lint=all", str(RULES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_test_a_drill_and_a_paragraph():
    """A user who receives an alert must find its meaning and the remedy."""
    assert ALERTS.keys() == FAULTS.keys()
    found = dict(re.findall(r"^## (Streamssl\w+)\n\n(.+?)(?=\n## |\Z)", RUNBOOK, re.M | re.S))
    assert found.keys() == ALERTS.keys()
    assert [name for name, text in found.items() if len(text.split()) < 30] == []
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("warning", "critical")
    drills = "".join(path.read_text() for path in (ROOT / "tests/drills").glob("test_alerts*.py"))
    # No drill can make a reader compute wrongly.
    assert {name for name in ALERTS if name not in drills} == {"StreamsslResultsDiffering"}


def test_rules_name_metrics_that_exist():
    """An alert on a name that no run serves is silent forever."""
    served = {name for metric in METRICS for name in metric.exposed_names}
    for rule in (*GROUPS["streamssl-rates"], *ALERTS.values()):
        named = set(re.findall(r"\bstreamssl_[a-z_0-9]+", rule["expr"]))
        recorded = set(re.findall(r"\bstreamssl:[a-z_0-9:]+", rule["expr"]))
        assert named <= served and recorded <= RECORDS, rule


def test_the_runbook_names_existing_things():
    """Advice that cannot be followed wastes time."""
    served = {name for metric in METRICS for name in (metric.exposed, *metric.exposed_names)}
    assert set(re.findall(r"`(streamssl_[a-z_0-9]+)", RUNBOOK)) <= served
    for path in re.findall(r"\]\(((?!http)[\w./-]+)\)", RUNBOOK):
        assert (ROOT / "docs" / path).exists(), path
