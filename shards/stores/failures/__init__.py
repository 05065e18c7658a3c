"""Failures of requests: their kinds, the waits that stores ask for, and the remedies."""
