"""The control plane: where it runs. Readers on Ray, the feed, metrics. Imports `shards`."""
