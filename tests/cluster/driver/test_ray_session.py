"""Errors of Ray itself: sentences with remedies, and errors of our own as they are."""

import pytest
from ray.exceptions import (
    ObjectStoreFullError,
    OutOfDiskError,
    OwnerDiedError,
    RayError,
    RaySystemError,
    RayTaskError,
)

from cluster.driver.ray_session import explained
from cluster.errors import RayLost
from shards.errors import ConfigError, StreamSSLError, UserError


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (ObjectStoreFullError("no space"), UserError, "give a smaller --stream.max-bytes"),
        (OutOfDiskError("no disk"), UserError, "RAY_TMPDIR"),
        (RaySystemError("gone"), RayLost, "start the same command again"),
        (OwnerDiedError("00" * 28, None, "call"), RayLost, "start the same command again"),
    ],
)
def test_errors_of_ray_are_sentences(
    error: RayError, kind: type[StreamSSLError], words: str
) -> None:
    """A user would read a traceback through a library that he did not write."""
    with pytest.raises(kind, match=words) as found, explained():
        raise error
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "error", [ConfigError("a setting"), RayTaskError("f", "trace", ValueError("ours"))]
)
def test_errors_of_our_own_stay(error: Exception) -> None:
    """A broken promise of ours would be told as a fault of Ray."""
    with pytest.raises(type(error)) as found, explained():
        raise error
    assert found.value is error
