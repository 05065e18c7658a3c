"""Messages between actors, and the values that they carry."""
