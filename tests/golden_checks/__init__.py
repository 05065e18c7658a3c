"""Comparison of each file of golden vectors with the product's own functions."""
