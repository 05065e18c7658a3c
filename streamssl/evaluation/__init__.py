"""What was learned: k-NN on labelled shards."""
