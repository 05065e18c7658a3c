"""Header parsers, one file per image format."""
