"""Run folders: data, settings, placement, start and end."""
