"""Pictures become shards."""
