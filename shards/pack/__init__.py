"""Packing: images, or other shards, are written as tar shards."""
