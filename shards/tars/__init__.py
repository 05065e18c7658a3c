"""Tar shards: whole samples from byte ranges, without an index."""
