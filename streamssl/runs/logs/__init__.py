"""Logs of a run: its steps as lines, as events of TensorBoard, and as a line on the terminal."""
