"""Checks and measurements on one GPU: `python -m tests.gpu_check`, or `make gpu-check`."""
