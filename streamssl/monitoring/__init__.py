"""Metrics of learning, and the composition of the metrics, pages and dashboards of a run."""
