"""What a run measures of itself, and how it is served: on /metrics, as JSON, on a page."""
