"""What a picture file is, and its pixels."""
