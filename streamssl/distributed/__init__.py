"""Collectives and gradient averaging over ranks."""
