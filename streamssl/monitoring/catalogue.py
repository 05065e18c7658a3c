"""Metric catalogue of a run: the rows of all planes."""

from typing import Final

from cluster.monitoring.metric_catalogue import CLUSTER_METRICS, build_catalogue
from shards.input_metrics import INPUT_METRICS
from streamssl.monitoring.learning_metrics import LEARNING_METRICS

METRICS: Final = (*INPUT_METRICS, *CLUSTER_METRICS, *LEARNING_METRICS)
CATALOGUE: Final = build_catalogue(METRICS)
