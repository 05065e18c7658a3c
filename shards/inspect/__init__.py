"""Commands' work on shards without training: verify, stats, view, damage, slow stores."""
