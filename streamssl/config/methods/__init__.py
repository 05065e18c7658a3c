"""The settings of each method. Nothing here imports torch."""
