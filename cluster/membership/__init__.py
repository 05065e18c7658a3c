"""Trainer membership: generations of trainers, failure detection, world sizes."""
