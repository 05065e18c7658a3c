"""Errors of the learning plane; they extend the tree of `shards.errors`.

StreamSSLError
  TrainingDiverged    the loss is not finite
  ReplayDiffers       a repeated step got other samples than before
"""

from shards.errors import StreamSSLError


class TrainingDiverged(StreamSSLError):
    """Loss that is not finite."""


class ReplayDiffers(StreamSSLError):
    """Different samples in a repeated step: the sample order has changed."""
