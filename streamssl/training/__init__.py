"""The training loop and what it measures: learner, health, step phases."""
