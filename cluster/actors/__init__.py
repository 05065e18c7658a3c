"""Actor life cycle: registry, restart policy, autoscaler, node watch, actor fleet."""
