"""`streamssl pretrain` with short time-outs of Control, for drills.

Nodes are processes here, and start within seconds.
"""

import signal
import sys
from dataclasses import replace
from types import FrameType

from rich.console import Console

from cluster.actors.autoscaler import ScalingConfig
from cluster.control.cluster_config import ClusterConfig
from streamssl.commands.pretrain import parse_pretrain, placement_of, run_pretrain

TIMEOUT_SECONDS = ClusterConfig(
    scaling=ScalingConfig(
        min_readers=1,
        max_readers=1,
        cool_down_seconds=6.0,
        start_seconds=90.0,
        failed_seconds=6.0,
        retry_seconds=15.0,
    ),
)


def main() -> int:
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGINT, note)
    parsed = parse_pretrain(sys.argv[2:])
    placement = replace(placement_of(parsed), control_config=TIMEOUT_SECONDS)
    console = Console(highlight=False, soft_wrap=True)
    return 0 if run_pretrain(parsed, console, lambda: bool(asked), placement) else 130


if __name__ == "__main__":
    sys.exit(main())
