"""Run folders: data, settings, placement, log, progress."""
