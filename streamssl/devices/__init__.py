"""Transfers between the host and its device: crops to it, and numbers of a step from it."""
