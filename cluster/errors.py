"""What can go wrong in the control plane; the tree goes on from `shards.errors`.

StreamSSLError
  ReadersLost     readers died again and again: on one chunk, or before they did anything
  ControlLost     Control died again and again
  GaveUp          actors of the run died again and again, for the reason it says
  NotReproducible a chunk that was made again gave other samples than before
  StateDiffers    trainers that must hold the same state do not
  VerifiedNotCropped  a trainer cannot crop what a reader has verified
"""

from shards.errors import StreamSSLError


class ReadersLost(StreamSSLError):
    """Readers died so often that going on would be a restart loop."""


class ControlLost(StreamSSLError):
    """Control died so often that going on would be a restart loop."""


class GaveUp(StreamSSLError):
    """Going on would be a restart loop; the message says what came to nothing, and how often."""


class NotReproducible(StreamSSLError):
    """Nodes differ, or a shard changed: going on would train on another stream."""


class StateDiffers(StreamSSLError):
    """Ranks drifted apart: what they would go on to train is nobody's model."""


class VerifiedNotCropped(StreamSSLError):
    """Readers and trainers judge an image differently: going on would change the order."""
