"""Readers that sleep: a predicate that takes as long as a file says, and no core."""

import os
import time
from pathlib import Path
from typing import Any

PACE = "STREAMSSL_DRILL_PACE"  # names the file, in the environment of the nodes


def sleep(_: dict[str, Any], __: object) -> bool:
    """Keep every picture, after a while."""
    time.sleep(float(Path(os.environ[PACE]).read_text()))
    return True
