"""What each kind of picture file says about itself before a pixel is decoded: one file a format."""
