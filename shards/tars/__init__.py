"""A byte range of a tar becomes whole samples."""
