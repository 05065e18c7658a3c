"""`streamssl` whose wall clock is wrong by the seconds in a file, which may change at any moment.

Only this process has that clock, like a machine whose time is set while the others keep theirs.
"""

import os
import sys
import time
from pathlib import Path

PROGRAM = "tests.drills.jumping_clock"
PLACE = "STREAMSSL_DRILL_CLOCK"  # names the file, in the environment


def jump(path: Path, seconds: float) -> None:
    """Set the clock of the processes that read `path`."""
    part = path.with_suffix(".part")
    part.write_text(str(seconds))
    part.replace(path)


if __name__ == "__main__":
    real, place = time.time, Path(os.environ[PLACE])
    time.time = lambda: real() + float(place.read_text())
    from streamssl.cli import main

    sys.exit(main())
