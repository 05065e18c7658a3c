"""Token of the clusters that tests start: as in real clusters, nobody is let in without it."""

import os
import secrets

from cluster.ray_access import MODE, TOKEN
from cluster.ray_internals import read_authentication


def settle_token() -> None:
    """Let this process and its children share one token; the environment may hold one."""
    os.environ.setdefault(MODE, "token")
    os.environ.setdefault(TOKEN, secrets.token_hex(32))
    read_authentication()
