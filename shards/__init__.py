"""The data plane: a bucket of plain tars becomes batches of crops. Imports nothing of ours."""
