"""Loaders on the same shards with the same work, one file each; run by `tests.bench.peers`."""
