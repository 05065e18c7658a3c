"""Control actor: the one place where a run on a cluster is decided."""
