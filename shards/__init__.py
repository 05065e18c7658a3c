"""The data plane: batches of crops from a bucket of plain tars. It imports no other plane."""
