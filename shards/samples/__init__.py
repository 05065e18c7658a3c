"""Samples and what they carry: admission, labels, metadata, subsets."""
