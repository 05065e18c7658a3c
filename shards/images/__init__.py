"""Image files: headers, formats, decoding to pixels."""
