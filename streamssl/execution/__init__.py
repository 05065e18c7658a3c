"""Execution of encoders: micro-batches, recomputation, compilation."""
