"""Samples: admission, labels, metadata, predicates, subset lists."""
