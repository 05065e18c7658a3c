"""Driver: the process that starts a run on Ray and keeps what it produces."""
