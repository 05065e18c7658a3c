"""Sources of a pack that need more than a list of files: folders, tables of images, shards."""
