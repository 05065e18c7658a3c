"""Packing: images from folders, tables, URLs or other shards become shards."""
