"""Runs as functions. Each docstring is the run's lab note: paper, command, cost, what to expect.

To see what a run does, read its function; to change it, write another, or override on the command
line (`--optim.base-lr 0.3`). `RECIPES` is what the command line offers: a name without an ending is
what the authors ran, `-stream` has no end and no epochs, `-small` fits a CPU.
"""

from collections.abc import Callable

from streamssl.config import RunConfig
from streamssl.recipes import moco, swav

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "swav": swav.swav,
    "swav-large-batch": swav.swav_large_batch,
    "swav-small": swav.swav_small,
    "moco-v2": moco.moco_v2,
    "moco-v2-small": moco.moco_v2_small,
}
