"""Settings of the control plane in one value; the defaults are for real clusters."""

from dataclasses import dataclass, field

from cluster.actors.autoscaler import ScalingConfig
from cluster.actors.restart_policy import RestartConfig
from cluster.leases.lease_deadlines import LeaseConfig
from cluster.membership.failure_detector import MembershipConfig
from cluster.readers.reader_config import ReaderConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """Settings of every part, each beside its code; a run sets the bounds of `scaling`.

    `tick_seconds`: time between two checks for silent actors; `scale_seconds`: time between two
    decisions about the number of readers.
    """

    leases: LeaseConfig = field(default_factory=LeaseConfig)
    membership: MembershipConfig = field(default_factory=MembershipConfig)
    readers: ReaderConfig = field(default_factory=ReaderConfig)
    restarts: RestartConfig = field(default_factory=RestartConfig)
    scaling: ScalingConfig = field(
        default_factory=lambda: ScalingConfig(min_readers=1, max_readers=1)
    )
    tick_seconds: float = 0.25
    scale_seconds: float = 3.0
