"""RunConfig, and sizes derived from the batch and the data."""
