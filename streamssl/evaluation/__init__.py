"""Evaluation of the encoder of a run on labelled shards: k-NN and retrieval."""
