"""Errors of the control plane; the tree continues that of `shards.errors`.

StreamSSLError
  ReadersLost         readers died repeatedly over one chunk
  ControlLost         Control died repeatedly
  RayLost             the Ray under the run ended
  RestartLoop         actors of the run died repeatedly, for the reason in the message
  NotReproducible     a chunk gave other samples when it was cropped again
  StateDiffers        trainers that must hold the same state do not
  VerifiedNotCropped  a trainer cannot crop an image that a reader has verified
  FencedError         a newer Control exists (`cluster.control.fencing`)
"""

from shards.errors import StreamSSLError


class ReadersLost(StreamSSLError):
    """Readers died so often over one chunk that another try would be a restart loop."""


class ControlLost(StreamSSLError):
    """Control died so often that another one would be a restart loop."""


class RayLost(StreamSSLError):
    """The Ray under the run ended, or does not work any more."""


class RestartLoop(StreamSSLError):
    """Actors died so often that the run would be a restart loop; the message has the reason."""


class NotReproducible(StreamSSLError):
    """Nodes differ, or a shard changed: the run would train on another stream."""


class StateDiffers(StreamSSLError):
    """Ranks hold different states: the run would train a model that no single process trains."""


class VerifiedNotCropped(StreamSSLError):
    """Readers and trainers judge an image differently: the order of samples would change."""
