"""Pretraining runs, in one process or on a cluster, and their live page."""
