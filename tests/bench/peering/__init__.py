"""Other loaders on the same shards with the same work, a file each; run by `tests.bench.peers`."""
