"""Lease table: which reader crops which chunk, until when."""
