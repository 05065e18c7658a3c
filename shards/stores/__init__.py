"""The stores that bytes come from, all through fsspec: this folder is all that knows it."""
