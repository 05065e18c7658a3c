"""Errors of the learning plane; they extend the tree of `shards.errors`.

StreamSSLError
  TrainingDiverged    a step, or a state to save, is not finite
  ReplayDiffers       a repeated step got other samples than before
"""

from shards.errors import StreamSSLError


class TrainingDiverged(StreamSSLError):
    """Numbers of `step`, counted from 1, that are not finite: none of them is in a checkpoint."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self._message, self.step = message, step

    def __reduce__(self) -> tuple[type["TrainingDiverged"], tuple[str, int]]:
        return type(self), (self._message, self.step)  # for pickle


class ReplayDiffers(StreamSSLError):
    """Different samples in a repeated step: the sample order has changed."""
