"""Settings that several methods share, and the rules that every method's settings follow."""
