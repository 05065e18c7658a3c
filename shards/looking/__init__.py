"""Shards looked at without training: evaluation, verify, stats, view."""
