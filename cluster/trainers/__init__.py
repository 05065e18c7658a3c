"""Trainer actors: heartbeat, rendezvous, state transfer, batch feed."""
