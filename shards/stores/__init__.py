"""Stores of bytes: files, S3, web servers, the Hub. Only this folder imports fsspec."""
