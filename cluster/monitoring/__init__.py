"""Metrics of a run, and the servers that publish them."""
