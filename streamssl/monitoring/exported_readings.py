"""Exported readings: the readings of methods, by the names under which /metrics serves them.

A reading that is not listed is only in metrics.jsonl: no dashboard, rule or page would know its
series.
"""

from collections.abc import Collection, Mapping
from typing import Any, Final

from cluster.monitoring.metrics_hub import MetricsHub
from shards.metric import Key

EXPORTED: Final[Mapping[str, Key]] = {
    "gradient_norm": ("gradient_norm",),
    "skipped_steps": ("skipped_steps",),
    "queue_fill": ("queue_fill_ratio",),
    "queue_age_p50": ("queue_age_steps", "p50"),
    "queue_age_max": ("queue_age_steps", "max"),
    "queue_drift": ("queue_drift",),
    "prototype_usage": ("prototype_usage_ratio",),
    "prototypes_dead": ("prototypes_dead_ratio",),
    "codes_entropy": ("assignment_entropy_nats",),
    "effective_rank": ("effective_rank",),
    "feature_std": ("feature_std",),
    "contrast_accuracy": ("contrast_accuracy_ratio",),
    "positive_cosine": ("cosine", "positive"),
    "negative_cosine": ("cosine", "negative"),
    "target_cosine": ("cosine", "target"),
    "accuracy": ("label_accuracy_ratio",),
    "label_accuracy": ("label_accuracy_ratio",),
    "memory_fill": ("memory_fill_ratio",),
    "momentum": ("momentum",),
    "key_momentum": ("momentum",),
    "loss_over_plateau": ("loss_over_plateau_ratio",),
    "codes_certainty": ("assignment_certainty_ratio",),
    "assignments_used": ("assignments_used",),
    "flops_utilization": ("model_flops_utilization_ratio",),
}


def exported(fields: Mapping[str, Any]) -> dict[Key, float]:
    """Return the gauges of a step from its line of metrics.jsonl."""
    found: dict[Key, float] = {("loss",): fields["loss"], ("learning_rate",): fields["lr"]}
    for name, value in fields["readings"].items():
        if name in EXPORTED:
            found[EXPORTED[name]] = value
    return found


def set_collapsing(hub: MetricsHub, checked: Collection[str], crossed: Collection[str]) -> None:
    """Set the gauge `collapsing` of the checked readings; those in `crossed` are beyond a limit."""
    hub.values.set({("collapsing", name): float(name in crossed) for name in checked})
