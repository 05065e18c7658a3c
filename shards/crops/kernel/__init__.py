"""The crop kernel: C code, its build, and its functions for Python."""
