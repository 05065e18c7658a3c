"""Reader actors: fetch chunks, crop them, hand rows out."""
