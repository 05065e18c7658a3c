"""Errors of the learning plane; they extend the tree of `shards.errors`.

StreamSSLError
  TrainingDiverged    a step, or a state to save, is not finite
  ReplayDiffers       a repeated step got other samples than before
"""

from shards.errors import StreamSSLError


class TrainingDiverged(StreamSSLError):
    """Numbers of `step`, counted from 1, that are not finite: none of them is in a checkpoint.

    If it `can_skip`, the weights before the step are finite: a budget would have left it out.
    """

    def __init__(self, message: str, step: int, can_skip: bool = False) -> None:
        super().__init__(message)
        self._message, self.step, self.can_skip = message, step, can_skip

    def __reduce__(self) -> tuple[type["TrainingDiverged"], tuple[str, int, bool]]:
        return type(self), (self._message, self.step, self.can_skip)  # for pickle


class ReplayDiffers(StreamSSLError):
    """Different samples in a repeated step: the sample order has changed."""
