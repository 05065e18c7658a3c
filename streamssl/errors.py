"""What can go wrong while a model learns; the tree goes on from `shards.errors`.

StreamSSLError
  TrainingDiverged    the loss is not a number any more
  ReplayDiffers       a step that was repeated after a restart got other samples than before
"""

from shards.errors import StreamSSLError


class TrainingDiverged(StreamSSLError):
    """The loss is not a number any more."""


class ReplayDiffers(StreamSSLError):
    """A repeated step was trained on other samples: the promise of one order is broken."""
